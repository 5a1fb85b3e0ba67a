"""Everything that a database holds, to see whether something changed."""

from typing import Any

from sqlalchemy import Table, insert, select, update

from vpsd.core.db import Database, Statement, Tx
from vpsd.migrations import schema

Dump = dict[str, list[dict[str, Any]]]


def _rows_of(table: Table) -> Statement:
    return Statement(select(table).order_by(*table.primary_key.columns))


# What a read may write: when a token was used last.
_TABLES: dict[str, tuple[list[str], Statement]] = {
    name: ([column.name for column in table.c], _rows_of(table)) for name, table in schema.all_tables().tables.items()
}


async def dump(database: Database) -> Dump:
    """Every row of every table; without when tokens were used last, which any request may note."""
    found: Dump = {}
    async with database.read() as tx:
        for name, (columns, statement) in _TABLES.items():
            rows = await tx.all(lambda *row, columns=columns: dict(zip(columns, row, strict=True)), statement)
            found[name] = [{key: value for key, value in row.items() if key != "last_used_at_ms"} for row in rows]
    return found


async def rows(database: Database, table: str) -> list[dict[str, Any]]:
    """Every row of a table."""
    columns, statement = _TABLES[table]
    async with database.read() as tx:
        return await tx.all(lambda *row: dict(zip(columns, row, strict=True)), statement)


async def put(tx: Tx, table: Table, **values: Any) -> None:
    """Add a row, past every rule but the database's own."""
    await tx.run(Statement(insert(table), list(values)), **values)


async def change(tx: Tx, table: Table, row_id: int, **values: Any) -> None:
    """Change a row, past every rule but the database's own."""
    await tx.run(Statement(update(table).where(table.c.id == row_id), list(values)), **values)
