"""Backups and snapshots, as customers may see them, ask for them and go back to them.

Nothing here touches a host or a target: a wish becomes rows, the worker does the rest.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, func, or_, select

from vpsd.accounts import events
from vpsd.accounts.models import Caller
from vpsd.backups import rows
from vpsd.backups.models import Backup, Kind, State, backups
from vpsd.backups.schemas import BackupCreate, BackupQuery, CopyLabel, SnapshotCreate, SnapshotQuery
from vpsd.billing import service as billing
from vpsd.core.clock import Clock, iso_utc
from vpsd.core.db import Statement, Tx
from vpsd.core.forms import Form
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.errors import Busy, Invalid, NotFound, WrongStatus
from vpsd.servers import rows as server_rows
from vpsd.servers import service as servers
from vpsd.servers.lifecycle import Command, Status
from vpsd.servers.models import servers as servers_table
from vpsd.servers.schemas import ServerState
from vpsd.settings import Settings

_c = backups.c
BACKUPS = (Kind.MANUAL, Kind.AUTOMATIC)
SNAPSHOTS = (Kind.SNAPSHOT,)

Named = tuple[Backup, str]
"""A backup and its server's name."""

MESSAGES = {
    "backup": "Backup is being created. This may take 3-10 minutes depending on server size.",
    "snapshot": "Snapshot is being created. This may take 3-10 minutes depending on server size.",
}


def word(kinds: Sequence[Kind]) -> str:
    """What people call these."""
    return "snapshot" if Kind.SNAPSHOT in kinds else "backup"


def _narrowed(statement: Select[Any], by_server: bool) -> Select[Any]:
    statement = statement.where(
        _c.account_id == bindparam("the_account"),
        _c.deleted_at_ms.is_(None),
        or_(_c.kind == bindparam("the_kind"), _c.kind == bindparam("the_other_kind")),
    )
    return statement.where(_c.server_id == bindparam("the_server")) if by_server else statement


@cache
def _count(by_server: bool) -> Statement:
    return Statement(_narrowed(select(func.count()).select_from(backups), by_server))


@cache
def _page(by_server: bool) -> Statement:
    found = _narrowed(select(backups, servers_table.c.name).join_from(backups, servers_table), by_server)
    return Statement(found.order_by(_c.id.desc()).limit(bindparam("the_limit")).offset(bindparam("the_offset")))


_OWN = (
    select(backups, servers_table.c.name)
    .join_from(backups, servers_table)
    .where(_c.account_id == bindparam("the_account"), _c.id == bindparam("the_id"), _c.deleted_at_ms.is_(None))
)
_ONE = Statement(_OWN)
_ONE_LOCKED = Statement(_OWN.with_for_update(of=backups))


def _named(*columns: Any) -> Named:
    return Backup(*columns[:-1]), columns[-1]


async def list_copies(
    tx: Tx, caller: Caller, kinds: Sequence[Kind], asked: Form[BackupQuery] | Form[SnapshotQuery]
) -> tuple[int, list[Named]]:
    """How many the account has, and a page of them, newest first; raises `Invalid`."""
    asked.done()
    if asked.has("backup_type"):
        kinds = (Kind(asked.get("backup_type")),)
    page, server_id = Page.of(asked), asked.get("server_id")
    values = {
        "the_account": caller.account_id,
        "the_kind": kinds[0],
        "the_other_kind": kinds[-1],
        "the_server": server_id,
    }
    count = await tx.first(int, _count(server_id is not None), **values) or 0
    found = await tx.all(_named, _page(server_id is not None), **values, the_limit=page.size, the_offset=page.offset)
    return count, found


async def get(tx: Tx, caller: Caller, kinds: Sequence[Kind], backup_id: int) -> Named:
    """One of the account's; raises `NotFound`."""
    return await _find(tx, _ONE, caller, kinds, backup_id)


async def _find(tx: Tx, statement: Statement, caller: Caller, kinds: Sequence[Kind], backup_id: int) -> Named:
    found = await tx.first(_named, statement, the_account=caller.account_id, the_id=backup_id)
    if found is None or found[0].kind not in kinds:
        raise NotFound(f"There is no {word(kinds)} {backup_id}.")
    return found


async def back_up(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, form: Form[BackupCreate]
) -> Named:
    """Have a backup made of a server; raises `Invalid`, `NotFound`, `WrongStatus` or `Busy`."""
    form.done()
    server_id, description = form.get("server_id"), form.get("description")
    return await _begin(tx, caller, ids, clock, settings, server_id, Kind.MANUAL, None, description)


async def take_snapshot(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, form: Form[SnapshotCreate]
) -> Named:
    """Have a snapshot made of a server; raises `Invalid`, `NotFound`, `WrongStatus` or `Busy`."""
    form.done()
    server_id, name, description = form.get("server_id"), form.get("name"), form.get("description")
    return await _begin(tx, caller, ids, clock, settings, server_id, Kind.SNAPSHOT, name, description)


async def copy_labelled(
    tx: Tx,
    caller: Caller,
    ids: Ids,
    clock: Clock,
    settings: Settings,
    server_id: int,
    kind: Kind,
    form: Form[CopyLabel],
) -> Named:
    """Have a backup or snapshot made as the official client asks for it; raises the same."""
    form.done()
    label = form.get("label")
    name = None
    if kind is Kind.SNAPSHOT:
        now = iso_utc(clock.now_ms()).replace(":", "").removesuffix("Z")
        name = re.sub("[^A-Za-z0-9_-]+", "-", label or "").strip("-")[:63] or f"snapshot-{now}"
    return await _begin(tx, caller, ids, clock, settings, server_id, kind, name, label)


async def _begin(
    tx: Tx,
    caller: Caller,
    ids: Ids,
    clock: Clock,
    settings: Settings,
    server_id: int,
    kind: Kind,
    name: str | None,
    description: str | None,
) -> Named:
    state = await servers.state_of(tx, caller, server_id)
    server = await server_rows.get(tx, server_id)
    servers.check_status(state, Command.BACKUP)
    if server.provisioned_at_ms is None:
        raise WrongStatus("The server has no disk yet. Wait until it is active.")
    what = word((kind,))
    most = settings.snapshots_per_server if kind is Kind.SNAPSHOT else settings.backups_per_server
    if await rows.count(tx, server_id, kind) >= most:
        by_hand = "snapshots" if kind is Kind.SNAPSHOT else "manual backups"
        raise Invalid({"server_id": [f"A server may have {most} {by_hand}. Delete one first."]})
    backup = await rows.add(tx, ids.uuid(), server, kind, name, description, clock.now_ms())
    await servers.begin(tx, ids, clock, server_id, Command.BACKUP, backup.id)
    await events.add(tx, clock, caller, f"{what}.create", what, backup.id, f"of server {server_id}")
    return backup, state.name


async def restore(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, kinds: Sequence[Kind], backup_id: int
) -> tuple[Backup, ServerState]:
    """Put a server back to how it was; raises `NotFound`, `PaymentRequired`, `WrongStatus` or `Busy`."""
    backup, _ = await _find(tx, _ONE, caller, kinds, backup_id)
    what = word(kinds)
    try:
        state = await servers.state_of(tx, caller, backup.server_id)
    except NotFound:
        raise WrongStatus(
            f"The server {backup.server_id} is deleted. "
            f"Make a new one of it: POST /api/v1/servers/ with {what}_id {backup_id}."
        ) from None
    backup, _ = await _find(tx, _ONE_LOCKED, caller, kinds, backup_id)
    check_whole(backup)
    runs = state.status == Status.ACTIVE
    await billing.check_start(tx, clock, settings, caller.account_id, runs=runs)  # it runs in the end
    servers.check_status(state, Command.RESTORE)
    await servers.begin(tx, ids, clock, state.id, Command.RESTORE, backup.id)
    await events.add(tx, clock, caller, "server.restore", "server", state.id, f"from {what} {backup.id}")
    return backup, ServerState(state.id, state.name, Status.RESTORING)


def check_whole(backup: Backup) -> None:
    """Raise `WrongStatus` for one that cannot be restored from."""
    what = word((Kind(backup.kind),))
    if backup.status == State.IN_PROGRESS:
        raise WrongStatus(f"The {what} {backup.id} is still being made. Wait until it is completed.")
    if backup.status == State.FAILED:
        raise WrongStatus(f"The {what} {backup.id} failed: {backup.error} Choose another.")


async def delete(tx: Tx, caller: Caller, clock: Clock, kinds: Sequence[Kind], backup_id: int) -> None:
    """Delete one for ever; raises `NotFound`, or `Busy` while it is being made or used."""
    backup, _ = await _find(tx, _ONE_LOCKED, caller, kinds, backup_id)
    what = word(kinds)
    user = await rows.user_of(tx, backup.id)
    if user is not None:
        raise Busy(
            f"The {what} {backup_id} is in use: it is being made of the server {user}, or that server from it. "
            "Try again when that is done, or delete that server."
        )
    await rows.delete(tx, backup.id, clock.now_ms())
    await events.add(tx, clock, caller, f"{what}.delete", what, backup.id, f"of server {backup.server_id}")
