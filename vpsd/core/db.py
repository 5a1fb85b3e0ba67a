"""Statements, and what a database does with them; `sqlite` and `postgres` beside it are the two that there are.

Statements are SQLAlchemy Core, compiled once per dialect and run on the bare driver (docs/decisions/0002). Rows come
back by name, as the struct that the statement is given.

A transaction belongs to the edge: a request handler, a worker step, a command. Nothing slow is awaited inside one.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Generic, Never, Protocol, TypeVar, overload
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import MetaData
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg as postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.expression import ClauseElement

from vpsd.core.outages import DatabaseStatus, UniqueViolation
from vpsd.errors import Misconfigured

__all__ = ["Database", "Statement", "Tx", "UniqueViolation", "connect", "metadata", "rolled_back", "sqlite_path"]

WAIT_SECONDS = 10.0  # for a connection, or for others that write

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

SQLITE = sqlite.dialect(paramstyle="qmark")
POSTGRESQL: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


class Compiled:
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
        for index, column in enumerate(columns if dialect is SQLITE else ()):  # asyncpg gives Python's own types
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
        self._compiled: dict[str, Compiled] = {}

    def compiled(self, dialect: Dialect) -> Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = Compiled(self, dialect)
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
    """Where the rows are.

    While it is away, full or locked, its transactions raise `DatabaseUnavailable`, or `OutcomeUnknown` where one may
    have been committed all the same.
    """

    status: DatabaseStatus

    def read(self, wait_seconds: float = WAIT_SECONDS) -> AbstractAsyncContextManager[Tx]:
        """Read without a lock; every statement sees what is committed.

        `wait_seconds` is how long it may wait for a connection; a shorter time than usual is also the statements'.
        """

    def write(self, wait_seconds: float = WAIT_SECONDS, *, together: bool = False) -> AbstractAsyncContextManager[Tx]:
        """A transaction: committed at the end of the block, undone when it raises.

        `wait_seconds` is how long it may wait to begin. `together`: it may wait for others that are ready to write, and
        be committed with them; each of them is still done whole or not at all.
        """

    def snapshot(self) -> AbstractAsyncContextManager[Tx]:
        """Read everything as it was at one moment, without keeping others from writing."""

    def on_operation(self, wake: Callable[[], None]) -> None:
        """Call `wake` when a transaction notified, in this process or, where the database can tell, in another."""

    async def close(self) -> None:
        """Let go of the connections."""


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
    from vpsd.core.postgres import PostgresDatabase  # they are made of what is in this file
    from vpsd.core.sqlite import SqliteDatabase

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
