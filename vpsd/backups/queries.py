"""Backups and snapshots, read: scoped to the account of the context for customers, and of all accounts for workers."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Select, and_, bindparam, exists, func, or_, select

from vpsd.backups.faults import NoSuchBackup, NotCompleted
from vpsd.backups.models import Backup, BackupStatus, Kind, backups
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.pages import Page
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


def noun(kinds: Sequence[Kind]) -> str:
    """What people call these."""
    return "snapshot" if Kind.SNAPSHOT in kinds else "backup"


_c = backups.c
_BACKUP = _c.id == bindparam("backup_id")
_SHOWN = _c.deleted_at_ms.is_(None)
_COMPLETED = and_(_SHOWN, _c.status == BackupStatus.COMPLETED)
_OF_SERVER = _c.server_id == bindparam("server_id")
_OWN = and_(
    _c.account_id == bindparam("account_id"),
    _SHOWN,
    or_(*(_c.kind == bindparam(name) for name in ("first_kind", "last_kind"))),
)
_NAMED = select(backups, servers.c.name.label("server_name")).join_from(backups, servers)
_ONE = Statement(_NAMED.where(_OWN, _BACKUP), into=NamedBackup)
_LOCK = Statement(_NAMED.where(_OWN, _BACKUP).with_for_update(of=backups), into=NamedBackup)
_ROW = Statement(select(backups).where(_BACKUP), into=Backup)
_LATEST = Statement(
    select(backups)
    .where(
        _OF_SERVER,
        _COMPLETED,
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
        _c.status == BackupStatus.COMPLETED,
    )
    .order_by(_c.id),
    into=Backup,
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


def _narrowed(statement: Select[Any], by_server: bool) -> Select[Any]:
    return statement.where(_OWN, _OF_SERVER) if by_server else statement.where(_OWN)


@cache
def _count(by_server: bool) -> Statement[int]:
    return Statement(_narrowed(select(func.count()).select_from(backups), by_server), into=int)


@cache
def _page(by_server: bool) -> Statement[NamedBackup]:
    found = _narrowed(_NAMED, by_server).order_by(_c.id.desc())
    return Statement(found.limit(bindparam("limit")).offset(bindparam("offset")), into=NamedBackup)


def _own(ctx: Ctx, kinds: Sequence[Kind]) -> dict[str, Any]:
    return {"account_id": ctx.account_id, "first_kind": kinds[0], "last_kind": kinds[-1]}


async def list_backups(
    ctx: Ctx, kinds: Sequence[Kind], page: Page, server_id: int | None = None
) -> tuple[int, list[NamedBackup]]:
    """How many of these kinds the account has, of all its servers or of one, and a page of them, newest first."""
    by_server, values = server_id is not None, {**_own(ctx, kinds), "server_id": server_id}
    count = await ctx.tx.first(_count(by_server), **values) or 0
    return count, await ctx.tx.all(_page(by_server), **values, limit=page.size, offset=page.offset)


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


async def lock_source(
    ctx: Ctx, kinds: Sequence[Kind], backup_id: int, field: str, faults: Faults
) -> BackupSource | None:
    """What a new server can be made from, locked so that it stays until that is written down; else adds a fault."""
    try:
        backup = await lock(ctx, kinds, backup_id)
    except NotFound:
        faults.add(field, NoSuchBackup(noun(kinds), backup_id))
        return None
    if backup.status != BackupStatus.COMPLETED:
        faults.add(field, NotCompleted(noun(kinds), backup_id, backup.status))
        return None
    return BackupSource(backup.id, backup.os_id, backup.disk_bytes, noun(kinds))


async def used_by(ctx: Ctx, backup_id: int) -> int | None:
    """The server of which it is being made, or which is being restored or made from it."""
    return await ctx.tx.first(_USED_BY, backup_id=backup_id)


async def count(ctx: Ctx, server_id: int, kind: Kind) -> int:
    """How many of a kind a server has or is getting."""
    return await ctx.tx.first(_COUNT_KIND, server_id=server_id, kind=kind) or 0


async def find(ctx: Ctx, backup_id: int) -> Backup | None:
    """A backup of any account, deleted or not."""
    return await ctx.tx.first(_ROW, backup_id=backup_id)


async def row(ctx: Ctx, backup_id: int) -> Backup:
    """The same, where it must exist."""
    backup = await find(ctx, backup_id)
    assert backup is not None
    return backup


async def latest(ctx: Ctx, server_id: int, target: str, key_id: str | None) -> Backup | None:
    """The one that a server's next one can build on: the last completed one on the same target, under the same key."""
    return await ctx.tx.first(_LATEST, server_id=server_id, target=target, key_id=key_id)


async def automatic_times(ctx: Ctx, server_id: int) -> list[int]:
    """When the automatic ones that a server has were made, in ms."""
    return await ctx.tx.all(_AUTOMATIC, server_id=server_id)


async def expired(ctx: Ctx) -> list[Backup]:
    """Those whose time is over."""
    return await ctx.tx.all(_EXPIRED, now_ms=ctx.now_ms)


async def garbage(ctx: Ctx) -> list[Backup]:
    """Those of which something may be left that nobody needs."""
    return await ctx.tx.all(_GARBAGE)


async def others(ctx: Ctx, backup: Backup) -> list[Backup]:
    """The server's other completed ones, deleted or not, that are not purged yet."""
    return await ctx.tx.all(_OTHERS, server_id=backup.server_id, backup_id=backup.id)


async def present(ctx: Ctx) -> list[Backup]:
    """All of which something may be on a target."""
    return await ctx.tx.all(_PRESENT)
