"""Looks after servers that were frozen for a backup and have not been seen to write since."""

import logging

from vpsd.errors import DatabaseUnavailable, VpsdError
from vpsd.flows.freezing import confirm_thawed
from vpsd.operations import service as operations
from vpsd.servers.seen import SeenServer
from vpsd.worker.followers import Looker

log = logging.getLogger(__name__)


class ThawChecker(Looker):
    """Has them thawed as soon as their agents answer."""

    period_seconds = 30.0

    async def look(self) -> None:
        """Look at all of them once; a backup that is under way does so itself."""
        for server_id in sorted(self._noticed):
            async with self._runtime.read() as ctx:
                server = await self._row(ctx, server_id)
                is_busy = await operations.open_operation(ctx, server_id) is not None
            if server is None or server.unthawed_backup_id is None:
                self._noticed.discard(server_id)
                continue
            if is_busy:
                continue
            try:
                await confirm_thawed(self._runtime, server)
            except DatabaseUnavailable:
                raise
            except VpsdError as error:
                log.debug("server %s could not be looked at: %s", server.id, error)

    def _concerns(self, server: SeenServer) -> bool:
        return server.unthawed_backup_id is not None and server.deleted_at_ms is None
