"""Deletes events that are older than the operator wants to keep them."""

import logging

from vpsd.core.clock import every
from vpsd.core.context import SYSTEM
from vpsd.core.units import HOUR_MS
from vpsd.events.retention import prune
from vpsd.runtime import Runtime

log = logging.getLogger(__name__)

_PERIOD_SECONDS = HOUR_MS / 1000


class EventPruner:
    """Looks now and then; without the setting it does nothing."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.prune)

    async def prune(self) -> None:
        """Delete what is too old."""
        self._runtime.jumps.look()
        days = self._runtime.settings.events_keep_days
        if days is None or self._runtime.jumps.unsettled:  # by a clock that was just set nothing is deleted
            return
        if deleted := await prune(self._runtime, days, SYSTEM):
            log.info("deleted %s events that were older than %s days", deleted, days)
