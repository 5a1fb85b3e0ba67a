"""Time, passed in wherever it matters, so that tests can control it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

from vpsd.core.ending import is_ending
from vpsd.errors import DatabaseUnavailable, Unavailable

log = logging.getLogger(__name__)


class Clock(Protocol):
    """A source of time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 in UTC: for what is stored, or told. Somebody may set it at any moment."""

    def monotonic(self) -> float:
        """Seconds since some moment, which pass steadily: for how long something takes or lasts in this process."""

    async def sleep(self, seconds: float) -> None:
        """Wait that long, by `monotonic`."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        # It stands still while the machine sleeps (CLOCK_BOOTTIME would not): so do the guests that are waited for, and
        # the event loop's own timers. That other machines went on meanwhile shows in the time, as a jump.
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class FakeClock:
    """A clock that only moves when it is advanced or slept on; sleeping takes no real time."""

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = now_ms
        self._passed_ms = 5_000_000

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._passed_ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._passed_ms += round(seconds * 1000)
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        """Set the time forward, or back, while none passes."""
        self._now_ms += round(seconds * 1000)


def lies_ahead(at_ms: int, now_ms: int, most_ms: int) -> bool:
    """Whether a stored time is still to come, at most so far ahead: what is further was written by a wrong clock."""
    return now_ms < at_ms <= now_ms + most_ms


async def every(
    clock: Clock,
    seconds: float | Callable[[], float],
    work: Callable[[], Awaitable[object]],
    *,
    wake: asyncio.Event | None = None,
) -> None:
    """Repeat some work with pauses of `seconds` until told to end; `wake` ends a pause as soon as it is set.

    A function is asked for the seconds after each time.

    Failures are logged, and do not end the loop. A host that stays unavailable is logged once;
    a database says so itself, once for everybody (`vpsd.core.outages`).
    """
    unavailable = False
    while not is_ending():
        if wake is not None:
            wake.clear()
        try:
            await work()
            unavailable = False
        except DatabaseUnavailable as error:
            log.debug("%s has to wait: %s", work.__qualname__, error.reason)
        except Unavailable as error:
            if not unavailable:
                log.warning("%s has to wait: %s", work.__qualname__, error)
            unavailable = True
        except Exception:
            log.exception("%s failed; it is tried again in %s s", work.__qualname__, _seconds(seconds))
        await _pause(clock, _seconds(seconds), wake)


def _seconds(seconds: float | Callable[[], float]) -> float:
    return seconds() if callable(seconds) else seconds


async def _pause(clock: Clock, seconds: float, wake: asyncio.Event | None) -> None:
    waiting: set[asyncio.Future[Any]] = {asyncio.ensure_future(clock.sleep(seconds))}
    if wake is not None:
        waiting.add(asyncio.ensure_future(wake.wait()))
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def iso_utc(at_ms: int) -> str:
    """Write a time the way the API does: UTC, whole seconds, `Z`."""
    return _iso_second(at_ms // 1000)


@lru_cache(maxsize=4096)  # lists repeat the same few times
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def month_name(at_ms: int) -> str:
    """The month of a time, in UTC: 2026-11."""
    return iso_utc(at_ms)[:7]


def iso_utc_or_none(at_ms: int | None) -> str | None:
    """Like `iso_utc`, for times that may be unset."""
    return None if at_ms is None else iso_utc(at_ms)
