"""Servers of a host that is off, brought up elsewhere: on their own disks where another host sees these, in a pool that
both share, so that nothing is lost; else from their latest backups.

Only the operator can know that a host is off, and not just out of reach: two guests of one server would both write, and
answer, as that server. When it comes back, `worker.stale_guests` cuts the power of what it still runs of them.
"""

import msgspec
from sqlalchemy import bindparam, select

from vpsd.backups.models import Backup, BackupStatus, backups
from vpsd.catalog import service as catalog
from vpsd.core.clock import iso_utc
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.errors import Unavailable
from vpsd.events import service as events
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostHealth, HostState
from vpsd.lifecycle import Command, Status
from vpsd.operations import service as operations
from vpsd.servers import commands, groups, updates
from vpsd.servers import queries as servers
from vpsd.servers.capacity import find_room, give_back

_b = backups.c
_LATEST = Statement(
    select(backups)
    .where(_b.server_id == bindparam("server_id"), _b.status == BackupStatus.COMPLETED, _b.deleted_at_ms.is_(None))
    .order_by(_b.created_at_ms.desc(), _b.id.desc())
    .limit(1),
    into=Backup,
)


class Evacuated(msgspec.Struct, frozen=True):
    """What became of a server of a host that is off."""

    server_id: int
    name: str
    status: str
    to: str | None = None  # the name of the host that it is on now; None: it stays
    shared_pool: str | None = None  # in which its disk is, as it was
    backup_id: int | None = None  # that it is made from; None: its disk is there, or it never had one
    backup_made_at_ms: int | None = None
    why: str | None = None  # it stays


async def evacuate(ctx: Ctx, server_id: int, host: Host) -> Evacuated:
    """Have a server of a host that is off on another one, and start there what ran.

    Where a host that is alive shares the pool, on its disk; otherwise made from its latest backup, and what has come
    since is lost. One for which there is neither stays, and comes back with its host.
    """
    server = await servers.lock(ctx, server_id)
    ctx = ctx.in_account(server.account_id)

    def stays(why: str) -> Evacuated:
        return Evacuated(server.id, server.name, server.status, why=why)

    if server.host_id != host.id:
        return stays("it is not on that host any more")
    if server.deleted_at_ms is not None:
        return stays("it is deleted, and what is left of it goes when the host is back")
    under_way = await operations.open_operation(ctx, server.id)
    if under_way is not None and under_way.command == Command.MIGRATE:
        return stays("it is being moved: evacuate the host again when that has come to its end")
    backup: Backup | None = None
    shared_pool = await _living_pool(ctx, host) if server.provisioned_at_ms is not None else None
    if server.provisioned_at_ms is not None and shared_pool is None:
        backup = await ctx.tx.first(_LATEST, server_id=server.id)
        if backup is None:
            return stays("it has no backup")
    plan = await catalog.find_plan(ctx, server.plan_id)
    assert plan is not None
    apart_from: frozenset[int] | None = None
    if server.placement_group_id is not None:
        apart_from = await groups.hosts_of(ctx, server.placement_group_id)
    try:
        apart = apart_from or frozenset()
        to = await find_room(ctx, plan, server.location, apart, shared_pool=shared_pool, leaving=host.id)
    except Unavailable as error:
        where = "" if shared_pool is None else f"its disk is safe in the pool {shared_pool}, but at the other hosts: "
        return stays(f"{where}{error}")
    assert to is not None
    await give_back(ctx, host.id, plan)
    await operations.take_from_worker(ctx, server.id)  # it may still have a job at the host that is off
    there = (await hosts.row(ctx, to)).name
    if shared_pool is not None:
        await updates.set_on_other_host(ctx, server, to)
        told = "brought up elsewhere, on its own disk"
    else:
        await updates.set_evacuated(ctx, server, to, None if backup is None else backup.id)
        told = f"made elsewhere{'' if backup is None else f' from the {_name(backup)}'}"
    await events.record(ctx, "server.evacuate", "server", server.id, f"its host is off: {told}")
    if server.status == Status.ACTIVE and await operations.open_operation(ctx, server.id) is None:
        await commands.enqueue(ctx, await servers.lock(ctx, server.id), Command.RECOVER, detail="its host is off")
    done = Evacuated(server.id, server.name, server.status, there, shared_pool)
    if backup is None:
        return done
    return msgspec.structs.replace(done, backup_id=backup.id, backup_made_at_ms=backup.created_at_ms)


async def _living_pool(ctx: Ctx, host: Host) -> str | None:
    """The pool of a host that is off, if another one that answers has it as well."""

    def sees_it(other: Host) -> bool:
        is_off = other.id == host.id or other.state == HostState.FENCED or other.health == HostHealth.UNREACHABLE
        return other.shared_pool == host.shared_pool and not is_off

    if host.shared_pool is None:
        return None
    return host.shared_pool if any(map(sees_it, await hosts.list_hosts(ctx))) else None


def _name(backup: Backup) -> str:
    return f"backup {backup.id} of {iso_utc(backup.created_at_ms)}"
