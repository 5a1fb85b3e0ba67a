"""The one place that executes SQL: SQLite inline on the event loop, PostgreSQL through asyncpg.

Statements are SQLAlchemy Core, compiled once per dialect and run on the bare driver (docs/decisions/0002). Rows come
back by name, as the struct that the statement is given.

A transaction belongs to the edge: a request handler, a worker step, a command. Nothing slow is awaited inside one.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Generic, Never, Protocol, TypeVar, overload
from urllib.parse import urlsplit

import asyncpg
import msgspec
from sqlalchemy import MetaData
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg as postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.expression import ClauseElement

from vpsd.core.ending import end_all, is_ending
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
    """A statement in one dialect: its text, the order of its parameters, and how its rows are read back."""

    def __init__(self, statement: "Statement[Any]", dialect: Dialect) -> None:
        compiled: Any = statement.clause.compile(dialect=dialect, column_keys=statement.columns)
        self.sql = str(compiled)
        if "POSTCOMPILE" in self.sql:
            raise TypeError("a list in a statement is no single parameter: write the comparisons out")
        self.names: list[str] = list(compiled.positiontup or ())
        self.constants: dict[str, Any] = {k: b.value for k, b in compiled.binds.items() if not b.required}
        columns = getattr(compiled, "_result_columns", None) or ()
        self._readers: list[tuple[int, Callable[[Any], Any]]] = []
        for index, column in enumerate(columns if dialect is _SQLITE else ()):  # asyncpg gives Python's own types
            reader = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if reader is not None:
                self._readers.append((index, reader))
        self._into = statement.into
        self._order = _order([column.keyname for column in columns], statement.into)

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        constants = self.constants
        return [values[name] if name in values else constants[name] for name in self.names]

    def read(self, row: Sequence[Any]) -> Any:
        if self._readers:
            row = list(row)
            for index, reader in self._readers:
                row[index] = reader(row[index])
        if self._order is None:
            return row[0]
        return self._into(*[row[index] for index in self._order])


def _order(labels: list[str], into: type | None) -> list[int] | None:
    """The column of each field, None where the first is the answer; TypeError where labels and fields differ."""
    if into is None or not issubclass(into, msgspec.Struct):
        if into is not None and len(labels) != 1:
            raise TypeError(f"{into.__name__} takes one column, and the statement has {', '.join(labels)}")
        return None
    fields = [field.name for field in msgspec.structs.fields(into)]
    if sorted(labels) != sorted(fields):
        missing, more = sorted(set(fields) - set(labels)), sorted(set(labels) - set(fields))
        raise TypeError(f"{into.__name__}: the statement lacks {missing}, and has {more} that are no fields")
    return [labels.index(name) for name in fields]


class Statement(Generic[Row]):
    """A statement of SQLAlchemy Core, compiled once per dialect.

    `columns` names the columns that an INSERT or UPDATE takes from the parameters. `into` is what its rows become: a
    struct, whose fields are compared with the statement's labels when it is compiled (TypeError), or the type of the
    one column that it has.
    """

    @overload
    def __init__(self: "Statement[Never]", clause: ClauseElement, columns: Sequence[str] | None = None) -> None: ...

    @overload
    def __init__(self, clause: ClauseElement, columns: Sequence[str] | None = None, *, into: type[Row]) -> None: ...

    def __init__(
        self, clause: ClauseElement, columns: Sequence[str] | None = None, *, into: type[Any] | None = None
    ) -> None:
        self.clause = clause
        self.columns = None if columns is None else list(columns)
        self.into: Any = into
        self._compiled: dict[str, _Compiled] = {}

    def compiled(self, dialect: Dialect) -> _Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _Compiled(self, dialect)
        return found


class Tx(Protocol):
    """A transaction, or a plain reader."""

    async def all(self, statement: Statement[Row], /, **values: Any) -> list[Row]:
        """Every row."""

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        """The first row or None."""

    async def run(self, statement: Statement[Any], /, **values: Any) -> int:
        """Execute and say how many rows it touched."""

    async def many(self, statement: Statement[Any], rows: Sequence[dict[str, Any]], /) -> None:
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

    def _execute(self, statement: Statement[Any], values: dict[str, Any]) -> tuple[_Compiled, sqlite3.Cursor]:
        compiled = statement.compiled(_SQLITE)
        with _unique_violations():
            return compiled, self._connection.execute(compiled.sql, compiled.arguments(values))

    async def all(self, statement: Statement[Row], /, **values: Any) -> list[Row]:
        compiled, cursor = self._execute(statement, values)
        return [compiled.read(row) for row in cursor.fetchall()]

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        compiled, cursor = self._execute(statement, values)
        rows = cursor.fetchall()  # all of them: a RETURNING is carried out as its rows are read
        return compiled.read(rows[0]) if rows else None

    async def run(self, statement: Statement[Any], /, **values: Any) -> int:
        return self._execute(statement, values)[1].rowcount

    async def many(self, statement: Statement[Any], rows: Sequence[dict[str, Any]], /) -> None:
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

    async def _fetch(self, statement: Statement[Any], values: dict[str, Any]) -> tuple[_Compiled, list[Any]]:
        compiled = statement.compiled(_POSTGRESQL)
        with _unique_violations():
            return compiled, await self._connection.fetch(compiled.sql, *compiled.arguments(values))

    async def all(self, statement: Statement[Row], /, **values: Any) -> list[Row]:
        compiled, rows = await self._fetch(statement, values)
        return [compiled.read(row) for row in rows]

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        compiled, rows = await self._fetch(statement, values)
        return compiled.read(rows[0]) if rows else None

    async def run(self, statement: Statement[Any], /, **values: Any) -> int:
        compiled = statement.compiled(_POSTGRESQL)
        with _unique_violations():
            done: str = await self._connection.execute(compiled.sql, *compiled.arguments(values))
        return int(done.rsplit(" ", 1)[-1])  # "UPDATE 1", "INSERT 0 1"

    async def many(self, statement: Statement[Any], rows: Sequence[dict[str, Any]], /) -> None:
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
        while not is_ending():
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
            await end_all({self._listener})
        await self._pool.close()


class _RollBack(Exception):
    pass


@asynccontextmanager
async def rolled_back(database: Database) -> AsyncIterator[Tx]:
    """A transaction that is undone at its end: it sees what it does, and nobody else ever will."""
    try:
        async with database.write() as tx:
            yield tx
            raise _RollBack
    except _RollBack:
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
    raise Misconfigured(
        f"VPSD_DATABASE_URL: {parts.scheme or url!r} is not a database that vpsd knows; use postgresql://…"
    )


def sqlite_path(url: str) -> str:
    """The file of an `sqlite:///path` URL."""
    path = url.removeprefix("sqlite:///")
    if path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path
