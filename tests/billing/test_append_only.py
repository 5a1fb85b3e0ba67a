"""The books only grow: the database itself refuses to change or delete a row of them."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import select, text

from tests.billing.books import HOUR, change, charge
from tests.cloud import Cloud
from vpsd.core.db import Statement, metadata

tables = pytest.mark.parametrize("table", ["ledger", "charges", "events"])


async def _rows(cloud: Cloud, table: str) -> list[tuple[Any, ...]]:
    found = metadata.tables[table]
    row = msgspec.defstruct("Row", [str(column.name) for column in found.c])
    async with cloud.reading() as ctx:
        rows = await ctx.tx.all(Statement(select(found).order_by(found.c.id), into=row))
    return [msgspec.structs.astuple(row) for row in rows]


async def _books(cloud: Cloud) -> None:
    await cloud.have_server()
    cloud.clock.advance(2 * HOUR)
    await charge(cloud)


@tables
@pytest.mark.parametrize(
    "attempt",
    [
        "UPDATE {} SET id = id",
        "UPDATE {} SET {column} = {column} + 1",
        "UPDATE {} SET {column} = 0 WHERE id = 1",
        "DELETE FROM {}",
        "DELETE FROM {} WHERE id = 1",
    ],
)
async def test_a_row_of_the_books_is_neither_changed_nor_deleted(cloud: Cloud, table: str, attempt: str) -> None:
    await _books(cloud)
    before = await _rows(cloud, table)
    assert before
    column = "at_ms" if table == "events" else "amount_micros"
    with pytest.raises(Exception, match=f"{table} is append-only"):
        await change(cloud, text(attempt.format(table, column=column)))
    assert await _rows(cloud, table) == before


@tables
@pytest.mark.parametrize(
    ("database_url", "attempt"),
    [
        ("sqlite", "INSERT OR REPLACE INTO {0} SELECT * FROM {0}"),
        ("postgresql", "INSERT INTO {0} SELECT * FROM {0} ON CONFLICT (id) DO UPDATE SET id = excluded.id"),
    ],
    indirect=["database_url"],
)
async def test_a_row_of_the_books_is_not_replaced_by_inserting_it_anew(cloud: Cloud, table: str, attempt: str) -> None:
    await _books(cloud)
    with pytest.raises(Exception, match=f"{table} is append-only"):
        await change(cloud, text(attempt.format(table)))


@tables
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_books_are_not_emptied_in_one_go_either(cloud: Cloud, table: str) -> None:
    await _books(cloud)
    with pytest.raises(Exception, match=r"append-only|foreign key"):
        await change(cloud, text(f"TRUNCATE {table}"))
    with pytest.raises(Exception, match="append-only"):
        await change(cloud, text(f"TRUNCATE {table} CASCADE"))
    assert await _rows(cloud, table)
