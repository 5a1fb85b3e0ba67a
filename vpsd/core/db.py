"""The one place that executes SQL: SQLite inline on the event loop, PostgreSQL through asyncpg.

Statements are SQLAlchemy Core, compiled once per dialect and run on the bare driver (docs/decisions/0002). Rows come
back as the struct that the caller names, built by position.

A transaction belongs to the edge: a request handler, a worker step, a command. Nothing slow is awaited inside one.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import MetaData
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg as postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.expression import ClauseElement

from vpsd.errors import Misconfigured

log = logging.getLogger(__name__)

Row = TypeVar("Row")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_SQLITE = sqlite.dialect(paramstyle="qmark")
_POSTGRESQL: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


class UniqueViolation(Exception):
    """A row with these unique values is there already; the transaction is lost."""


class _Compiled:
    """A statement in one dialect: its text, the order of its parameters, and how its columns are read back."""

    def __init__(self, clause: ClauseElement, columns: Sequence[str] | None, dialect: Dialect) -> None:
        compiled: Any = clause.compile(
            dialect=dialect,
            column_keys=None if columns is None else list(columns),
        )
        self.sql = str(compiled)
        if "POSTCOMPILE" in self.sql:
            raise TypeError("a list in a statement is no single parameter: write the comparisons out")
        self.names: list[str] = list(compiled.positiontup or ())
        self.constants: dict[str, Any] = {k: b.value for k, b in compiled.binds.items() if not b.required}
        self.readers: list[tuple[int, Callable[[Any], Any]]] = []
        if dialect is _POSTGRESQL:
            return  # asyncpg gives Python's own types
        for index, entry in enumerate(getattr(compiled, "_result_columns", ())):
            reader = entry.type.dialect_impl(dialect).result_processor(dialect, None)
            if reader is not None:
                self.readers.append((index, reader))

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        constants = self.constants
        return [values[name] if name in values else constants[name] for name in self.names]

    def read(self, row: Sequence[Any]) -> Sequence[Any]:
        if not self.readers:
            return row
        cells = list(row)
        for index, reader in self.readers:
            cells[index] = reader(cells[index])
        return cells


class Statement:
    """A statement of SQLAlchemy Core, compiled once per dialect.

    `columns` names the columns that an INSERT or UPDATE takes from the parameters; parameters of a WHERE clause need
    names that are no column's.
    """

    def __init__(self, clause: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._clause = clause
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def compiled(self, dialect: Dialect) -> _Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _Compiled(self._clause, self._columns, dialect)
        return found


class Tx(Protocol):
    """A transaction, or a plain reader."""

    async def all(self, into: Callable[..., Row], statement: Statement, **values: Any) -> list[Row]:
        """Every row, as `into(*columns)`."""

    async def first(self, into: Callable[..., Row], statement: Statement, **values: Any) -> Row | None:
        """The first row or None."""

    async def run(self, statement: Statement, **values: Any) -> int:
        """Execute and say how many rows it touched."""

    async def many(self, statement: Statement, rows: Sequence[dict[str, Any]]) -> None:
        """Execute once for each row of values, in one go."""

    async def notify(self) -> None:
        """Tell the workers, once the transaction is committed, that there is an operation to do."""


class Database(Protocol):
    """Where the rows are."""

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """Read without a lock; every statement sees what is committed."""

    def write(self) -> AbstractAsyncContextManager[Tx]:
        """A transaction: committed at the end of the block, undone when it raises."""

    def snapshot(self) -> AbstractAsyncContextManager[Tx]:
        """Read everything as it was at one moment, without keeping others from writing."""

    def on_operation(self, wake: Callable[[], None]) -> None:
        """Call `wake` when a transaction notified, in this process or, where the database can tell, in another."""

    async def close(self) -> None:
        """Let go of the connections."""


@contextmanager
def _unique_violations() -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
            raise UniqueViolation(str(error)) from error
        raise
    except asyncpg.UniqueViolationError as error:
        raise UniqueViolation(str(error)) from error


class _SqliteTx:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.notified = False

    def _execute(self, statement: Statement, values: dict[str, Any]) -> tuple[_Compiled, sqlite3.Cursor]:
        compiled = statement.compiled(_SQLITE)
        with _unique_violations():
            return compiled, self._connection.execute(compiled.sql, compiled.arguments(values))

    async def all(self, into: Callable[..., Row], statement: Statement, **values: Any) -> list[Row]:
        compiled, cursor = self._execute(statement, values)
        return [into(*compiled.read(row)) for row in cursor.fetchall()]

    async def first(self, into: Callable[..., Row], statement: Statement, **values: Any) -> Row | None:
        compiled, cursor = self._execute(statement, values)
        rows = cursor.fetchall()  # all of them: a RETURNING is carried out as its rows are read
        return into(*compiled.read(rows[0])) if rows else None

    async def run(self, statement: Statement, **values: Any) -> int:
        return self._execute(statement, values)[1].rowcount

    async def many(self, statement: Statement, rows: Sequence[dict[str, Any]]) -> None:
        compiled = statement.compiled(_SQLITE)
        with _unique_violations():
            self._connection.executemany(compiled.sql, [compiled.arguments(values) for values in rows])

    async def notify(self) -> None:
        self.notified = True


class SqliteDatabase:
    """One file. Statements run on the event loop's thread: with no hop between threads a read costs microseconds."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer = _open_sqlite(path)
        self._reader = self._writer if path == ":memory:" else _open_sqlite(path)
        self._lock = asyncio.Lock()
        self._wakers: list[Callable[[], None]] = []

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        yield _SqliteTx(self._reader)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        async with self._lock:
            tx = _SqliteTx(self._writer)
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield tx
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")
        if tx.notified:
            for wake in self._wakers:
                wake()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        connection = _open_sqlite(self._path)  # its own: other readers go on seeing what is new
        try:
            connection.execute("BEGIN")
            yield _SqliteTx(connection)
        finally:
            connection.close()

    def on_operation(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)

    async def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _open_sqlite(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=512)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # an answered request survives a power cut
        "foreign_keys = ON",
        "recursive_triggers = ON",  # or a REPLACE would slip past what keeps rows from being deleted
        "busy_timeout = 10000",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class _PostgresTx:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> tuple[_Compiled, list[Any]]:
        compiled = statement.compiled(_POSTGRESQL)
        with _unique_violations():
            return compiled, await self._connection.fetch(compiled.sql, *compiled.arguments(values))

    async def all(self, into: Callable[..., Row], statement: Statement, **values: Any) -> list[Row]:
        compiled, rows = await self._fetch(statement, values)
        return [into(*compiled.read(tuple(row))) for row in rows]

    async def first(self, into: Callable[..., Row], statement: Statement, **values: Any) -> Row | None:
        compiled, rows = await self._fetch(statement, values)
        return into(*compiled.read(tuple(rows[0]))) if rows else None

    async def run(self, statement: Statement, **values: Any) -> int:
        compiled = statement.compiled(_POSTGRESQL)
        with _unique_violations():
            done: str = await self._connection.execute(compiled.sql, *compiled.arguments(values))
        return int(done.rsplit(" ", 1)[-1])  # "UPDATE 1", "INSERT 0 1"

    async def many(self, statement: Statement, rows: Sequence[dict[str, Any]]) -> None:
        compiled = statement.compiled(_POSTGRESQL)
        with _unique_violations():
            await self._connection.executemany(compiled.sql, [compiled.arguments(values) for values in rows])

    async def notify(self) -> None:
        await self._connection.execute("NOTIFY vpsd_operations")


class PostgresDatabase:
    """A PostgreSQL server, shared by any number of API and worker processes."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._wakers: list[Callable[[], None]] = []
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, url: str) -> "PostgresDatabase":
        """Open a small pool; raises `Misconfigured` when the server does not answer."""
        try:
            return cls(await asyncpg.create_pool(url, min_size=1, max_size=10, command_timeout=30))
        except (OSError, asyncpg.PostgresError) as error:
            raise Misconfigured(f"the database of VPSD_DATABASE_URL does not answer: {error}") from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        async with self._pool.acquire() as connection:
            yield _PostgresTx(connection)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        async with self._pool.acquire() as connection, connection.transaction():
            yield _PostgresTx(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield _PostgresTx(connection)

    def on_operation(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        # A lost connection is no news: workers poll as well, and the next one listens again.
        while True:
            try:
                async with self._pool.acquire() as connection:
                    lost = asyncio.Event()
                    connection.add_termination_listener(lambda *_, lost=lost: lost.set())
                    await connection.add_listener("vpsd_operations", self._notified)
                    try:
                        await lost.wait()
                    finally:
                        await connection.remove_listener("vpsd_operations", self._notified)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("the database does not answer; listening again in a second: %s", error)
            await asyncio.sleep(1)

    def _notified(self, *_: object) -> None:
        for wake in self._wakers:
            wake()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})
        await self._pool.close()


class _Rehearsed(Exception):
    pass


@asynccontextmanager
async def rehearse(database: Database) -> AsyncIterator[Tx]:
    """A transaction that is undone at its end: it sees what it does, and nobody else ever will."""
    try:
        async with database.write() as tx:
            yield tx
            raise _Rehearsed
    except _Rehearsed:
        return


async def connect(url: str) -> Database:
    """Open the database of a URL: `sqlite:///path` or `postgresql://…`.

    Raises `Misconfigured` for any other.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return SqliteDatabase(sqlite_path(url))
    if parts.scheme in ("postgresql", "postgres"):
        return await PostgresDatabase.connect(url)
    raise Misconfigured(f"VPSD_DATABASE_URL: {parts.scheme or url!r} is no database vpsd knows; use postgresql://…")


def sqlite_path(url: str) -> str:
    """The file of an `sqlite:///path` URL."""
    path = url.removeprefix("sqlite:///")
    if path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path
