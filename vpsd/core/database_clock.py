"""The time of a database that machines share, so that leases and due times mean the same to all of them.

Between two looks at it time passes by this process's monotonic clock: what a machine's own is set to says nothing.
"""

from sqlalchemy import BigInteger, cast, extract, func, select

from vpsd.core.clock import Clock
from vpsd.core.db import Database, Statement

PERIOD_SECONDS = 2.0  # between two looks: often, as a machine that slept goes on with the time at which it fell asleep
_LONGEST_SECONDS = 1.0  # an answer that took longer says too little of now

_NOW = Statement(select(cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)), into=int)


class DatabaseClock:
    """A clock that shows what the database's does, to some milliseconds."""

    def __init__(self, own: Clock, database: Database) -> None:
        self._own = own
        self._database = database
        self._offset_ms = own.now_ms() - round(own.monotonic() * 1000)

    def now_ms(self) -> int:
        return self._offset_ms + round(self._own.monotonic() * 1000)

    def monotonic(self) -> float:
        return self._own.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._own.sleep(seconds)

    async def set_right(self) -> None:
        """Ask the database what time it is."""
        async with self._database.read() as tx:
            asked = self._own.monotonic()
            now_ms = await tx.first(_NOW)
            took = self._own.monotonic() - asked
        if now_ms is None or took > _LONGEST_SECONDS:
            return
        offset_ms = now_ms - round((asked + took / 2) * 1000)
        if abs(offset_ms - self._offset_ms) > took * 1000:  # less may be the way there and back
            self._offset_ms = offset_ms
