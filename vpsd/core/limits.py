"""How often something may happen: so many in a while, refilled steadily, counted in this process.

The generic cell rate algorithm (ITU-T I.371): one number a key, the time at which all that was taken is refilled.
"""

from collections import OrderedDict

import msgspec

from vpsd.core.clock import Clock

MOST_KEYS = 50_000  # beyond, the one that did not ask for longest is forgotten


class Quota(msgspec.Struct, frozen=True):
    """What is left: `reset_seconds` until all is refilled, `retry_seconds` until one more is let through."""

    limit: int
    remaining: int
    reset_seconds: int
    retry_seconds: int


class Limiter:
    """`limit` in `window_seconds` for each key; a limit of 0 is none."""

    def __init__(self, clock: Clock, limit: int, window_seconds: int = 60) -> None:
        self.limit = limit
        self.window_seconds = window_seconds
        self._clock = clock
        self._each = window_seconds * 1000
        # By key, when all is refilled: in whole 1/limit milliseconds, of which each one takes as many as the window has
        # milliseconds. Fractions would not add up.
        self._full_at: OrderedDict[str, int] = OrderedDict()

    def take(self, key: str) -> Quota:
        """Count one; where none was left, nothing is counted and `retry_seconds` is above 0."""
        quota = self.look(key)
        if quota.retry_seconds:
            self._full_at.move_to_end(key)  # who goes on asking is not forgotten
        elif self.limit:
            now = self._now()
            self._full_at[key] = max(self._full_at.get(key, 0), now) + self._each
            self._full_at.move_to_end(key)
            if len(self._full_at) > MOST_KEYS:
                self._full_at.popitem(last=False)
            return self.look(key, taken=True)
        return quota

    def look(self, key: str, *, taken: bool = False) -> Quota:
        """What is left for a key, counting nothing."""
        if not self.limit:
            return Quota(0, 0, 0, 0)
        window = self._each * self.limit
        owed = max(0, self._full_at.get(key, 0) - self._now())
        remaining = (window - owed) // self._each
        retry_seconds = 0 if taken or remaining else self._seconds(owed + self._each - window)
        return Quota(self.limit, remaining, self._seconds(owed), retry_seconds)

    def _now(self) -> int:
        return round(self._clock.monotonic() * 1000) * self.limit

    def _seconds(self, part: int) -> int:
        return -(-part // (1000 * self.limit))
