"""Notices when the time was set, or the machine slept: the time and what passes steadily part.

While that is fresh, nothing that goes by the time alone is charged, suspended or deleted: a clock that was wrong for a
few minutes costs nobody anything.
"""

import asyncio
import logging

import msgspec

from vpsd.core.clock import Clock
from vpsd.core.units import SECOND_MS

log = logging.getLogger(__name__)

_LEAST_MS = 5 * SECOND_MS  # less moves no lease past its end, as each is renewed long before
_UNSETTLED_SECONDS = 15 * 60
_TOLD_SECONDS = 60 * 60


class Jump(msgspec.Struct, frozen=True):
    """How far the time was set forward, or back (negative), and what it would be without that."""

    seconds: int
    before_ms: int


class ClockJumps:
    """What one process knows of them; kept by whoever looks."""

    def __init__(self, clock: Clock) -> None:
        self.lock = asyncio.Lock()  # of whoever sets right what is stored
        self._clock = clock
        self._offset_ms = self._measure()
        self._owed_ms = 0  # jumps after which nothing was set right yet
        self._doubted_at: float | None = None
        self._last: tuple[float, int] | None = None  # when, by what passes steadily, and how many seconds

    def _measure(self) -> int:
        return self._clock.now_ms() - round(self._clock.monotonic() * 1000)

    def look(self) -> Jump | None:
        """Notice and log a jump; what is stored has to be set right while the answer is one."""
        offset_ms = self._measure()
        jumped_ms, self._offset_ms = offset_ms - self._offset_ms, offset_ms
        if abs(jumped_ms) >= _LEAST_MS:
            self._owed_ms += jumped_ms
            self.tell(round(jumped_ms / 1000))
        if not self._owed_ms:
            return None
        return Jump(round(self._owed_ms / 1000), self._clock.now_ms() - self._owed_ms)

    def before_ms(self) -> int:
        """The time without what nobody has set right yet: stored times go by it until somebody looks."""
        return self._offset_ms - self._owed_ms + round(self._clock.monotonic() * 1000)

    def tell(self, seconds: int) -> None:
        """Log a jump, and tell of it for an hour."""
        self._last = (self._clock.monotonic(), seconds)
        what = f"{seconds} s forward, or the machine slept" if seconds > 0 else f"{-seconds} s back"
        log.warning(
            "the clock was set %s: what is under way gets its time anew, and for %s minutes nothing is charged, "
            "suspended or deleted by the clock",
            what,
            _UNSETTLED_SECONDS // 60,
        )

    def set_right(self) -> None:
        """What is stored was set right after the jump that `look` told of."""
        self._owed_ms = 0

    def doubt(self) -> None:
        """The clock may be ahead, for all that a start can tell: for a while nothing final is done, nor told."""
        self._doubted_at = self._clock.monotonic()

    def within(self, seconds: float) -> bool:
        """Whether the last jump was noticed less than so many seconds ago."""
        return self._last is not None and self._clock.monotonic() - self._last[0] < seconds

    @property
    def unsettled(self) -> bool:
        """Whether the time may turn out to be wrong: nothing final is done by it."""
        doubted = self._doubted_at is not None and self._clock.monotonic() - self._doubted_at < _UNSETTLED_SECONDS
        return doubted or self.within(_UNSETTLED_SECONDS)

    @property
    def told_seconds(self) -> int | None:
        """How far the clock was set within the last hour, if it was."""
        return self._last[1] if self._last is not None and self.within(_TOLD_SECONDS) else None
