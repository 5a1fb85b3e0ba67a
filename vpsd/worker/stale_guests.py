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
from vpsd.operations import service as operations
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers.models import Server

log = logging.getLogger(__name__)


async def end_stale(runtime: HostRuntime, guests: Iterable[Guest]) -> None:
    """Cut the power of those of a host's guests whose servers' rows say, at rest, that they are on another host."""
    for guest in guests:
        if guest.power not in (PowerState.RUNNING, PowerState.PAUSED):
            continue
        async with runtime.read() as ctx:
            server = await _elsewhere(ctx, runtime.host_id, guest)
        if server is None:
            continue
        log.error("server %s: a guest of it runs here, and it is on another host: its power is cut", server.id)
        await runtime.hypervisor.held_by(Owner(uuid=server.uuid)).power_off(guest.name)
        async with runtime.write() as ctx:
            text = "a guest of it that was left on its former host was powered off"
            await events.record(ctx.in_account(server.account_id), "server.stale_guest", "server", server.id, text)


async def _elsewhere(ctx: Ctx, host_id: int, guest: Guest) -> Server | None:
    """The server, if it is on another host and nothing is under way that may bring it here."""
    server = await servers.find_row(ctx, server_id_of(guest.name))
    if server is None or server.uuid != guest.uuid or server.host_id in (None, host_id):
        return None
    if server.purged_at_ms is not None or await operations.open_operation(ctx, server.id) is not None:
        return None
    return server
