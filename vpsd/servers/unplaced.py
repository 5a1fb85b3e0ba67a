"""Servers that were asked for before there was a host: each gets one as soon as there is one that takes it."""

from sqlalchemy import bindparam, select, update

from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.hosts import service as hosts
from vpsd.operations import service as operations
from vpsd.servers import groups, queries
from vpsd.servers.capacity import find_room, recount
from vpsd.servers.models import servers

_MOST = 100  # at once

_c = servers.c
_UNPLACED = (_c.host_id.is_(None), _c.purged_at_ms.is_(None))
_LIST = Statement(select(_c.id).where(*_UNPLACED).order_by(_c.id).limit(_MOST), into=int)
_GIVE_ALL = Statement(update(servers).where(*_UNPLACED, _c.placement_group_id.is_(None)), ("host_id",))
_GIVE = Statement(update(servers).where(_c.id == bindparam("id")), ("host_id",))


async def list_unplaced(ctx: Ctx) -> list[int]:
    """Some of the servers that have no host; nearly always none."""
    return await ctx.tx.all(_LIST)


async def give_to_local_host(ctx: Ctx) -> None:
    """Have them on this machine's own host, if there is one: an older vpsd, which knew no other, has made them there.

    Those of placement groups are not: no older vpsd had such.
    """
    local = await hosts.local(ctx)
    if local is not None and await ctx.tx.run(_GIVE_ALL, host_id=local.id):
        await recount(ctx, local.id)


async def place(ctx: Ctx, server_id: int) -> None:
    """Have a server on a host that has room for it, and its operation begin anew; raises what `find_room` does."""
    server = await queries.lock(ctx, server_id)
    if server.host_id is not None or server.purged_at_ms is not None:
        return
    ctx = ctx.in_account(server.account_id)
    plan = await catalog.find_plan(ctx, server.plan_id)
    assert plan is not None
    group_id = server.placement_group_id
    apart_from = None if group_id is None else await groups.hosts_of(ctx, group_id)
    host_id = await find_room(ctx, plan, server.location, apart_from or frozenset())
    if host_id is not None:
        await ctx.tx.run(_GIVE, id=server_id, host_id=host_id)
        await operations.take_from_worker(ctx, server_id)
