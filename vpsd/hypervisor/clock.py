"""How far a host's clock is from ours, as far as the host lets it be seen: no program of ours runs there."""

from typing import Protocol

import msgspec

from vpsd.core.clock import Clock

FAR_SECONDS = 5.0  # beyond it people should hear of it: certificates, logs and guests go by that clock


class HasClock(Protocol):
    """The part of a hypervisor that tells the time."""

    async def clock_ms(self) -> int | None:
        """What the host's clock says now, in milliseconds since 1970; None where that cannot be seen."""


class Difference(msgspec.Struct, frozen=True):
    """How far a host's clock is ahead of ours."""

    seconds: float
    give_or_take_seconds: float  # half of the time that the question took

    @property
    def is_far(self) -> bool:
        """Whether people should hear of it."""
        return abs(self.seconds) - self.give_or_take_seconds > FAR_SECONDS


async def difference(host: HasClock, clock: Clock) -> Difference | None:
    """Ask a host; None where it cannot be seen."""
    before_ms = clock.now_ms()
    there_ms = await host.clock_ms()
    after_ms = clock.now_ms()
    if there_ms is None:
        return None
    return Difference((there_ms - (before_ms + after_ms) / 2) / 1000, (after_ms - before_ms) / 2000)
