"""The backups and snapshots sections, and their short forms under a server: two words for one thing."""

from functools import partial
from typing import Any

from litestar import Router

from vpsd.api.http.forms import Form, Query
from vpsd.api.http.routes import delete, get, post
from vpsd.api.vps_org.dry_run import preview
from vpsd.api.vps_org.schemas.backups import (
    BackupBrief,
    BackupCreate,
    BackupCreated,
    BackupId,
    BackupList,
    BackupQuery,
    BackupRestore,
    BackupView,
    CopyLabel,
    SnapshotBrief,
    SnapshotCreate,
    SnapshotCreated,
    SnapshotId,
    SnapshotList,
    SnapshotQuery,
    SnapshotRestore,
    SnapshotView,
)
from vpsd.api.vps_org.schemas.operations import OperationBrief
from vpsd.api.vps_org.schemas.servers import ServerId
from vpsd.backups import commands, queries
from vpsd.backups.commands import CreatedBackup, NewBackup
from vpsd.backups.models import Kind
from vpsd.backups.queries import BACKUPS, SNAPSHOTS
from vpsd.core.clock import iso_utc
from vpsd.core.context import Ctx
from vpsd.errors import Busy, NotFound, PaymentRequired, WrongStatus

_create = partial(post, needs="servers:*", raises=(WrongStatus, Busy, NotFound))
_restore = partial(
    post, status_code=200, needs="servers:*", raises=(WrongStatus, Busy, PaymentRequired), preview=preview
)
_delete = partial(delete, needs="servers:*", raises=(Busy,))


@get("/", "backup_list", "List all backups", needs="servers:read")
async def list_backups(ctx: Ctx, query: Query[BackupQuery]) -> BackupList:
    """All backups of all servers, deleted servers too, newest first."""
    query.validate()
    kinds = (Kind(query.get("backup_type")),) if query.has("backup_type") else BACKUPS
    count, found = await queries.list_backups(ctx, kinds, query.page, query.get("server_id"))
    return BackupList.of(query, count, [BackupView.of(backup) for backup in found])


@_create("/", "backup_create", "Create a manual backup")
async def create_backup(ctx: Ctx, form: Form[BackupCreate]) -> BackupCreated:
    """Back a server up while it runs. A manual backup does not expire."""
    created = await commands.create(ctx, Kind.MANUAL, form.validate().plain(NewBackup))
    return BackupCreated.of(created.backup, **_made_by(created))


@get("/{backup_id:int}/", "backup_get", "Get a backup", needs="servers:read")
async def get_backup(ctx: Ctx, backup_id: BackupId) -> BackupView:
    """One backup; its status tells when it is completed."""
    return BackupView.of(await queries.get(ctx, BACKUPS, backup_id))


@_restore("/{backup_id:int}/restore/", "backup_restore", "Restore a server from a backup")
async def restore_backup(ctx: Ctx, backup_id: BackupId) -> BackupRestore:
    """Put the server back to how it was: it is stopped for it and started again, id and address stay.

    All its present data is overwritten.
    """
    backup, accepted = await commands.restore(ctx, BACKUPS, backup_id)
    brief = BackupBrief(backup.id, backup.kind, iso_utc(backup.created_at_ms))
    return BackupRestore.of(accepted, backup=brief)


@_delete("/{backup_id:int}/", "backup_delete", "Delete a backup")
async def delete_backup(ctx: Ctx, backup_id: BackupId) -> None:
    """Delete a backup for ever. The others of the server stay whole."""
    await commands.delete(ctx, BACKUPS, backup_id)


@get("/", "snapshot_list", "List all snapshots", needs="servers:read")
async def list_snapshots(ctx: Ctx, query: Query[SnapshotQuery]) -> SnapshotList:
    """All snapshots of all servers, deleted servers too, newest first."""
    query.validate()
    count, found = await queries.list_backups(ctx, SNAPSHOTS, query.page, query.get("server_id"))
    return SnapshotList.of(query, count, [SnapshotView.of(snapshot) for snapshot in found])


@_create("/", "snapshot_create", "Create a snapshot")
async def create_snapshot(ctx: Ctx, form: Form[SnapshotCreate]) -> SnapshotCreated:
    """Make a point-in-time copy of a whole server while it runs. A server may have a few at a time."""
    created = await commands.create(ctx, Kind.SNAPSHOT, form.validate().plain(NewBackup))
    return SnapshotCreated.of(created.backup, **_made_by(created))


@get("/{snapshot_id:int}/", "snapshot_get", "Get a snapshot", needs="servers:read")
async def get_snapshot(ctx: Ctx, snapshot_id: SnapshotId) -> SnapshotView:
    """One snapshot; its status tells when it is completed."""
    return SnapshotView.of(await queries.get(ctx, SNAPSHOTS, snapshot_id))


@_restore("/{snapshot_id:int}/restore/", "snapshot_restore", "Restore a server from a snapshot")
async def restore_snapshot(ctx: Ctx, snapshot_id: SnapshotId) -> SnapshotRestore:
    """Put the server back to how it was: it is stopped for it and started again, id and address stay.

    All its present data is overwritten.
    """
    snapshot, accepted = await commands.restore(ctx, SNAPSHOTS, snapshot_id)
    brief = SnapshotBrief(snapshot.id, snapshot.name or "", iso_utc(snapshot.created_at_ms))
    return SnapshotRestore.of(accepted, snapshot=brief)


@_delete("/{snapshot_id:int}/", "snapshot_delete", "Delete a snapshot")
async def delete_snapshot(ctx: Ctx, snapshot_id: SnapshotId) -> None:
    """Delete a snapshot for ever. The others of the server stay whole."""
    await commands.delete(ctx, SNAPSHOTS, snapshot_id)


@_create("/{server_id:int}/backup/", "backup_of_server", "Back a server up", body_required=False)
async def backup_of_server(ctx: Ctx, server_id: ServerId, form: Form[CopyLabel]) -> BackupCreated:
    """A manual backup, as the official client asks for it; the body may be left out."""
    new = NewBackup(server_id, description=form.validate().get("label"))
    created = await commands.create(ctx, Kind.MANUAL, new)
    return BackupCreated.of(created.backup, **_made_by(created))


@_create("/{server_id:int}/snapshot/", "snapshot_of_server", "Snapshot a server", body_required=False)
async def snapshot_of_server(ctx: Ctx, server_id: ServerId, form: Form[CopyLabel]) -> SnapshotCreated:
    """A snapshot, as the official client asks for it: its name is made of the label; the body may be left out."""
    new = NewBackup(server_id, description=form.validate().get("label"))
    created = await commands.create(ctx, Kind.SNAPSHOT, new)
    return SnapshotCreated.of(created.backup, **_made_by(created))


def _made_by(created: CreatedBackup) -> dict[str, Any]:
    return {"message": created.message, "operation": OperationBrief.of(created.operation)}


backups = Router(
    "/backups",
    route_handlers=[list_backups, create_backup, get_backup, restore_backup, delete_backup],
    tags=["Backups"],
)
snapshots = Router(
    "/snapshots",
    route_handlers=[list_snapshots, create_snapshot, get_snapshot, restore_snapshot, delete_snapshot],
    tags=["Snapshots"],
)
of_servers = Router("/servers", route_handlers=[backup_of_server, snapshot_of_server], tags=["Servers"])
