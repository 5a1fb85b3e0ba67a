"""How a database would carry out a statement."""

from typing import Any

from vpsd.core import db
from vpsd.core.db import Database, Statement
from vpsd.core.postgres import PostgresDatabase
from vpsd.core.sqlite import SqliteDatabase


async def explain(database: Database, statement: Statement[Any], given: dict[str, Any], table: str) -> str:
    """The plan, in the words of the database. PostgreSQL is told what is in `table`, and not to read it whole."""
    if isinstance(database, SqliteDatabase):
        compiled = statement.compiled(db.SQLITE)
        found = database._reader.execute(f"EXPLAIN QUERY PLAN {compiled.sql}", compiled.arguments(given)).fetchall()
        return str(found)
    assert isinstance(database, PostgresDatabase)
    compiled = statement.compiled(db.POSTGRESQL)
    async with database._pool.acquire() as connection:
        await connection.execute(f"ANALYZE {table}")
        async with connection.transaction():
            await connection.execute("SET LOCAL enable_seqscan = off")  # it would, of a table as small as a test's
            return str(await connection.fetch(f"EXPLAIN {compiled.sql}", *compiled.arguments(given)))
