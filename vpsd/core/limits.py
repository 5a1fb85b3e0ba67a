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
        self._full_at_ms: dict[str, float] = {}

    def take(self, key: str) -> Quota:
        """Count one; where none was left, nothing is counted and `retry_seconds` is above 0."""
        quota = self.look(key)
        if self.limit and not quota.retry_seconds:
            now = self._clock.now_ms()
            if key not in self._full_at_ms and len(self._full_at_ms) >= _MOST_KEYS:
                self._forget(now)
            self._full_at_ms[key] = max(self._full_at_ms.get(key, 0), now) + self._each_ms
            return self.look(key, taken=True)
        return quota

    def look(self, key: str, *, taken: bool = False) -> Quota:
        """What is left for a key, counting nothing."""
        if not self.limit:
            return Quota(0, 0, 0, 0)
        window_ms = self.window_seconds * 1000.0
        # Never more than the window: a clock that was set back must not owe for hours.
        owed_ms = min(window_ms, max(0.0, self._full_at_ms.get(key, 0) - self._clock.now_ms()))
        remaining = int((window_ms - owed_ms) / self._each_ms + 1e-6)
        short_ms = owed_ms + self._each_ms - window_ms
        retry_seconds = 0 if taken or remaining else max(1, -int(-short_ms // 1000))
        return Quota(self.limit, remaining, -int(-owed_ms // 1000), retry_seconds)

    @property
    def _each_ms(self) -> float:
        return self.window_seconds * 1000 / self.limit

    def _forget(self, now_ms: int) -> None:
        self._full_at_ms = {key: at for key, at in self._full_at_ms.items() if at > now_ms}
        if len(self._full_at_ms) >= _MOST_KEYS:
            self._full_at_ms.clear()
