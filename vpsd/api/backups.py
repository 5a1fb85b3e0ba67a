"""The backups and snapshots sections, and their short forms under a server."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody, Parameter

from vpsd.api.carrying import DryRun, DryRunQuery, carry_out
from vpsd.api.cloud import CloudRequest, Listing, cloud_of, neighbours
from vpsd.api.servers import ServerId, shown
from vpsd.backups import service
from vpsd.backups.models import Kind
from vpsd.backups.schemas import (
    BackupBrief,
    BackupCreate,
    BackupCreated,
    BackupQuery,
    BackupRestore,
    BackupView,
    CopyLabel,
    SnapshotBrief,
    SnapshotCreate,
    SnapshotCreated,
    SnapshotQuery,
    SnapshotRestore,
    SnapshotView,
)
from vpsd.backups.service import BACKUPS, SNAPSHOTS, Named
from vpsd.core.clock import iso_utc
from vpsd.core.db import Tx
from vpsd.core.forms import Form
from vpsd.core.pages import Page
from vpsd.errors import Busy, NotFound, PaymentRequired, WrongStatus
from vpsd.servers.schemas import ActionAccepted

Created = TypeVar("Created", BackupCreated, SnapshotCreated)


class BackupList(Listing):
    """A page of backups."""

    results: list[BackupView]


class SnapshotList(Listing):
    """A page of snapshots."""

    results: list[SnapshotView]


BackupId = FromPath[Annotated[int, Parameter(description="Id of the backup")]]
SnapshotId = FromPath[Annotated[int, Parameter(description="Id of the snapshot")]]

_MAKE = {"needs": "servers:*", "raises": (WrongStatus, Busy, NotFound)}
_RESTORE = {"needs": "servers:*", "raises": (WrongStatus, Busy, PaymentRequired), "query": DryRunQuery}
_DELETE = {"needs": "servers:*", "raises": (Busy,)}


@get("/", operation_id="backup_list", summary="List all backups", opt={"needs": "servers:read", "query": BackupQuery})
async def list_backups(request: CloudRequest) -> BackupList:
    """All backups of all servers, deleted servers too, newest first."""
    asked = request.query_form()
    async with cloud_of(request).database.read() as tx:
        count, found = await service.list_copies(tx, request.user, BACKUPS, asked)
    return BackupList(count, *neighbours(request, Page.of(asked), count), [BackupView.of(*one) for one in found])


@post("/", operation_id="backup_create", summary="Create a manual backup", opt=_MAKE)
async def back_up(request: CloudRequest, data: JSONBody[Form[BackupCreate]]) -> Response[BackupCreated]:
    """Back a server up while it runs. A manual backup does not expire."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> BackupCreated:
        made = await service.back_up(tx, request.user, cloud.ids, cloud.clock, cloud.settings, data)
        return _created(BackupCreated, BackupView.of(*made), "backup")

    return await carry_out(request, work, 201)


@get("/{backup_id:int}/", operation_id="backup_get", summary="Get a backup", opt={"needs": "servers:read"})
async def get_backup(request: CloudRequest, backup_id: BackupId) -> BackupView:
    """One backup; its status tells when it is completed."""
    async with cloud_of(request).database.read() as tx:
        return BackupView.of(*await service.get(tx, request.user, BACKUPS, backup_id))


@post(
    "/{backup_id:int}/restore/",
    operation_id="backup_restore",
    summary="Restore a server from a backup",
    status_code=200,
    opt=_RESTORE,
)
async def restore_backup(request: CloudRequest, backup_id: BackupId) -> Response[BackupRestore]:
    """Put the server back to how it was: it is stopped for it and started again, id and address stay.

    All its present data is overwritten.
    """

    async def work(tx: Tx) -> BackupRestore:
        backup, state = await _restore(request, tx, BACKUPS, backup_id)
        brief = BackupBrief(backup.id, backup.kind, iso_utc(backup.created_at_ms))
        return BackupRestore("success", _restoring("backup"), state, brief)

    return await carry_out(request, work, 200, _preview(request))


@delete("/{backup_id:int}/", operation_id="backup_delete", summary="Delete a backup", opt=_DELETE)
async def delete_backup(request: CloudRequest, backup_id: BackupId) -> None:
    """Delete a backup for ever. The others of the server stay whole."""
    await _delete(request, BACKUPS, backup_id)


@get(
    "/",
    operation_id="snapshot_list",
    summary="List all snapshots",
    opt={"needs": "servers:read", "query": SnapshotQuery},
)
async def list_snapshots(request: CloudRequest) -> SnapshotList:
    """All snapshots of all servers, deleted servers too, newest first."""
    asked = request.query_form()
    async with cloud_of(request).database.read() as tx:
        count, found = await service.list_copies(tx, request.user, SNAPSHOTS, asked)
    return SnapshotList(count, *neighbours(request, Page.of(asked), count), [SnapshotView.of(*one) for one in found])


@post("/", operation_id="snapshot_create", summary="Create a snapshot", opt=_MAKE)
async def take_snapshot(request: CloudRequest, data: JSONBody[Form[SnapshotCreate]]) -> Response[SnapshotCreated]:
    """Make a point-in-time copy of a whole server while it runs. A server may have a few at a time."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> SnapshotCreated:
        made = await service.take_snapshot(tx, request.user, cloud.ids, cloud.clock, cloud.settings, data)
        return _created(SnapshotCreated, SnapshotView.of(*made), "snapshot")

    return await carry_out(request, work, 201)


@get("/{snapshot_id:int}/", operation_id="snapshot_get", summary="Get a snapshot", opt={"needs": "servers:read"})
async def get_snapshot(request: CloudRequest, snapshot_id: SnapshotId) -> SnapshotView:
    """One snapshot; its status tells when it is completed."""
    async with cloud_of(request).database.read() as tx:
        return SnapshotView.of(*await service.get(tx, request.user, SNAPSHOTS, snapshot_id))


@post(
    "/{snapshot_id:int}/restore/",
    operation_id="snapshot_restore",
    summary="Restore a server from a snapshot",
    status_code=200,
    opt=_RESTORE,
)
async def restore_snapshot(request: CloudRequest, snapshot_id: SnapshotId) -> Response[SnapshotRestore]:
    """Put the server back to how it was: it is stopped for it and started again, id and address stay.

    All its present data is overwritten.
    """

    async def work(tx: Tx) -> SnapshotRestore:
        backup, state = await _restore(request, tx, SNAPSHOTS, snapshot_id)
        brief = SnapshotBrief(backup.id, backup.name or "", iso_utc(backup.created_at_ms))
        return SnapshotRestore("success", _restoring("snapshot"), state, brief)

    return await carry_out(request, work, 200, _preview(request))


@delete("/{snapshot_id:int}/", operation_id="snapshot_delete", summary="Delete a snapshot", opt=_DELETE)
async def delete_snapshot(request: CloudRequest, snapshot_id: SnapshotId) -> None:
    """Delete a snapshot for ever. The others of the server stay whole."""
    await _delete(request, SNAPSHOTS, snapshot_id)


_LABELLED = {**_MAKE, "body": CopyLabel}


@post("/{server_id:int}/backup/", operation_id="backup_of_server", summary="Back a server up", opt=_LABELLED)
async def back_server_up(request: CloudRequest, server_id: ServerId) -> Response[BackupCreated]:
    """A manual backup, as the official client asks for it; the body may be left out."""

    async def work(tx: Tx) -> BackupCreated:
        made = await _copy_labelled(request, tx, server_id, Kind.MANUAL)
        return _created(BackupCreated, BackupView.of(*made), "backup")

    return await carry_out(request, work, 201)


@post("/{server_id:int}/snapshot/", operation_id="snapshot_of_server", summary="Snapshot a server", opt=_LABELLED)
async def snapshot_server(request: CloudRequest, server_id: ServerId) -> Response[SnapshotCreated]:
    """A snapshot, as the official client asks for it: its name is made of the label; the body may be left out."""

    async def work(tx: Tx) -> SnapshotCreated:
        made = await _copy_labelled(request, tx, server_id, Kind.SNAPSHOT)
        return _created(SnapshotCreated, SnapshotView.of(*made), "snapshot")

    return await carry_out(request, work, 201)


async def _copy_labelled(request: CloudRequest, tx: Tx, server_id: int, kind: Kind) -> Named:
    cloud, form = cloud_of(request), await request.optional_form(CopyLabel)
    return await service.copy_labelled(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id, kind, form)


def _created(kind: type[Created], view: Any, what: str) -> Created:
    return kind(**msgspec.structs.asdict(view), message=service.MESSAGES[what])


def _restoring(what: str) -> str:
    return f"Server is being restored from {what}. This may take 5-15 minutes."


def _preview(request: CloudRequest) -> Callable[[Tx, ActionAccepted], Awaitable[DryRun]]:
    async def preview(tx: Tx, accepted: ActionAccepted) -> DryRun:
        return await shown(request, tx, accepted.server.id, msgspec.to_builtins(accepted))

    return preview


async def _restore(request: CloudRequest, tx: Tx, kinds: Any, backup_id: int) -> Any:
    cloud = cloud_of(request)
    return await service.restore(tx, request.user, cloud.ids, cloud.clock, cloud.settings, kinds, backup_id)


async def _delete(request: CloudRequest, kinds: Any, backup_id: int) -> None:
    cloud = cloud_of(request)
    async with cloud.database.write() as tx:
        await service.delete(tx, request.user, cloud.clock, kinds, backup_id)


backups = Router(
    "/backups", route_handlers=[list_backups, back_up, get_backup, restore_backup, delete_backup], tags=["Backups"]
)
snapshots = Router(
    "/snapshots",
    route_handlers=[list_snapshots, take_snapshot, get_snapshot, restore_snapshot, delete_snapshot],
    tags=["Snapshots"],
)
of_servers = Router("/servers", route_handlers=[back_server_up, snapshot_server], tags=["Servers"])
