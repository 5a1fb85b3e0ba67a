"""What is done with backups and snapshots: by customers, by the clock, and by workers.

Nothing here touches a host or a target: a request becomes rows, the worker does the rest.
"""

import re
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import bindparam, case, insert, update

from vpsd.backups import queries, retention
from vpsd.backups.faults import (
    BackupInUse,
    BackupsNotEnabled,
    IsDamaged,
    NoDiskYet,
    NotRestorable,
    ServerIsDeleted,
    TooManyBackups,
)
from vpsd.backups.models import Backup, BackupStatus, Kind, backups
from vpsd.backups.queries import NamedBackup, noun
from vpsd.core.clock import iso_utc
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.units import DAY_MS, MINUTE_MS
from vpsd.errors import NotFound
from vpsd.events import service as events
from vpsd.lifecycle import RULES, Command
from vpsd.operations.models import Operation
from vpsd.servers import commands as servers
from vpsd.servers import queries as server_queries
from vpsd.servers import updates
from vpsd.servers.checks import check_storage, check_unprotected, is_storage_full
from vpsd.servers.commands import Accepted
from vpsd.servers.models import LockedServer
from vpsd.servers.schedule import next_backup_slot_ms

_FAILED_SHOWN_MS = 7 * DAY_MS
_DAILY_AGAIN_MS = 30 * MINUTE_MS

_c = backups.c
_ONE = update(backups).where(_c.id == bindparam("backup_id"))
_MADE = _ONE.where(_c.status == BackupStatus.IN_PROGRESS)
_ADD = Statement(
    insert(backups).returning(backups),
    ("uuid", "account_id", "server_id", "kind", "name", "description", "status", "os_id", "disk", "created_at_ms"),
    into=Backup,
)
_SET_PARENT = Statement(_ONE, ("parent_id",))
_SET_EXPORTED = Statement(
    _ONE,
    ("os_id", "disk", "base", "kernel_cmdline", "firmware", "incremental", "frozen", "frozen_ms", "consistency_detail")
    + ("cloud_init", "target", "key_id"),
)
_SET_STORED = Statement(_ONE, ("disk_bytes", "size_bytes", "sent_bytes"))
_SET_COMPLETED = Statement(
    _ONE.where(_c.completed_at_ms.is_(None)).values(  # its damage may have been found before its end
        status=case((_c.status == BackupStatus.DAMAGED, _c.status), else_=BackupStatus.COMPLETED.value)
    ),
    ("completed_at_ms", "expires_at_ms"),
)
_SET_FAILED = Statement(_MADE, ("status", "error", "expires_at_ms"))
_DELETE = Statement(_ONE.where(_c.deleted_at_ms.is_(None)), ("deleted_at_ms",))
_HIDE_FAILED = Statement(
    update(backups).where(
        _c.server_id == bindparam("server_id"),
        _c.kind == Kind.AUTOMATIC,
        _c.deleted_at_ms.is_(None),
        _c.status == BackupStatus.FAILED,
    ),
    ("deleted_at_ms",),
)
_SET_PURGED = Statement(_ONE, ("purged_at_ms",))


class NewBackup(msgspec.Struct, frozen=True):
    """A backup or snapshot to make. A snapshot without a name is named after its description.

    What was not sent, or cannot be read, is unset.
    """

    server_id: int | UnsetType = UNSET
    name: str | None = None
    description: str | None = None


class CreatedBackup(msgspec.Struct, frozen=True):
    """What is being made, and by which operation."""

    backup: NamedBackup
    operation: Operation
    message: str


async def create(ctx: Ctx, kind: Kind, new: NewBackup, faults: Faults) -> CreatedBackup:
    """Have a server backed up while it runs.

    Raises `Invalid`, `NotFound`, `WrongStatus`, `StorageFull` (the host holds a copy until it is stored) or `Busy`.
    """
    if new.server_id is UNSET:
        faults.check()
    assert new.server_id is not UNSET
    try:
        server = await server_queries.lock_server(ctx, new.server_id)
    except NotFound:
        faults.check()  # what is wrong with the other fields is said first
        raise
    what, settings = noun((kind,)), ctx.settings
    limit = settings.snapshots_per_server if kind is Kind.SNAPSHOT else settings.backups_per_server
    if await queries.count(ctx, server.id, kind) >= limit:
        faults.add("server_id", TooManyBackups(what, limit))
    faults.check()
    servers.check_status(server, Command.BACKUP)
    await check_storage(ctx, server)
    if server.provisioned_at_ms is None:
        raise NoDiskYet
    name = new.name
    if kind is Kind.SNAPSHOT and name is None:
        now = iso_utc(ctx.now_ms).replace(":", "").removesuffix("Z")
        name = re.sub("[^A-Za-z0-9_-]+", "-", new.description or "").strip("-")[:63] or f"snapshot-{now}"
    backup = await _add(ctx, server, kind, name, new.description)
    operation = await servers.enqueue(ctx, server, Command.BACKUP, backup.id)
    await events.record(ctx, f"{what}.create", what, backup.id, f"of server {server.id}")
    named = NamedBackup(**msgspec.structs.asdict(backup), server_name=server.name)
    return CreatedBackup(named, operation, RULES[Command.BACKUP].message.format(noun=what.capitalize()))


async def create_daily(ctx: Ctx, server_id: int) -> None:
    """Have a server's automatic backup made, if it is due; of several that were missed, one. Raises `Busy`."""
    server = await server_queries.lock(ctx, server_id)
    if server.next_backup_at_ms is None or server.next_backup_at_ms > ctx.now_ms or server.deleted_at_ms is not None:
        return
    ready = server.provisioned_at_ms is not None and server.status in RULES[Command.BACKUP_DAILY].begins_from
    if not ready or await is_storage_full(ctx, server):
        return  # it stays due, and is made up for as soon as it can be
    await ctx.tx.run(_HIDE_FAILED, server_id=server_id, deleted_at_ms=ctx.now_ms)  # there is a new try
    backup = await _add(ctx, server, Kind.AUTOMATIC, None, "Automatic daily backup")
    await servers.enqueue(ctx, server, Command.BACKUP_DAILY, backup.id)
    await updates.set_next_backup(ctx, server_id, next_backup_slot_ms(ctx.settings, server.uuid, ctx.now_ms))


async def set_slot_right(ctx: Ctx, server_id: int) -> None:
    """Have a server's next automatic backup in the next slot, where a clock that was ahead put it further away.

    A slot is passed over where the last one was made, by whatever clock, less than half a day before.
    """
    server = await server_queries.lock(ctx, server_id)
    if server.next_backup_at_ms is None or server.next_backup_at_ms <= ctx.now_ms + DAY_MS:
        return
    last_ms = max((min(at_ms, ctx.now_ms) for at_ms in await queries.begun_times(ctx, server_id)), default=0)
    after_ms = max(ctx.now_ms, last_ms + DAY_MS // 2)
    await updates.set_next_backup(ctx, server_id, next_backup_slot_ms(ctx.settings, server.uuid, after_ms))


async def make_daily_due(ctx: Ctx, server_id: int) -> None:
    """Have a server's automatic backup begin now instead of in its window; raises `NotFound`, `BackupsNotEnabled`."""
    server = await server_queries.lock_server(ctx, server_id)
    if server.next_backup_at_ms is None:
        raise BackupsNotEnabled(server_id)
    await updates.set_next_backup(ctx, server_id, ctx.now_ms)


async def _add(ctx: Ctx, server: LockedServer, kind: Kind, name: str | None, description: str | None) -> Backup:
    backup = await ctx.tx.first(
        _ADD,
        uuid=ctx.ids.uuid(),
        account_id=server.account_id,
        server_id=server.id,
        kind=kind,
        name=name,
        description=description,
        status=BackupStatus.IN_PROGRESS,
        os_id=server.os_id,
        disk=server.disk,
        created_at_ms=ctx.now_ms,
    )
    assert backup is not None
    return backup


async def restore(ctx: Ctx, kinds: Sequence[Kind], backup_id: int) -> tuple[NamedBackup, Accepted]:
    """Put a server back to how it was.

    Raises `NotFound`, `IsProtected`, `PaymentRequired`, `WrongStatus`, `StorageFull` (the host has both disks for a
    while) or `Busy`.
    """
    backup, what = await queries.get(ctx, kinds, backup_id), noun(kinds)
    try:
        server = await server_queries.lock_server(ctx, backup.server_id)
    except NotFound:
        raise ServerIsDeleted(what, backup_id, backup.server_id) from None
    backup = await queries.lock(ctx, kinds, backup_id)  # after the server, as everywhere
    if backup.status == BackupStatus.DAMAGED:
        raise IsDamaged(what, backup_id)
    if backup.status != BackupStatus.COMPLETED:
        raise NotRestorable(what, backup_id, backup.error)
    check_unprotected(server)
    servers.check_status(server, Command.RESTORE)
    await check_storage(ctx, server)
    detail = f"from {what} {backup_id}"
    operation = await servers.enqueue(ctx, server, Command.RESTORE, backup_id, event="server.restore", detail=detail)
    accepted = servers.accepted(server, Command.RESTORE, operation)
    return backup, msgspec.structs.replace(accepted, message=accepted.message.format(noun=what))


async def delete(ctx: Ctx, kinds: Sequence[Kind], backup_id: int) -> None:
    """Delete one for ever; raises `NotFound`, or `Busy` while it is being made or used."""
    backup, what = await queries.lock(ctx, kinds, backup_id), noun(kinds)
    server_id = await queries.used_by(ctx, backup_id)
    if server_id is not None:
        raise BackupInUse(what, backup_id, server_id)
    await ctx.tx.run(_DELETE, backup_id=backup_id, deleted_at_ms=ctx.now_ms)
    await events.record(ctx, f"{what}.delete", what, backup_id, f"of server {backup.server_id}")


async def expire(ctx: Ctx, backup: Backup) -> None:
    """Delete one whose time is over, unless a server is being restored or made from it."""
    kinds = (Kind(backup.kind),)
    try:
        await queries.lock(ctx.in_account(backup.account_id), kinds, backup.id)  # a restore that begins now waits
    except NotFound:
        return
    if await queries.used_by(ctx, backup.id) is None:
        await ctx.tx.run(_DELETE, backup_id=backup.id, deleted_at_ms=ctx.now_ms)


async def set_parent(ctx: Ctx, backup_id: int, parent_id: int | None) -> None:
    """It holds what has changed since another one, which from now on stays until this one is done."""
    await ctx.tx.run(_SET_PARENT, backup_id=backup_id, parent_id=parent_id)


async def set_exported(ctx: Ctx, backup_id: int, **values: object) -> None:
    """The disk was exported, in this way."""
    await ctx.tx.run(_SET_EXPORTED, backup_id=backup_id, **values)


async def set_stored(ctx: Ctx, backup_id: int, *, disk_bytes: int, size_bytes: int, sent_bytes: int) -> None:
    """All of it is on the target."""
    sizes = {"disk_bytes": disk_bytes, "size_bytes": size_bytes, "sent_bytes": sent_bytes}
    await ctx.tx.run(_SET_STORED, backup_id=backup_id, **sizes)


async def set_purged(ctx: Ctx, backup_id: int) -> None:
    """Nothing of it is left on the target."""
    await ctx.tx.run(_SET_PURGED, backup_id=backup_id, purged_at_ms=ctx.now_ms)


async def record_end(ctx: Ctx, operation: Operation, error: str | None) -> None:
    """Write down what became of a backup when its operation ends; `error`: why it came to nothing."""
    backup = await queries.row(ctx, operation.argument or 0)
    if backup.size_bytes is not None:  # it is on the target, whatever went wrong behind it
        expires_at_ms = None
        if backup.kind == Kind.AUTOMATIC:
            earlier = await queries.automatic_times(ctx, backup.server_id)
            expires_at_ms = retention.expires_at_ms(ctx.settings, backup.created_at_ms, earlier)
        await ctx.tx.run(_SET_COMPLETED, backup_id=backup.id, completed_at_ms=ctx.now_ms, expires_at_ms=expires_at_ms)
        return
    failed = {"status": BackupStatus.FAILED, "error": error or "It was not stored."}
    await ctx.tx.run(_SET_FAILED, backup_id=backup.id, expires_at_ms=ctx.now_ms + _FAILED_SHOWN_MS, **failed)
    if operation.command == Command.BACKUP_DAILY:
        server = await server_queries.row(ctx, operation.server_id)
        if server.next_backup_at_ms is not None:
            again_ms = min(server.next_backup_at_ms, ctx.now_ms + _DAILY_AGAIN_MS)
            await updates.set_next_backup(ctx, server.id, again_ms)
