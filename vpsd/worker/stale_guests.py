"""Guests of servers that are elsewhere by now: their power is cut, before they run beside the new ones.

They are found where a host that was given up comes back: its servers were started elsewhere meanwhile.
"""

import logging
from collections.abc import Iterable

from vpsd.core.context import Ctx
from vpsd.events import service as events
from vpsd.hypervisor.names import server_id_of
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import Guest, PowerState
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers.models import Server

log = logging.getLogger(__name__)


async def end_stale(runtime: HostRuntime, guests: Iterable[Guest]) -> None:
    """Cut the power of those of a host's guests whose servers were brought up elsewhere."""
    for guest in guests:
        if guest.power not in (PowerState.RUNNING, PowerState.PAUSED):
            continue
        async with runtime.read() as ctx:
            server = await _left(ctx, runtime.host_id, guest)
        if server is None:
            continue
        log.error("server %s: a guest of it runs here, and it is on another host: its power is cut", server.id)
        await runtime.hypervisor.held_by(Owner(uuid=server.uuid)).power_off(guest.name)
        async with runtime.write() as ctx:
            text = "a guest of it that was left on its former host was powered off"
            await events.record(ctx.in_account(server.account_id), "server.stale_guest", "server", server.id, text)


async def _left(ctx: Ctx, host_id: int, guest: Guest) -> Server | None:
    """The server, if it has left this host for another one.

    That it is on another one is not enough: the same machine may have been added under two addresses.
    """
    server = await servers.find_row(ctx, server_id_of(guest.name))
    if server is None or server.uuid != guest.uuid or server.purged_at_ms is not None:
        return None
    return server if server.previous_host_id == host_id != server.host_id else None
