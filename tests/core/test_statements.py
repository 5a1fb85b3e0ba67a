"""Every statement of vpsd: it fits its struct, in both dialects, and touches only what its account owns."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import Column, Table
from sqlalchemy.sql import Delete, Insert, Select, Update, visitors

import vpsd
from vpsd.core import db
from vpsd.core.db import Statement
from vpsd.core.pages import PagedList

# Statements that change or lock rows of any account, and may: what workers do with ids that they found themselves, and
# what runs before it is known who asks.
ANY_ACCOUNT = {
    "vpsd.backups.marks._SET_TARGET",
    "vpsd.backups.queries._LATEST",
    "vpsd.billing.meter._MOVE",
    "vpsd.events.retention._PRUNE",
    "vpsd.operations.service._HOLD",
    "vpsd.servers.queries._LOCK_ANY",
}
# Modules that change rows which whoever calls them has locked: there is no other way in.
LOCKED_BEFORE = (
    "vpsd.backups.commands.",
    "vpsd.operations.service.",
    "vpsd.operations.times.",
    "vpsd.servers.deletion.",
    "vpsd.servers.transitions.",
    "vpsd.servers.unplaced.",
    "vpsd.servers.updates.",
)


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(vpsd.__path__, "vpsd."):
        if not found.name.startswith("vpsd.migrations.") and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def _statements() -> Iterator[tuple[str, Statement[Any]]]:
    """With where they stand; those of a dict by their keys, those of a list by what they read."""
    for module in _modules():
        for name, value in vars(module).items():
            group = {name: value}
            if isinstance(value, dict):
                group = {f"{name}[{key}]": one for key, one in value.items()}
            elif isinstance(value, PagedList):
                group = {f"{name}.{part}": getattr(value, part) for part in ("page", "onwards", "count")}
            for label, statement in group.items():
                if isinstance(statement, Statement):
                    yield f"{module.__name__}.{label}", statement


STATEMENTS = dict(_statements())


def test_the_statements_are_found() -> None:
    assert {"vpsd.accounts.tokens._REVOKE", "vpsd.billing.ledger._BALANCE", "vpsd.events.service._LIST.page"} <= {
        *STATEMENTS
    }


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_fits_what_its_rows_become_in_both_dialects(name: str) -> None:
    for dialect in (db.SQLITE, db.POSTGRESQL):
        STATEMENTS[name].compiled(dialect)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_sets_only_columns_that_there_are(name: str) -> None:
    clause, columns = STATEMENTS[name].clause, STATEMENTS[name].columns
    if columns is not None:  # what has another name would be left out without a word
        assert isinstance(clause, Insert | Update)
        assert isinstance(clause.table, Table)
        assert set(columns) <= set(clause.table.c.keys())


@pytest.mark.parametrize("name", STATEMENTS)
def test_what_rows_become_takes_its_fields_by_position(name: str) -> None:
    into = STATEMENTS[name].into
    if into is not None and issubclass(into, msgspec.Struct):
        kinds = {parameter.kind for parameter in inspect.signature(into).parameters.values()}
        assert inspect.Parameter.KEYWORD_ONLY not in kinds, f"{into.__name__} is built from a row, so no kw_only"


@pytest.mark.parametrize("name", STATEMENTS)
def test_whoever_changes_or_locks_rows_of_accounts_says_whose(name: str) -> None:
    clause = STATEMENTS[name].clause
    excepted = name in ANY_ACCOUNT or (name.startswith(LOCKED_BEFORE) and not isinstance(clause, Select))
    if _owned(clause) and not excepted:
        assert "account_id" in _where(clause), f"{name} does not say which account's rows it is about"


def test_the_list_of_statements_for_any_account_has_nobody_who_needs_it_no_more() -> None:
    for name in ANY_ACCOUNT:
        clause = STATEMENTS[name].clause
        assert _owned(clause), name
        assert "account_id" not in _where(clause), name


def _owned(clause: Any) -> bool:
    """Whether it changes or locks rows that belong to an account."""
    if isinstance(clause, Update | Delete):
        return isinstance(clause.table, Table) and "account_id" in clause.table.c
    if isinstance(clause, Select) and clause._for_update_arg is not None:
        found = [table for source in clause.get_final_froms() for table in visitors.iterate(source)]
        locked = clause._for_update_arg.of or [table for table in found if isinstance(table, Table)]
        return any("account_id" in table.c for table in locked if isinstance(table, Table))
    return False


def _where(clause: Any) -> set[str]:
    """The columns that it is narrowed by."""
    where = clause.whereclause
    if where is None:
        return set()
    return {element.name for element in visitors.iterate(where) if isinstance(element, Column)}
