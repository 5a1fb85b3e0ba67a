"""Room on hosts: found, handed out and given back, in the transaction that changes the server.

What is handed out stands in the host's row. Whoever needs some adds to it where that stays within the limit, in one
statement: so two that come at once never share the last room, and those on different hosts do not wait for each other.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
from sqlalchemy import and_, bindparam, func, select, union_all, update

from vpsd.catalog.models import Plan, plans
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.tables import total
from vpsd.errors import Unavailable
from vpsd.hosts import service as hosts
from vpsd.hosts.models import hosts as host_table
from vpsd.hosts.placement import RESOURCES, Reason, Refusal, Room, Wish, lacks, place
from vpsd.lifecycle import Command
from vpsd.operations.models import operations
from vpsd.servers.faults import HostsUnreachable, NoCapacity, NoHostThere, NoOtherHost, RoomTaken, StorageFull
from vpsd.servers.models import servers

_LATEST = 50  # servers of an account that are looked at to spread the next: a million of them would cost too much
_TRIES = 20  # at hosts that others fill at the same moment

_c = servers.c
_PRESENT = _c.purged_at_ms.is_(None)


class _On(msgspec.Struct, frozen=True):
    host_id: int | None


_HOSTS_OF_LATEST = Statement(
    select(_c.host_id)
    .where(_c.account_id == bindparam("account_id"), _c.deleted_at_ms.is_(None))
    .order_by(_c.id.desc())
    .limit(_LATEST),
    into=_On,
)
# What takes room: the servers that are on a host, and those that are on their way to it.
_arriving = servers.join(operations, operations.c.server_id == _c.id)
_ON_ITS_WAY = and_(
    operations.c.command == Command.MIGRATE,
    operations.c.finished_at_ms.is_(None),
    operations.c.argument != _c.host_id,
    _PRESENT,
)
_taking = union_all(
    select(_c.host_id, _c.plan_id).where(_PRESENT, _c.host_id.is_not(None)),
    select(operations.c.argument, _c.plan_id).select_from(_arriving).where(_ON_ITS_WAY),
).subquery()
_on_host = _taking.join(plans, plans.c.id == _taking.c.plan_id)
_SUMS = {
    "used_servers": func.count(),
    **{f"used_{name}": total(plans.c[name]) for name in RESOURCES},
}
_LOCK = Statement(select(host_table.c.id).where(host_table.c.id == bindparam("host_id")).with_for_update(), into=int)
_RECOUNT = Statement(
    update(host_table)
    .where(host_table.c.id == bindparam("host_id"))
    .values(
        {
            name: select(value).select_from(_on_host).where(_taking.c.host_id == bindparam("host_id")).scalar_subquery()
            for name, value in _SUMS.items()
        }
    )
)
_COUNTED = Statement(
    select(_taking.c.host_id.label("id"), *(value.label(name) for name, value in _SUMS.items()))
    .select_from(_on_host)
    .group_by(_taking.c.host_id),
    into=hosts.Used,
)


async def find_room(
    ctx: Ctx,
    plan: Plan,
    location: str,
    apart_from: frozenset[int] = frozenset(),
    *,
    shared_pool: str | None = None,
    leaving: int | None = None,
) -> int | None:
    """Have room for another server of a plan; the id of the host that has it now, None before the first worker.

    `shared_pool`: only at hosts of that pool. `leaving`: the host that it leaves in the same transaction; both are
    locked then, in the order that all keep.

    Raises `NoCapacity` or `NoHostThere` where waiting does not help; `StorageFull`, `HostsUnreachable` or `RoomTaken`
    where it does.
    """
    for _ in range(_TRIES if leaving is None else 1):  # another host might be out of order
        few = await hosts.emptiest(ctx, location)
        wish = Wish(plan, location, await _own(ctx) if len(few) > 1 else {}, apart_from)
        found = place(_in_pool(few, shared_pool), wish, ctx.settings)
        if not isinstance(found, Room):
            rooms = await hosts.rooms(ctx)  # the few may be full while others are not, and each has its reason
            if not rooms and not await hosts.had_any(ctx):
                return None
            found = place(_in_pool(rooms, shared_pool), wish, ctx.settings)
        if not isinstance(found, Room):
            raise refused(found, plan, location)
        if leaving is not None:
            await hosts.lock(ctx, leaving, found.id, found.shared_pool)
        if await _take(ctx, found, plan, None):
            return found.id
    raise RoomTaken


def _in_pool(rooms: list[Room], shared_pool: str | None) -> list[Room]:
    return rooms if shared_pool is None else [room for room in rooms if room.shared_pool == shared_pool]


async def find_room_elsewhere(
    ctx: Ctx, plan: Plan, location: str, apart_from: frozenset[int], may_be: Callable[[Room], bool]
) -> Room:
    """Have room for a server of the account, which has it at a host already, at another one of those that may be.

    Raises `NoOtherHost` or `RoomTaken`.
    """
    for _ in range(_TRIES):
        rooms = [room for room in await hosts.rooms(ctx) if may_be(room)]
        found = place(rooms, Wish(plan, location, await _own(ctx), apart_from), ctx.settings)
        if not isinstance(found, Room):
            raise NoOtherHost(found)
        if await _take(ctx, found, plan, None):
            return found
    raise RoomTaken


async def change_room(ctx: Ctx, host_id: int | None, plan: Plan, instead_of: Plan) -> None:
    """Have room for a server's other plan at its host; raises `NoCapacity` or `StorageFull`."""
    if host_id is None:
        return
    room = await hosts.room(ctx, host_id)
    wish = Wish(plan, instead_of=instead_of)
    lacking = lacks(room, wish, ctx.settings)
    if room.is_storage_full(ctx.settings) and plan.storage_gb > instead_of.storage_gb:
        raise StorageFull
    if lacking:
        raise NoCapacity(plan.name, lacking)
    if not await _take(ctx, room, plan, instead_of):
        raise NoCapacity(plan.name, lacks(await hosts.room(ctx, host_id), wish, ctx.settings))


async def give_back(ctx: Ctx, host_id: int, plan: Plan) -> None:
    """A server of that plan is not on the host any more."""
    await hosts.change_used(ctx, host_id, hosts.Resources(), _sizes(plan), servers=-1)


async def recount(ctx: Ctx, host_id: int) -> None:
    """Have what is handed out be what the servers on the host sum up to."""
    await ctx.tx.first(_LOCK, host_id=host_id)  # whoever takes some now is waited for, and counted
    await ctx.tx.run(_RECOUNT, host_id=host_id)


async def counted(ctx: Ctx) -> dict[int, hosts.Used]:
    """What the servers on each host sum up to."""
    return {used.id: used for used in await ctx.tx.all(_COUNTED)}


async def _own(ctx: Ctx) -> Mapping[int, int]:
    found = await ctx.tx.all(_HOSTS_OF_LATEST, account_id=ctx.account_id)
    return Counter(one.host_id for one in found if one.host_id is not None)


async def _take(ctx: Ctx, room: Room, plan: Plan, instead_of: Plan | None) -> bool:
    back = hosts.Resources() if instead_of is None else _sizes(instead_of)
    more = 1 if instead_of is None else 0
    limits = room.limits(ctx.settings)
    return await hosts.change_used(
        ctx, room.id, _sizes(plan), back, servers=more, limits=limits, shared_pool=room.shared_pool
    )


def _sizes(plan: Plan) -> hosts.Resources:
    return hosts.Resources(plan.vcpus, plan.memory_mb, plan.storage_gb)


def refused(refusals: Sequence[Refusal], plan: Plan, location: str | None) -> Unavailable:
    """What a customer is told where no host takes a server; what waiting helps against comes first."""
    by_reason: dict[Reason, list[Refusal]] = {}
    for refusal in refusals:
        by_reason.setdefault(refusal.reason, []).append(refusal)
    if Reason.STORAGE_FULL in by_reason:
        return StorageFull()
    if Reason.UNREACHABLE in by_reason:
        return HostsUnreachable()
    if Reason.TOO_LITTLE in by_reason:
        least = min(by_reason[Reason.TOO_LITTLE], key=lambda refusal: len(refusal.lacking))
        return NoCapacity(plan.name, list(least.lacking))
    return NoHostThere(location or "", is_apart=Reason.APART in by_reason)
