"""The database layer: the same statements on both kinds, and what a transaction promises."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import bindparam, insert, select

from vpsd.catalog.models import Plan, plans
from vpsd.core import db
from vpsd.core.db import Database, Statement, UniqueViolation
from vpsd.errors import Misconfigured

PLAN = Plan(7, "P", "p", 1, 256, 2, 1, 2_000_000, None, "", True)
_ADD = Statement(insert(plans), [column.name for column in plans.c])
_ALL = Statement(select(plans).order_by(plans.c.id))


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
        (found,) = await tx.all(Plan, _ALL)
    assert found == PLAN
    assert found.available is True


async def test_what_raises_is_undone(database: Database) -> None:
    with pytest.raises(KeyError):
        async with database.write() as tx:
            await tx.run(_ADD, **_values(PLAN))
            raise KeyError
    async with database.read() as tx:
        assert await tx.all(Plan, _ALL) == []


async def test_what_is_not_committed_is_not_seen(database: Database) -> None:
    async with database.write() as tx:
        await tx.run(_ADD, **_values(PLAN))
        async with database.read() as other:
            assert await other.all(Plan, _ALL) == []


async def test_a_row_that_is_there_already_is_a_unique_violation(database: Database) -> None:
    with pytest.raises(UniqueViolation):
        async with database.write() as tx:
            await tx.run(_ADD, **_values(PLAN))
            await tx.run(_ADD, **_values(PLAN))


async def test_a_missing_parameter_is_an_error_and_not_a_null(database: Database) -> None:
    one = Statement(select(plans.c.id).where(plans.c.id == bindparam("the_id")))
    with pytest.raises(KeyError):
        async with database.read() as tx:
            await tx.first(int, one)


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
    database = db.SqliteDatabase(":memory:")
    woken = asyncio.Event()
    database.on_operation(woken.set)
    with pytest.raises(KeyError):
        async with database.write() as tx:
            await tx.notify()
            raise KeyError
    assert not woken.is_set()
    await database.close()


def test_a_list_is_no_parameter() -> None:
    statement = Statement(select(plans.c.id).where(plans.c.id.in_([1, 2])))
    with pytest.raises(TypeError, match="list"):
        statement.compiled(db._SQLITE)


async def test_a_database_that_vpsd_does_not_know_is_refused() -> None:
    with pytest.raises(Misconfigured, match="mysql"):
        await db.connect("mysql://localhost/vpsd")
