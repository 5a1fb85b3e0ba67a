"""Looks again at guests that were silent when their boot was given its time, until they are seen to be up."""

import logging

from vpsd.core.clock import every
from vpsd.errors import Unavailable, Unusable
from vpsd.flows.boot import is_boot_note
from vpsd.hypervisor.protocol import guest_name
from vpsd.lifecycle import Status
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.models import ServerRow

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 15.0  # less than a probe of ports is kept for


class BootWatcher:
    """Takes what was said of a boot back, once it is over."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.look)

    async def look(self) -> None:
        """Look once at every server with such a note."""
        async with self._runtime.read() as ctx:
            noted = [server for server in await servers.present(ctx, self._runtime.host_id) if _is_silent(server)]
        for server in noted:
            try:
                if await self._is_up(server.id):
                    await self._forget(server)
            except (Unavailable, Unusable) as error:
                log.debug("server %s could not be looked at: %s", server.id, error)

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


def _is_silent(server: ServerRow) -> bool:
    return server.status == Status.ACTIVE and is_boot_note(server.status_detail)
