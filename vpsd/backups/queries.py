"""Backups and snapshots, read: scoped to the account of the context for customers, and of all accounts for workers."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType
from sqlalchemy import and_, bindparam, exists, func, or_, select

from vpsd.accounts import service as accounts
from vpsd.backups.faults import NoSuchBackup, NotCompleted, OneSource
from vpsd.backups.models import Backup, BackupStatus, Kind, backups
from vpsd.backups.repository import BackupRef
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults, Required
from vpsd.core.pages import Page, PagedList, Part
from vpsd.errors import NotFound
from vpsd.lifecycle import RULES
from vpsd.operations.models import operations
from vpsd.servers.creation import BackupSource
from vpsd.servers.models import servers

BACKUPS = (Kind.MANUAL, Kind.AUTOMATIC)
SNAPSHOTS = (Kind.SNAPSHOT,)


class NamedBackup(Backup, frozen=True):
    """A backup and its server's name."""

    server_name: str


class StoredBackup(Backup, frozen=True):
    """A completed backup, damaged by now or not, and the UUID of its server."""

    server_uuid: str

    @property
    def ref(self) -> BackupRef:
        """Where it is on its target."""
        return BackupRef(self.server_uuid, self.uuid)


def noun(kinds: Sequence[Kind]) -> str:
    """What people call these."""
    return "snapshot" if Kind.SNAPSHOT in kinds else "backup"


_c = backups.c
_BACKUP = _c.id == bindparam("backup_id")
_SHOWN = _c.deleted_at_ms.is_(None)
_COMPLETED = and_(_SHOWN, _c.status == BackupStatus.COMPLETED)
IS_STORED = or_(_c.status == BackupStatus.COMPLETED, _c.status == BackupStatus.DAMAGED)
_OF_SERVER = _c.server_id == bindparam("server_id")
_OWN = and_(
    _c.account_id == bindparam("account_id"),
    _SHOWN,
    or_(*(_c.kind == bindparam(name) for name in ("first_kind", "last_kind"))),
)
_NAMED = select(backups, servers.c.name.label("server_name")).join_from(backups, servers)
_LIST = PagedList(_NAMED.where(_OWN), _c.id, into=NamedBackup, newest_first=True)
_LIST_OF_SERVER = PagedList(_NAMED.where(_OWN, _OF_SERVER), _c.id, into=NamedBackup, newest_first=True)
_ONE = Statement(_NAMED.where(_OWN, _BACKUP), into=NamedBackup)
_LOCK = Statement(_NAMED.where(_OWN, _BACKUP).with_for_update(of=backups), into=NamedBackup)
_ROW = Statement(select(backups).where(_BACKUP), into=Backup)
_LATEST = Statement(
    select(backups)
    .where(
        _OF_SERVER,
        _SHOWN,
        IS_STORED,  # what is damaged of it is stored anew
        _c.target == bindparam("target"),
        _c.key_id.is_not_distinct_from(bindparam("key_id")),
    )
    .order_by(_c.completed_at_ms.desc(), _c.id.desc())
    .limit(1)
    .with_for_update(),  # whoever deletes it meanwhile waits until it is noted as a parent, and then lets it lie
    into=Backup,
)
_COUNT_KIND = Statement(
    select(func.count())
    .select_from(backups)
    .where(_OF_SERVER, _c.kind == bindparam("kind"), _SHOWN, _c.status != BackupStatus.FAILED),
    into=int,
)
_AUTOMATIC = Statement(select(_c.created_at_ms).where(_OF_SERVER, _c.kind == Kind.AUTOMATIC, _COMPLETED), into=int)
_BEGUN = Statement(
    select(_c.created_at_ms).where(_OF_SERVER, _c.kind == Kind.AUTOMATIC, _c.status != BackupStatus.FAILED), into=int
)
_EXPIRED = Statement(
    select(backups).where(_SHOWN, _c.status != BackupStatus.IN_PROGRESS, _c.expires_at_ms <= bindparam("now_ms")),
    into=Backup,
)
_child = backups.alias()
# What is left of these lies around: those that nobody sees any more, and those that failed. One from which another is
# being made stays until that one is done.
_GARBAGE = Statement(
    select(backups)
    .where(
        _c.purged_at_ms.is_(None),
        or_(_c.deleted_at_ms.is_not(None), _c.status == BackupStatus.FAILED),
        _c.status != BackupStatus.IN_PROGRESS,
        ~exists().where(_child.c.parent_id == _c.id, _child.c.status == BackupStatus.IN_PROGRESS),
    )
    .order_by(_c.id),
    into=Backup,
)
_OTHERS = Statement(
    select(backups)
    .where(
        _OF_SERVER,
        _c.id != bindparam("backup_id"),
        _c.purged_at_ms.is_(None),
        IS_STORED,
    )
    .order_by(_c.id),
    into=Backup,
)
_STORED = Statement(
    select(backups, servers.c.uuid.label("server_uuid"))
    .join_from(backups, servers)
    .where(_SHOWN, IS_STORED)
    .order_by(_c.id),
    into=StoredBackup,
)
_ON_TARGET = Statement(
    select(backups, servers.c.uuid.label("server_uuid"))
    .join_from(backups, servers)
    .where(
        *(_OF_SERVER, _SHOWN, _c.target.is_not_distinct_from(bindparam("target"))),
        or_(IS_STORED, and_(_c.status == BackupStatus.IN_PROGRESS, _c.size_bytes.is_not(None))),
    )
    .order_by(_c.id),
    into=StoredBackup,
)
_PRESENT = Statement(select(backups).where(_c.purged_at_ms.is_(None)).order_by(_c.id), into=Backup)
_USED_BY = Statement(
    select(servers.c.id)
    .where(
        or_(
            and_(
                servers.c.source_backup_id == bindparam("backup_id"),
                servers.c.provisioned_at_ms.is_(None),
                servers.c.deleted_at_ms.is_(None),
            ),
            exists().where(
                operations.c.server_id == servers.c.id,
                operations.c.finished_at_ms.is_(None),
                operations.c.argument == bindparam("backup_id"),
                or_(*(operations.c.command == command for command, rule in RULES.items() if rule.moves_disks)),
            ),
        )
    )
    .limit(1),
    into=int,
)


def _own(ctx: Ctx, kinds: Sequence[Kind]) -> dict[str, Any]:
    return {"account_id": ctx.account_id, "first_kind": kinds[0], "last_kind": kinds[-1]}


async def list_backups(ctx: Ctx, kinds: Sequence[Kind], page: Page, server_id: int | None = None) -> Part[NamedBackup]:
    """How many of these kinds the account has, of all its servers or of one, and a page of them, newest first."""
    found = _LIST if server_id is None else _LIST_OF_SERVER
    return await found.read(ctx, page, **_own(ctx, kinds), server_id=server_id)


async def get(ctx: Ctx, kinds: Sequence[Kind], backup_id: int) -> NamedBackup:
    """One of the account's; raises `NotFound`."""
    return await _find(ctx, _ONE, kinds, backup_id)


async def lock(ctx: Ctx, kinds: Sequence[Kind], backup_id: int) -> NamedBackup:
    """One of the account's, kept from others until the transaction ends; raises `NotFound`."""
    return await _find(ctx, _LOCK, kinds, backup_id)


async def _find(ctx: Ctx, statement: Statement[NamedBackup], kinds: Sequence[Kind], backup_id: int) -> NamedBackup:
    found = await ctx.tx.first(statement, **_own(ctx, kinds), backup_id=backup_id)
    if found is None:
        raise NotFound(noun(kinds), backup_id)
    return found


async def choose_source(
    ctx: Ctx,
    os_id: int | UnsetType,
    backup_id: int | UnsetType,
    snapshot_id: int | UnsetType,
    faults: Faults,
) -> BackupSource | None:
    """The backup or snapshot that a new server begins with, locked so that it stays until that is written down.

    None where it begins with an operating system. Adds a fault where not exactly one is given, and for one that cannot
    be used.
    """
    sources = {"os_id": os_id, "backup_id": backup_id, "snapshot_id": snapshot_id}
    given = [field for field, source_id in sources.items() if source_id is not UNSET]
    if len(given) != 1:
        if not faults.has(*sources):
            faults.add("os_id", OneSource(list(sources)) if given else Required())
        return None
    field, source_id = given[0], sources[given[0]]
    if field == "os_id" or source_id is UNSET:
        return None
    kinds = BACKUPS if field == "backup_id" else SNAPSHOTS
    await accounts.lock_account(ctx, ctx.account_id)  # first, as everywhere: its credit is looked at next
    try:
        backup = await lock(ctx, kinds, source_id)
    except NotFound:
        faults.add(field, NoSuchBackup(noun(kinds), source_id))
        return None
    if backup.status != BackupStatus.COMPLETED:
        faults.add(field, NotCompleted(noun(kinds), source_id, backup.status))
        return None
    return BackupSource(backup.id, backup.os_id, backup.disk_bytes, noun(kinds), backup.cloud_init)


async def used_by(ctx: Ctx, backup_id: int) -> int | None:
    """The server of which it is being made, or which is being restored or made from it."""
    return await ctx.tx.first(_USED_BY, backup_id=backup_id)


async def count(ctx: Ctx, server_id: int, kind: Kind) -> int:
    """How many of a kind a server has or is getting."""
    return await ctx.tx.first(_COUNT_KIND, server_id=server_id, kind=kind) or 0


async def find(ctx: Ctx, backup_id: int) -> Backup | None:
    """A backup of any account, deleted or not."""
    return await ctx.tx.first(_ROW, backup_id=backup_id)


async def get_any(ctx: Ctx, backup_id: int) -> Backup:
    """For the operator: one of any account that is not deleted; raises `NotFound`."""
    backup = await find(ctx, backup_id)
    if backup is None or backup.deleted_at_ms is not None:
        raise NotFound("backup or snapshot", backup_id)
    return backup


async def stored(ctx: Ctx) -> list[StoredBackup]:
    """For the operator: the completed and the damaged ones of all accounts, oldest first."""
    return await ctx.tx.all(_STORED)


async def on_target(ctx: Ctx, server_id: int, target: str | None) -> list[StoredBackup]:
    """Those of a server that are whole on a target, or were; also the one that is about to be completed."""
    return await ctx.tx.all(_ON_TARGET, server_id=server_id, target=target)


async def row(ctx: Ctx, backup_id: int) -> Backup:
    """The same, where it must exist."""
    backup = await find(ctx, backup_id)
    assert backup is not None
    return backup


async def latest(ctx: Ctx, server_id: int, target: str, key_id: str | None) -> Backup | None:
    """The one that a server's next one can build on: the last one on the same target, under the same key."""
    return await ctx.tx.first(_LATEST, server_id=server_id, target=target, key_id=key_id)


async def automatic_times(ctx: Ctx, server_id: int) -> list[int]:
    """When the automatic ones that a server has were made, in ms."""
    return await ctx.tx.all(_AUTOMATIC, server_id=server_id)


async def begun_times(ctx: Ctx, server_id: int) -> list[int]:
    """When the automatic ones that a server ever had were begun, but for those that failed, in ms."""
    return await ctx.tx.all(_BEGUN, server_id=server_id)


async def expired(ctx: Ctx) -> list[Backup]:
    """Those whose time is over."""
    return await ctx.tx.all(_EXPIRED, now_ms=ctx.now_ms)


async def garbage(ctx: Ctx) -> list[Backup]:
    """Those of which something may be left that nobody needs."""
    return await ctx.tx.all(_GARBAGE)


async def others(ctx: Ctx, backup: Backup) -> list[Backup]:
    """The server's other completed and damaged ones, deleted or not, that are not purged yet."""
    return await ctx.tx.all(_OTHERS, server_id=backup.server_id, backup_id=backup.id)


async def present(ctx: Ctx) -> list[Backup]:
    """All of which something may be on a target."""
    return await ctx.tx.all(_PRESENT)
