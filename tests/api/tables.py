"""Everything that a database holds, to see whether something changed."""

from typing import Any

import msgspec
from sqlalchemy import Table, insert, select, text, update

from vpsd.core.db import Database, Statement, Tx
from vpsd.migrations import schema

Dump = dict[str, list[dict[str, Any]]]


def _rows_of(table: Table) -> Statement[Any]:
    row = msgspec.defstruct(str(table.name), [(str(column.name), Any) for column in table.c])
    return Statement(select(table).order_by(*table.primary_key.columns), into=row)


_TABLES = {name: _rows_of(table) for name, table in schema.all_tables().tables.items()}


async def dump(database: Database) -> Dump:
    """Every row of every table; without when tokens were used last, which any request may record."""
    found: Dump = {}
    for name in _TABLES:
        every = await rows(database, name)
        found[name] = [{key: value for key, value in row.items() if key != "last_used_at_ms"} for row in every]
    return found


async def rows(database: Database, table: str) -> list[dict[str, Any]]:
    """Every row of a table."""
    async with database.read() as tx:
        return [msgspec.structs.asdict(row) for row in await tx.all(_TABLES[table])]


async def put(tx: Tx, table: Table, **values: Any) -> None:
    """Add a row, past every rule but the database's own."""
    await tx.run(Statement(insert(table), list(values)), **values)


async def change(tx: Tx, table: Table, row_id: int, **values: Any) -> None:
    """Change a row, past every rule but the database's own."""
    await tx.run(Statement(update(table).where(table.c.id == row_id), list(values)), **values)


async def lose_table(database: Database, name: str = "servers") -> None:
    """Have every statement about a table fail: an error that nobody expects."""
    async with database.write() as tx:
        await tx.all(Statement(text(f"ALTER TABLE {name} RENAME TO lost")))
