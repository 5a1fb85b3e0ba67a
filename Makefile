# vpsd: `make run` and `make test` do everything on a fresh Debian 12; each may be run again at any time.
.PHONY: help run test test-debian check format lock openapi migrations bench clean
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## Install what is missing and serve the API, with real servers (settings: VPSD_… variables)
	@scripts/install run
	@exec .venv/bin/vpsd up

test: ## Install what is missing and run all tests, real guests included
	@scripts/install dev
	@scripts/test

test-debian: ## Back up, restore and resize a real Debian 12, in about ten minutes
	@scripts/install dev
	@$(PYTHON) -m pytest --durations=0 tests/debian

check: ## Format, lint, types, import directions, API description
	@scripts/install dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	@$(PYTHON) -m vpsd.api.openapi | diff -u openapi.json - || { echo 'openapi.json is not what the code says: make openapi'; exit 1; }

format: ## Format the code, mend what can be mended
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock: ## Resolve the dependencies anew
	scripts/lock

openapi: ## Write openapi.json from the code
	$(PYTHON) -m vpsd.api.openapi > openapi.json

migrations: ## Note what a new migration makes
	$(PYTHON) -m vpsd.migrations

bench: ## Measure, as ratios between things run in turn
	@scripts/install dev
	@$(PYTHON) -m bench

clean: ## Remove what was installed and built; servers and data in var/ stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
