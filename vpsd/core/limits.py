"""How often something may happen: so many in a while, refilled steadily, counted in this process.

The generic cell rate algorithm (ITU-T I.371): one number a key, the time at which all that was taken is refilled.
"""

import msgspec

from vpsd.core.clock import Clock

_MOST_KEYS = 50_000  # those that are full again are forgotten before there are more


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
        self._full_at: dict[str, int] = {}

    def take(self, key: str) -> Quota:
        """Count one; where none was left, nothing is counted and `retry_seconds` is above 0."""
        quota = self.look(key)
        if self.limit and not quota.retry_seconds:
            now = self._now()
            if key not in self._full_at and len(self._full_at) >= _MOST_KEYS:
                self._forget(now)
            self._full_at[key] = max(self._full_at.get(key, 0), now) + self._each
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

    def _forget(self, now: int) -> None:
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        if len(self._full_at) >= _MOST_KEYS:
            self._full_at.clear()
