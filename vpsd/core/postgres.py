"""PostgreSQL, through asyncpg: a server that any number of API and worker processes share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from vpsd.core.db import POSTGRESQL, WAIT_SECONDS, Compiled, Row, Statement, Tx
from vpsd.core.ending import end_all, is_ending
from vpsd.core.outages import DatabaseStatus, Evidence, translated
from vpsd.errors import DatabaseUnavailable, Misconfigured

_COMMAND_SECONDS = 30  # a statement may take


class _PostgresTx:
    def __init__(self, connection: Any, read_seconds: float | None = None) -> None:
        self._connection = connection
        self._read_seconds = read_seconds  # None: like any statement
        self.changed = False

    async def _fetch(self, statement: Statement[Any], values: dict[str, Any]) -> tuple[Compiled, list[Any]]:
        compiled = statement.compiled(POSTGRESQL)
        with translated():
            rows = await self._connection.fetch(compiled.sql, *compiled.arguments(values), timeout=self._read_seconds)
        self.changed |= bool(rows) and statement.clause.is_dml
        return compiled, rows

    async def all(self, statement: Statement[Row], /, **values: Any) -> list[Row]:
        compiled, rows = await self._fetch(statement, values)
        return [compiled.read(row) for row in rows]

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        compiled, rows = await self._fetch(statement, values)
        return compiled.read(rows[0]) if rows else None

    async def run(self, statement: Statement[Any], /, **values: Any) -> int:
        compiled = statement.compiled(POSTGRESQL)
        with translated():
            done: str = await self._connection.execute(compiled.sql, *compiled.arguments(values))
        count = int(done.rsplit(" ", 1)[-1])  # "UPDATE 1", "INSERT 0 1"
        self.changed |= count > 0
        return count

    async def many(self, statement: Statement[Any], rows: Sequence[dict[str, Any]], /) -> None:
        compiled = statement.compiled(POSTGRESQL)
        with translated():
            await self._connection.executemany(compiled.sql, [compiled.arguments(values) for values in rows])

    async def notify(self) -> None:
        with translated():
            await self._connection.execute("NOTIFY vpsd_operations")


async def _leave_as_it_is(connection: Any) -> None:
    """Save a round trip for each use: nobody changes a session, listeners are removed, and asyncpg undoes what is open.

    Without this it sends `RESET ALL` and its like whenever a connection is given back.
    """


class PostgresDatabase:
    """A pool of connections, and one that listens for operations to do."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._wakers: list[Callable[[], None]] = []
        self._listener: asyncio.Task[None] | None = None
        self.status = DatabaseStatus()

    @classmethod
    async def connect(cls, url: str) -> "PostgresDatabase":
        """Open a small pool; raises `Misconfigured` when the server does not answer."""
        try:
            with translated(connecting=True):
                # None is kept ready: asyncpg logs a traceback for each of those that it cannot replace.
                pool = await asyncpg.create_pool(
                    url, min_size=0, max_size=16, command_timeout=_COMMAND_SECONDS, reset=_leave_as_it_is
                )
                await pool.release(await pool.acquire())
                return cls(pool)
        except DatabaseUnavailable as error:
            raise Misconfigured(f"the database of VPSD_DATABASE_URL does not answer: {error.reason}") from error

    @asynccontextmanager
    async def _connection(self, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[Any]:
        with translated(connecting=True):
            connection = await self._pool.acquire(timeout=wait_seconds)
        try:
            yield connection
        finally:
            with suppress(DatabaseUnavailable), translated():  # what was done is done: the next one is a new one
                await self._pool.release(connection)

    @asynccontextmanager
    async def read(self, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[Tx]:
        with self.status.noting():
            async with self._connection(wait_seconds) as connection:
                yield _PostgresTx(connection, wait_seconds if wait_seconds < WAIT_SECONDS else None)
        self.status.answered(Evidence.ANSWERED)

    @asynccontextmanager
    async def write(
        self,
        wait_seconds: float = WAIT_SECONDS,
        *,
        together: bool = False,  # noqa: ARG002  # the server does so by itself
    ) -> AsyncIterator[Tx]:
        with self.status.noting(patient=wait_seconds >= WAIT_SECONDS):
            async with self._connection(wait_seconds) as connection, _transaction(connection):
                tx = _PostgresTx(connection)
                yield tx
        self.status.answered(Evidence.CHANGED if tx.changed else Evidence.BEGUN)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        with self.status.noting():
            async with (
                self._connection() as connection,
                _transaction(connection, isolation="repeatable_read", readonly=True),
            ):
                yield _PostgresTx(connection)
        self.status.answered(Evidence.ANSWERED)

    def on_operation(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        # A lost connection is no news: workers poll as well, and the next one listens again.
        while not is_ending():
            with suppress(DatabaseUnavailable), self.status.noting():
                async with self._connection() as connection:
                    lost = asyncio.Event()
                    connection.add_termination_listener(lambda *_, lost=lost: lost.set())
                    with translated():
                        await connection.add_listener("vpsd_operations", self._notified)
                    try:
                        await lost.wait()
                    finally:
                        with translated():
                            await connection.remove_listener("vpsd_operations", self._notified)
            await asyncio.sleep(1)

    def _notified(self, *_: object) -> None:
        for wake in self._wakers:
            wake()

    async def close(self) -> None:
        if self._listener is not None:
            await end_all({self._listener})
        await self._pool.close()


@asynccontextmanager
async def _transaction(connection: Any, **options: Any) -> AsyncIterator[None]:
    """A transaction whose end is told apart: undone, or perhaps done although the server did not say so."""
    transaction = connection.transaction(**options)
    with translated():
        await transaction.start()
    try:
        yield
    except BaseException:
        with suppress(DatabaseUnavailable), translated():  # a server that is away undoes it by itself
            await transaction.rollback()
        raise
    with translated(committing=True):
        await transaction.commit()
