# vpsd: `make run` and `make test` do everything on a fresh Debian 12, and can be rerun at any time.
.PHONY: help run test test-quick test-debian fuzz storm storm-real check format lock openapi migrations bench bench-scale clean
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## Install what is missing and serve the API with real servers (settings: VPSD_… variables)
	@scripts/install run
	@exec .venv/bin/vpsd up

test: ## Install what is missing and run all tests, real guests included
	@scripts/install dev
	@scripts/test

test-quick: ## Run the tests that need neither guests nor PostgreSQL, in under three minutes
	@scripts/install dev
	@scripts/test --quick

test-debian: ## Back up, restore and resize a real Debian 12, and boot one by UEFI, in twenty minutes
	@scripts/install dev
	@$(PYTHON) -m pytest --durations=0 tests/debian

fuzz: ## Attack the API, the port and the workers at random for up to ten minutes (FUZZ_SEED=…)
	@scripts/install dev
	@echo "seed $${FUZZ_SEED:-1}; to repeat: FUZZ_SEED=$${FUZZ_SEED:-1} make fuzz"
	@FUZZ=long timeout 600 $(PYTHON) -m pytest -n 2 --durations=5 tests/fuzz

SEEDS ?= 1000
storm: ## Simulate SEEDS=1000 storms over several processes and hosts; SEED=123 tells one in full
	@scripts/install dev
	@PYTHONHASHSEED=0 $(PYTHON) -m tests.storm $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

storm-real: ## One storm of MINUTES=4 over real processes, libvirtds and guests, SEED=1; as root
	@scripts/install dev
	@$(PYTHON) -m tests.storm_real --minutes $(or $(MINUTES),4) --seed $(or $(SEED),1)

check: ## Format, lint, types, import directions, API description
	@scripts/install dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	@$(PYTHON) -m vpsd.api.app | diff -u openapi.json - || { echo 'openapi.json is out of date; run make openapi'; exit 1; }
	@scripts/lint-openapi

format: ## Format the code and fix what ruff can fix
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock: ## Update the lock files
	scripts/lock

openapi: ## Write openapi.json from the code
	$(PYTHON) -m vpsd.api.app > openapi.json

migrations: ## Describe what a new migration makes
	$(PYTHON) -m vpsd.migrations

bench: ## Run the benchmarks, as ratios against yardsticks
	@scripts/install dev
	@$(PYTHON) -m bench

bench-scale: ## What requests cost with a million servers, and 1,000 hosts at rest
	@scripts/install dev
	@$(PYTHON) -m bench.scale
	@$(PYTHON) -m bench.rest
	@$(PYTHON) -m bench.rest --postgres

clean: ## Remove everything installed and built, except servers and data in var/
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
