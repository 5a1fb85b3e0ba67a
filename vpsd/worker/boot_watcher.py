"""Looks again at guests that were silent when their boot was given its time, until they are seen to be up."""

import logging

from vpsd.errors import Unavailable, Unusable
from vpsd.flows.boot import is_boot_note
from vpsd.hypervisor.protocol import guest_name
from vpsd.lifecycle import Status
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.models import ServerRow
from vpsd.servers.seen import SeenServer
from vpsd.worker.followers import Looker

log = logging.getLogger(__name__)


class BootWatcher(Looker):
    """Takes what was said of a boot back, once it is over."""

    period_seconds = 15.0  # less than a probe of ports is kept for

    async def look(self) -> None:
        for server_id in sorted(self._noticed):
            async with self._runtime.read() as ctx:
                server = await self._row(ctx, server_id)
            if server is None or not _is_silent(server):
                self._noticed.discard(server_id)
                continue
            try:
                if await self._is_up(server.id):
                    await self._forget(server)
            except (Unavailable, Unusable) as error:
                log.debug("server %s could not be looked at: %s", server.id, error)

    def _concerns(self, server: SeenServer) -> bool:
        return _is_silent(server)

    async def _is_up(self, server_id: int) -> bool:
        hypervisor, name = self._runtime.hypervisor, guest_name(self._runtime.instance, server_id)
        return await hypervisor.is_up(name) or (await hypervisor.boot_signs(name)).is_up

    async def _forget(self, seen: ServerRow) -> None:
        async with self._runtime.write() as ctx:
            server = await servers.lock(ctx, seen.id)
            unchanged = (server.status_detail, server.updated_at_ms) == (seen.status_detail, seen.updated_at_ms)
            if unchanged:
                log.info("server %s: its guest is up after all", server.id)
                await updates.set_status_detail(ctx, server.id, None)


def _is_silent(server: ServerRow | SeenServer) -> bool:
    return server.status == Status.ACTIVE and is_boot_note(server.status_detail)
