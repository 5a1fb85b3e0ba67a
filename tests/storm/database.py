"""The database as one process of a storm sees it: away at times, and failing in the middle of a commit."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from vpsd.core.db import WAIT_SECONDS, Row, Statement, Tx
from vpsd.core.outages import DatabaseStatus, Problem
from vpsd.core.sqlite import SqliteDatabase
from vpsd.errors import DatabaseUnavailable, OutcomeUnknown

if TYPE_CHECKING:
    from tests.storm.machine import Machine

_TEXT = "the storm keeps it away"


class _Tx:
    """Statements, with others getting a chance between two of them."""

    def __init__(self, tx: Tx, machine: "Machine") -> None:
        self._tx = tx
        self._machine = machine
        self.notified = False

    async def _point(self) -> None:
        self._machine.require_database()
        if self._machine.chance.random() < 0.1:
            await self._machine.breathe()

    async def all(self, statement: Statement[Row], /, **values: Any) -> list[Row]:
        await self._point()
        return await self._tx.all(statement, **values)

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        await self._point()
        return await self._tx.first(statement, **values)

    async def run(self, statement: Statement[Any], /, **values: Any) -> int:
        await self._point()
        return await self._tx.run(statement, **values)

    async def many(self, statement: Statement[Any], rows: Sequence[dict[str, Any]], /) -> None:
        await self._point()
        await self._tx.many(statement, rows)

    async def notify(self) -> None:
        self.notified = True


class StormyDatabase:
    """A process's own connections to the file that all share."""

    def __init__(self, inner: SqliteDatabase, machine: "Machine") -> None:
        self._inner = inner
        self._machine = machine
        self.status: DatabaseStatus = inner.status
        self.wakers: list[Callable[[], None]] = []

    @asynccontextmanager
    async def read(self, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[Tx]:
        self._machine.require_database()
        async with self._inner.read(wait_seconds) as tx:
            yield _Tx(tx, self._machine)

    @asynccontextmanager
    async def write(self, wait_seconds: float = WAIT_SECONDS, *, together: bool = False) -> AsyncIterator[Tx]:
        machine = self._machine
        machine.require_database()
        is_lost, is_told, has_changed = False, True, False
        async with self._inner.write(wait_seconds, together=together) as inner:
            machine.transactions += 1
            changes = self._inner._writer.total_changes
            try:
                tx = _Tx(inner, machine)
                yield tx
                machine.require_database()
                has_changed = self._inner._writer.total_changes > changes
                if has_changed:
                    await machine.point("COMMIT")
                    is_lost, is_told = machine.commit_fault()
                if is_lost:
                    raise OutcomeUnknown(Problem.UNAVAILABLE, "the storm took it, undone, in the middle of COMMIT")
            finally:
                machine.transactions -= 1
        if tx.notified:
            machine.world.notify()
        if not is_told:
            raise OutcomeUnknown(Problem.UNAVAILABLE, "the storm took it, done, in the middle of COMMIT")
        if has_changed:
            await machine.point("COMMITTED")

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        self._machine.require_database()
        async with self._inner.snapshot() as tx:
            yield tx

    def on_operation(self, wake: Callable[[], None]) -> None:
        self.wakers.append(wake)

    async def close(self) -> None:
        await self._inner.close()


def away() -> DatabaseUnavailable:
    """What everybody meets while there is no database."""
    return DatabaseUnavailable(Problem.UNAVAILABLE, _TEXT)
