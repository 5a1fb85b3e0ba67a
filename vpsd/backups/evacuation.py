"""Servers of a host that is off, brought up elsewhere from their latest backups.

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
from vpsd.hosts.models import Host
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
    backup_id: int | None = None  # that it is made from; None: it never had a disk
    backup_made_at_ms: int | None = None
    why: str | None = None  # it stays


async def evacuate(ctx: Ctx, server_id: int, host: Host) -> Evacuated:
    """Have a server of a host that is off on another one, made from its latest backup; what ran is started there.

    What has come since that backup is lost. One without a backup stays, and comes back with its host.
    """
    server = await servers.lock(ctx, server_id)
    ctx = ctx.in_account(server.account_id)

    def stays(why: str) -> Evacuated:
        return Evacuated(server.id, server.name, server.status, why=why)

    if server.host_id != host.id:
        return stays("it is not on that host any more")
    if server.deleted_at_ms is not None:
        return stays("it is deleted, and what is left of it goes when the host is back")
    backup: Backup | None = None
    if server.provisioned_at_ms is not None:
        backup = await ctx.tx.first(_LATEST, server_id=server.id)
        if backup is None:
            return stays("it has no backup")
    plan = await catalog.find_plan(ctx, server.plan_id)
    assert plan is not None
    apart_from: frozenset[int] | None = None
    if server.placement_group_id is not None:
        apart_from = await groups.hosts_of(ctx, server.placement_group_id)
    try:
        to = await find_room(ctx, plan, server.location, apart_from or frozenset(), leaving=host.id)
    except Unavailable as error:
        return stays(str(error))
    assert to is not None
    await give_back(ctx, host.id, plan)
    await operations.take_from_worker(ctx, server.id)  # it may still have a job at the host that is off
    await updates.set_evacuated(ctx, server, to, None if backup is None else backup.id)
    there = (await hosts.row(ctx, to)).name
    source = "" if backup is None else f" from the {_name(backup)}"
    await events.record(ctx, "server.evacuate", "server", server.id, f"its host is off: made elsewhere{source}")
    if server.status == Status.ACTIVE and await operations.open_operation(ctx, server.id) is None:
        await commands.enqueue(ctx, await servers.lock(ctx, server.id), Command.RECOVER, detail="its host is off")
    made_at_ms = None if backup is None else backup.created_at_ms
    return Evacuated(server.id, server.name, server.status, there, None if backup is None else backup.id, made_at_ms)


def _name(backup: Backup) -> str:
    return f"backup {backup.id} of {iso_utc(backup.created_at_ms)}"
