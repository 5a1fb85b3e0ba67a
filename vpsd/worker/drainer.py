"""Moves the servers of a host away that is drained, a few at a time.

That it is drained stands in its row: so it goes on whoever asked for it, and whichever worker looks after the host.
"""

import logging

from vpsd.core.clock import every
from vpsd.core.context import OPERATOR
from vpsd.core.faults import Faults
from vpsd.errors import DatabaseUnavailable, VpsdError
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostHealth
from vpsd.runtime import HostRuntime
from vpsd.servers import draining, moving

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 2.0
_IDLE_SECONDS = 10.0  # between two looks whether it is drained by now
_AGAIN_SECONDS = 60.0  # until a server is tried again for which there was no room anywhere


class Drainer:
    """Looks whether the host is drained, and asks for its next moves."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime
        self._pause_seconds = _IDLE_SECONDS
        self._not_before: dict[int, float] = {}  # by server, when it is tried again

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, lambda: self._pause_seconds, self.look)

    async def look(self) -> None:
        """Have as many servers on their way as may be at once."""
        now = self._runtime.clock.monotonic()
        async with self._runtime.read(OPERATOR) as ctx:
            host = await hosts.row(ctx, self._runtime.host_id)
            if host.draining_since_ms is None or host.health == HostHealth.UNREACHABLE:
                self._not_before.clear()
                self._pause_seconds = _IDLE_SECONDS
                return
            self._pause_seconds = _PERIOD_SECONDS
            places, waiting = await draining.next_to_go(ctx, host)
        for server_id in waiting:
            if places and self._not_before.get(server_id, now) <= now:
                places -= await self._ask(server_id, cold=host.drains_cold)

    async def _ask(self, server_id: int, *, cold: bool) -> bool:
        try:
            async with self._runtime.write(OPERATOR) as ctx:
                await moving.migrate(ctx, server_id, None, Faults(), cold=cold)
        except DatabaseUnavailable:
            raise
        except VpsdError as error:
            self._not_before[server_id] = self._runtime.clock.monotonic() + _AGAIN_SECONDS
            log.info("server %s stays for now: %s", server_id, error)
            return False
        return True
