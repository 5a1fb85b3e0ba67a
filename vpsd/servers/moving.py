"""Servers that are moved between hosts: asked for by the operator, never by a customer, who sees a note meanwhile."""

import msgspec

from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.core.faults import Faults
from vpsd.errors import NotFound
from vpsd.events import service as events
from vpsd.hosts import service as hosts
from vpsd.hosts.placement import Room
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.servers import groups, queries, updates
from vpsd.servers.capacity import find_room_elsewhere
from vpsd.servers.commands import Accepted, check_status
from vpsd.servers.faults import HostNotKnown, SameHost, UnknownHost
from vpsd.servers.models import LockedServer

NO_ADDRESS = (
    "It runs, and has no address that it can be reached at: the ports of its host lead to it from that host alone."
)
MOVING = "It is being moved to another machine, or waits for that. Until it is there, commands have to wait."
MOVING_OFF = "It is being moved to another machine, and is off meanwhile. It is started again there."
_NOTES = (MOVING, MOVING_OFF, NO_ADDRESS)


class Move(msgspec.Struct, frozen=True):
    """A move that was accepted."""

    accepted: Accepted
    account_id: int
    from_host: str
    to_host: str


async def migrate(ctx: Ctx, server_id: int, host: str | None, faults: Faults, *, cold: bool) -> Move:
    """Have a server of any account moved to another host: the named one, or one that is chosen.

    What runs moves while it runs; where that cannot be it is stopped for it only if `cold` allows that. It has room at
    the other host from now on. Raises `NotFound`, `Invalid`, `WrongStatus`, `Busy`, `NoOtherHost`, or `HostNotKnown`.
    """
    found = await queries.find_row(ctx, server_id)
    if found is None or found.deleted_at_ms is not None:
        raise NotFound("server", server_id)
    server = await queries.lock(ctx, server_id)
    check_status(server, Command.MIGRATE)
    if server.host_id is None:
        raise HostNotKnown
    source = await hosts.row(ctx, server.host_id)
    await _check_host(ctx, host, source.name, faults)
    owner = ctx.in_account(server.account_id)
    to = await _find_room(owner, server, host)
    operation = await operations.add(owner, server.id, Command.MIGRATE, to.id, host_id=source.id, allows_cold=cold)
    if server.status_detail in (None, NO_ADDRESS):
        await updates.set_status_detail(owner, server.id, MOVING)
    await events.record(owner, "server.migrate", "server", server.id, "to another host")
    if ctx.account_id not in (0, server.account_id):  # what its customer does not read
        await events.record(ctx, "server.migrate", "server", server.id, f"from {source.name} to {to.name}")
    rule = RULES[Command.MIGRATE]
    accepted = Accepted(
        server_id=server.id,
        name=server.name,
        status=Status(server.status),
        message=rule.message,
        operation=operation,
    )
    return Move(accepted, server.account_id, source.name, to.name)


async def _check_host(ctx: Ctx, host: str | None, source: str, faults: Faults) -> None:
    if host is not None and await hosts.find_by_name(ctx, host) is None:
        faults.add("host", UnknownHost(host, [one.name for one in await hosts.list_hosts(ctx)]))
    elif host == source:
        faults.add("host", SameHost(source))
    faults.check()


async def _find_room(ctx: Ctx, server: LockedServer, host: str | None) -> Room:
    plan = await catalog.find_plan(ctx, server.plan_id)
    assert plan is not None
    apart_from: frozenset[int] | None = None
    if server.placement_group_id is not None:
        apart_from = await groups.hosts_of(ctx, server.placement_group_id)

    def may_be(room: Room) -> bool:
        return room.id != server.host_id and host in (None, room.name)

    return await find_room_elsewhere(ctx, plan, server.location, apart_from or frozenset(), may_be)


async def record_end(ctx: Ctx, operation: Operation, error: str | None) -> None:  # noqa: ARG001
    """A move has ended: a host that the server did not come to has its room again, and the note is taken off."""
    server = await queries.lock(ctx, operation.server_id)
    assert operation.argument is not None
    if server.host_id != operation.argument:
        await updates.give_back_room(ctx, operation.argument, server.plan_id)
    if server.status_detail in _NOTES:
        is_silent = server.status == Status.ACTIVE and server.ip_address is None
        await updates.set_status_detail(ctx, server.id, NO_ADDRESS if is_silent else None)
