"""Looks after servers that were frozen for a backup and have not been seen to write since."""

import logging

from vpsd.core.clock import every
from vpsd.errors import DatabaseUnavailable, VpsdError
from vpsd.flows.freezing import confirm_thawed
from vpsd.operations import service as operations
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 30.0


class ThawChecker:
    """Has them thawed as soon as their agents answer."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.check)

    async def check(self) -> None:
        """Look at all of them once; a backup that is under way does so itself."""
        async with self._runtime.read() as ctx:
            present = await servers.present(ctx, self._runtime.host_id)
            busy = await operations.busy_servers(ctx)
        for server in present:
            if server.unthawed_backup_id is None or server.deleted_at_ms is not None or server.id in busy:
                continue
            try:
                await confirm_thawed(self._runtime, server)
            except DatabaseUnavailable:
                raise
            except VpsdError as error:
                log.debug("server %s could not be looked at: %s", server.id, error)
