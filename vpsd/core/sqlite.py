"""SQLite: one file. Statements run on the event loop's thread: with no hop between threads a read costs microseconds.

What waits, for a lock that another process holds, waits in pauses, in which others go on.

Each commit is synced, and that is what writing costs. So the jobs of a worker have their transactions committed
together: each is a savepoint, whole or undone, and none of them is told that it is done before all of them are synced.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from vpsd.core.db import SQLITE, WAIT_SECONDS, Compiled, Row, Statement, Tx
from vpsd.core.outages import DatabaseStatus, Evidence, Problem, translated
from vpsd.errors import DatabaseUnavailable

_PAUSE_SECONDS = 0.02  # between two tries to begin a transaction
_OPENING_MS = 10_000  # at the start, where nobody else waits
_READING_MS = 50  # a reader is kept waiting only while another process recovers the log of a crashed one


class _SqliteTx:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.notified = False

    def _rows(self, statement: Statement[Any], values: dict[str, Any]) -> tuple[Compiled, list[Any]]:
        compiled = statement.compiled(SQLITE)
        with translated():  # all of them: a RETURNING is carried out as its rows are read
            return compiled, self._connection.execute(compiled.sql, compiled.arguments(values)).fetchall()

    async def all(self, statement: Statement[Row], /, **values: Any) -> list[Row]:
        compiled, rows = self._rows(statement, values)
        return [compiled.read(row) for row in rows]

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        compiled, rows = self._rows(statement, values)
        return compiled.read(rows[0]) if rows else None

    async def run(self, statement: Statement[Any], /, **values: Any) -> int:
        compiled = statement.compiled(SQLITE)
        with translated():
            return self._connection.execute(compiled.sql, compiled.arguments(values)).rowcount

    async def many(self, statement: Statement[Any], rows: Sequence[dict[str, Any]], /) -> None:
        compiled = statement.compiled(SQLITE)
        with translated():
            self._connection.executemany(compiled.sql, [compiled.arguments(values) for values in rows])

    async def notify(self) -> None:
        self.notified = True


class _Group:
    """Transactions that are committed together."""

    def __init__(self) -> None:
        self.members = 0
        self._waiting: list[asyncio.Future[None]] = []

    def wait(self) -> asyncio.Future[None]:
        """Done when all of them are committed; raises what the commit raised."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def end(self, error: BaseException | None) -> None:
        """They are committed, or have failed."""
        for future in self._waiting:
            if future.done():  # whoever waited was cancelled
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


class SqliteDatabase:
    """One file, and one process that serves from it; the operator's commands write beside it."""

    def __init__(
        self,
        path: str,
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pause` waits some seconds of `monotonic` between two tries to begin a transaction."""
        self._path = path
        self._pause, self._monotonic = pause, monotonic
        with translated():
            self._writer = _open(path, _OPENING_MS, 0)
            self._reader = self._writer if path == ":memory:" else _open(path, _OPENING_MS, _READING_MS)
        self._lock = asyncio.Lock()
        self._group: _Group | None = None  # what was begun and is not committed yet
        self._wakers: list[Callable[[], None]] = []
        self.status = DatabaseStatus()

    @asynccontextmanager
    async def read(self, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[Tx]:  # noqa: ARG002  # it never waits
        with self.status.noting():
            yield _SqliteTx(self._reader)
        self.status.answered(Evidence.ANSWERED)

    @asynccontextmanager
    async def write(self, wait_seconds: float = WAIT_SECONDS, *, together: bool = False) -> AsyncIterator[Tx]:
        tx = _SqliteTx(self._writer)
        synced = None
        with self.status.noting(patient=wait_seconds >= WAIT_SECONDS):
            until = self._monotonic() + wait_seconds
            await self._wait_for_others(wait_seconds)
            try:
                if self._group is None:
                    await self._begin(until)
                    self._group = _Group()
                group = self._group
                group.members += 1
                try:
                    changes = self._writer.total_changes
                    with self._savepoint(group, is_alone=not together and group.members == 1):
                        yield tx
                    changes = self._writer.total_changes - changes
                    if together:
                        synced = group.wait()
                    else:
                        self._commit(group)
                finally:
                    if group is self._group:  # all that is ready to write now does so first, in the same group
                        asyncio.get_running_loop().call_soon(self._commit_if_quiet, group, group.members)
            finally:
                self._lock.release()
            if synced is not None:
                await synced
        self.status.answered(Evidence.CHANGED if changes else Evidence.BEGUN)
        if tx.notified:
            for wake in self._wakers:
                wake()

    @contextmanager
    def _savepoint(self, group: "_Group", *, is_alone: bool) -> Iterator[None]:
        """Have what is done in this block undone alone when it raises; who is alone has the transaction for that."""
        if not is_alone:
            with translated():
                self._writer.execute("SAVEPOINT one")
        try:
            yield
            if not is_alone:
                with translated():
                    self._writer.execute("RELEASE one")
        except BaseException:
            with suppress(sqlite3.Error):  # it is undone already where there was no space, or it is closed
                self._writer.execute("ROLLBACK" if is_alone else "ROLLBACK TO one")
            if not self._in_transaction():
                self._end(group, DatabaseUnavailable(Problem.FAILING, "what was written together with it failed"))
            raise

    def _in_transaction(self) -> bool:
        try:
            return self._writer.in_transaction
        except sqlite3.Error:  # it is closed
            return False

    def _commit_if_quiet(self, group: "_Group", members: int) -> None:
        """Commit unless others have joined meanwhile: the last of them has it done."""
        if group is not self._group or group.members != members or self._lock.locked():
            return
        with suppress(Exception):  # whoever waits is told
            self._commit(group)

    def _commit(self, group: "_Group") -> None:
        try:
            with translated(committing=True):
                self._writer.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # it is undone already where there was no space, or it is closed
                self._writer.execute("ROLLBACK")
            self._end(group, error)
            raise
        self._end(group, None)

    def _end(self, group: "_Group", error: BaseException | None) -> None:
        self._group = None
        group.end(error)

    async def _wait_for_others(self, wait_seconds: float) -> None:
        """Until no other task of this process writes."""
        try:
            async with asyncio.timeout(wait_seconds if self._lock.locked() else None):
                await self._lock.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(Problem.LOCKED, f"others have written for {wait_seconds:g} s") from None

    async def _begin(self, until: float) -> None:
        """Begin to write as soon as no other process does."""
        while True:
            try:
                with translated():
                    self._writer.execute("BEGIN IMMEDIATE")
                return
            except DatabaseUnavailable as error:
                if error.problem != Problem.LOCKED or self._monotonic() >= until:
                    raise
            await self._pause(_PAUSE_SECONDS)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        with self.status.noting():
            with translated():  # its own: other readers go on seeing what is new
                connection = _open(self._path, _READING_MS, _READING_MS)
            try:
                with translated():
                    connection.execute("BEGIN")
                yield _SqliteTx(connection)
            finally:
                connection.close()
        self.status.answered(Evidence.ANSWERED)

    def on_operation(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)

    async def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _open(path: str, opening_ms: int, busy_ms: int) -> sqlite3.Connection:
    """Open the file; for `opening_ms` that may wait for a lock, later statements for `busy_ms`."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=512)
    for pragma in (
        f"busy_timeout = {opening_ms}",
        "journal_mode = WAL",
        "synchronous = FULL",  # an answered request survives a power cut
        "foreign_keys = ON",
        "recursive_triggers = ON",  # or a REPLACE would slip past what keeps rows from being deleted
        f"busy_timeout = {busy_ms}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection
