"""The database layer: the same statements on both kinds, and what a transaction promises."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import ColumnElement, bindparam, func, insert, select
from sqlalchemy.engine import Dialect

from vpsd.catalog.models import Plan, plans
from vpsd.core import db
from vpsd.core.db import Database, Statement, UniqueViolation
from vpsd.core.sqlite import SqliteDatabase
from vpsd.errors import Misconfigured

PLAN = Plan(7, "P", "p", 1, 256, 2, 1, 2_000_000, None, "", True)
_ADD = Statement(insert(plans), [column.name for column in plans.c])
_ALL = Statement(select(plans).order_by(plans.c.id), into=Plan)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = await db.connect(database_url)
    yield made
    await made.close()


def _values(plan: Plan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__struct_fields__}


async def test_a_row_comes_back_as_it_went_in_booleans_too(database: Database) -> None:
    async with database.write() as tx:
        assert await tx.run(_ADD, **_values(PLAN)) == 1
    async with database.read() as tx:
        (found,) = await tx.all(_ALL)
    assert found == PLAN
    assert found.available is True


async def test_what_raises_is_undone(database: Database) -> None:
    with pytest.raises(KeyError):
        async with database.write() as tx:
            await tx.run(_ADD, **_values(PLAN))
            raise KeyError
    async with database.read() as tx:
        assert await tx.all(_ALL) == []


async def test_what_is_not_committed_is_not_seen(database: Database) -> None:
    async with database.write() as tx:
        await tx.run(_ADD, **_values(PLAN))
        async with database.read() as other:
            assert await other.all(_ALL) == []


async def test_a_row_that_is_there_already_is_a_unique_violation(database: Database) -> None:
    with pytest.raises(UniqueViolation):
        async with database.write() as tx:
            await tx.run(_ADD, **_values(PLAN))
            await tx.run(_ADD, **_values(PLAN))


async def test_a_missing_parameter_is_an_error_and_not_a_null(database: Database) -> None:
    one = Statement(select(plans.c.id).where(plans.c.id == bindparam("id")), into=int)
    with pytest.raises(KeyError):
        async with database.read() as tx:
            await tx.first(one)


async def test_workers_are_woken_when_the_transaction_is_committed_and_not_before(database: Database) -> None:
    woken = asyncio.Event()
    database.on_operation(woken.set)
    async with asyncio.timeout(20):
        while not woken.is_set():  # PostgreSQL may not be listening yet at the first
            async with database.write() as tx:
                await tx.notify()
                assert not woken.is_set() or database.__class__.__name__ == "PostgresDatabase"
            await asyncio.sleep(0)


async def test_a_transaction_that_is_undone_wakes_nobody(tmp_path: object) -> None:
    database = SqliteDatabase(":memory:")
    woken = asyncio.Event()
    database.on_operation(woken.set)
    with pytest.raises(KeyError):
        async with database.write() as tx:
            await tx.notify()
            raise KeyError
    assert not woken.is_set()
    await database.close()


class Size(msgspec.Struct):
    """Some of a plan, in an order of its own."""

    memory_mb: int
    plan_name: str
    vcpus: int


async def test_a_row_is_read_by_its_labels_and_not_by_their_order(database: Database) -> None:
    columns = (plans.c.vcpus, plans.c.name.label("plan_name"), plans.c.memory_mb)
    async with database.write() as tx:
        await tx.run(_ADD, **_values(PLAN))
        assert await tx.first(Statement(select(*columns), into=Size)) == Size(256, "P", 1)


async def test_an_insert_that_returns_something_is_read_alike(database: Database) -> None:
    columns = [column.name for column in plans.c]
    async with database.write() as tx:
        assert await tx.first(Statement(insert(plans).returning(plans), columns, into=Plan), **_values(PLAN)) == PLAN


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((plans.c.vcpus, plans.c.memory_mb), r"lacks \['plan_name'\], and has \[\]"),
        (
            (plans.c.vcpus, plans.c.memory_mb, plans.c.name),
            r"lacks \['plan_name'\], and has \['name'\]",
        ),
        (
            (plans.c.vcpus, plans.c.memory_mb, plans.c.name.label("plan_name"), plans.c.slug),
            r"lacks \[\], and has \['slug'\]",
        ),
    ],
)
@pytest.mark.parametrize("dialect", [db.SQLITE, db.POSTGRESQL])
def test_labels_that_are_not_the_structs_fields_are_refused_when_compiled(
    columns: tuple[ColumnElement[Any], ...], said: str, dialect: Dialect
) -> None:
    with pytest.raises(TypeError, match=f"Size: the statement {said} that are no fields"):
        Statement(select(*columns), into=Size).compiled(dialect)


def test_one_value_takes_one_column() -> None:
    assert Statement(select(func.count()).select_from(plans), into=int).compiled(db.SQLITE)
    with pytest.raises(TypeError, match="int takes one column, and the statement has id, name"):
        Statement(select(plans.c.id, plans.c.name), into=int).compiled(db.SQLITE)


def test_a_list_is_no_parameter() -> None:
    statement = Statement(select(plans.c.id).where(plans.c.id.in_([1, 2])))
    with pytest.raises(TypeError, match="list"):
        statement.compiled(db.SQLITE)


async def test_a_database_that_vpsd_does_not_know_is_refused() -> None:
    with pytest.raises(Misconfigured, match="mysql"):
        await db.connect("mysql://localhost/vpsd")
