"""Time, passed in wherever it matters, so that tests move it by hand."""

import asyncio
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    """What vpsd knows of time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 in UTC."""

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass."""


class SystemClock:
    """The time of the machine."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class FakeClock:
    """A clock that stands still until somebody sleeps or moves it; sleeping takes no real time."""

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._now_ms += round(seconds * 1000)


def iso_utc(at_ms: int) -> str:
    """Write a time the way the API does: UTC, whole seconds, `Z`."""
    return _iso_second(at_ms // 1000)


@lru_cache(maxsize=4096)  # a list writes the same few times over and over
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_utc_or_none(at_ms: int | None) -> str | None:
    """Like `iso_utc`, for times that may not have come yet."""
    return None if at_ms is None else iso_utc(at_ms)
