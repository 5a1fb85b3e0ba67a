"""Backups, as workers read and write them: no account in between."""

from sqlalchemy import and_, bindparam, exists, func, insert, or_, select, update

from vpsd.backups.models import Backup, Kind, State, backups
from vpsd.core.db import Statement, Tx
from vpsd.operations.models import operations
from vpsd.operations.service import MOVES_DISKS
from vpsd.servers.lifecycle import Command
from vpsd.servers.models import Server, servers

_c = backups.c


def _set(*columns: str) -> Statement:
    return Statement(update(backups).where(_c.id == bindparam("the_id")), columns)


_BY_ID = Statement(select(backups).where(_c.id == bindparam("the_id")))
_LOCKED = Statement(select(backups).where(_c.id == bindparam("the_id")).with_for_update())
_SHOWN = _c.deleted_at_ms.is_(None)
_WHOLE = and_(_SHOWN, _c.status == State.COMPLETED)
_LATEST = Statement(
    select(backups)
    .where(
        _c.server_id == bindparam("the_server"),
        _WHOLE,
        _c.target == bindparam("the_target"),
        _c.key_id.is_not_distinct_from(bindparam("the_key")),
    )
    .order_by(_c.completed_at_ms.desc(), _c.id.desc())
    .limit(1)
    .with_for_update()  # whoever deletes it meanwhile waits until it is noted as a parent, and then lets it lie
)
_ADD = Statement(
    insert(backups).returning(backups),
    ("uuid", "account_id", "server_id", "kind", "name", "description", "status", "os_id", "disk", "created_at_ms"),
)
_COUNT = Statement(
    select(func.count())
    .select_from(backups)
    .where(_c.server_id == bindparam("the_server"), _c.kind == bindparam("the_kind"), _SHOWN, _c.status != State.FAILED)
)
_AUTOMATIC = Statement(
    select(_c.created_at_ms).where(_c.server_id == bindparam("the_server"), _c.kind == Kind.AUTOMATIC, _WHOLE)
)
_SET_PARENT = _set("parent_id")
_SET_COPIED = _set(
    *("os_id", "disk", "base", "kernel_cmdline", "incremental", "frozen", "frozen_ms", "target", "key_id"),
)
_SET_STORED = _set("disk_bytes", "size_bytes", "sent_bytes")
_SET_COMPLETED = Statement(
    update(backups)
    .where(_c.id == bindparam("the_id"), _c.status == State.IN_PROGRESS)
    .values(status=State.COMPLETED, completed_at_ms=bindparam("b_now"), expires_at_ms=bindparam("b_expires"))
)
_SET_FAILED = Statement(
    update(backups)
    .where(_c.id == bindparam("the_id"), _c.status == State.IN_PROGRESS)
    .values(status=State.FAILED, error=bindparam("b_error"), expires_at_ms=bindparam("b_expires"))
)
_DELETE_FAILED = Statement(
    update(backups)
    .where(
        *(_c.server_id == bindparam("the_server"), _c.kind == bindparam("the_kind"), _SHOWN, _c.status == State.FAILED)
    )
    .values(deleted_at_ms=bindparam("b_now"))
)
_DELETE = Statement(
    update(backups).where(_c.id == bindparam("the_id"), _SHOWN).values(deleted_at_ms=bindparam("b_now"))
)
_EXPIRED = Statement(
    select(backups).where(_SHOWN, _c.status != State.IN_PROGRESS, _c.expires_at_ms <= bindparam("the_now"))
)
_child = backups.alias()
# What is left of these lies around: those that nobody sees any more, and those that failed. One from which another is
# being made stays until that one is done.
_TO_SWEEP = Statement(
    select(backups)
    .where(
        _c.gone_at_ms.is_(None),
        or_(_c.deleted_at_ms.is_not(None), _c.status == State.FAILED),
        _c.status != State.IN_PROGRESS,
        ~exists().where(_child.c.parent_id == _c.id, _child.c.status == State.IN_PROGRESS),
    )
    .order_by(_c.id)
)
_OTHERS = Statement(
    select(backups)
    .where(
        _c.server_id == bindparam("the_server"),
        _c.id != bindparam("the_id"),
        _c.gone_at_ms.is_(None),
        _c.status == State.COMPLETED,
    )
    .order_by(_c.id)
)
_SET_GONE = _set("gone_at_ms")
_THERE = Statement(select(backups).where(_c.gone_at_ms.is_(None)).order_by(_c.id))
_IN_USE = Statement(
    select(servers.c.id)
    .where(
        or_(
            and_(
                servers.c.source_backup_id == bindparam("the_id"),
                servers.c.provisioned_at_ms.is_(None),
                servers.c.deleted_at_ms.is_(None),
            ),
            exists().where(
                operations.c.server_id == servers.c.id,
                operations.c.finished_at_ms.is_(None),
                or_(
                    and_(
                        operations.c.argument == bindparam("the_id"),
                        or_(*(operations.c.command == command for command in MOVES_DISKS)),
                    ),
                    and_(
                        operations.c.successor_argument == bindparam("the_id"),
                        operations.c.successor == Command.RESTORE,
                    ),
                ),
            ),
        )
    )
    .limit(1)
)


async def get(tx: Tx, backup_id: int) -> Backup | None:
    """A backup, deleted or not."""
    return await tx.first(Backup, _BY_ID, the_id=backup_id)


async def lock(tx: Tx, backup_id: int) -> Backup | None:
    """The same, kept from others until the transaction ends."""
    return await tx.first(Backup, _LOCKED, the_id=backup_id)


async def add(
    tx: Tx, uuid: str, server: Server, kind: Kind, name: str | None, description: str | None, now_ms: int
) -> Backup:
    """Write down that one is to be made."""
    backup = await tx.first(
        Backup,
        _ADD,
        uuid=uuid,
        account_id=server.account_id,
        server_id=server.id,
        kind=kind,
        name=name,
        description=description,
        status=State.IN_PROGRESS,
        os_id=server.os_id,
        disk=server.disk,
        created_at_ms=now_ms,
    )
    assert backup is not None
    return backup


async def count(tx: Tx, server_id: int, kind: Kind) -> int:
    """How many of a kind a server has, and is having made."""
    return await tx.first(int, _COUNT, the_server=server_id, the_kind=kind) or 0


async def latest(tx: Tx, server_id: int, target: str, key_id: str | None) -> Backup | None:
    """The one that a server's next one can build on: the last whole one in the same place, under the same key."""
    return await tx.first(Backup, _LATEST, the_server=server_id, the_target=target, the_key=key_id)


async def automatic_times(tx: Tx, server_id: int) -> list[int]:
    """When the automatic ones that a server has were made, in ms."""
    return await tx.all(int, _AUTOMATIC, the_server=server_id)


async def set_parent(tx: Tx, backup_id: int, parent_id: int | None) -> None:
    """It is to hold what has changed since another one, which from then on stays until this one is done."""
    await tx.run(_SET_PARENT, the_id=backup_id, parent_id=parent_id)


async def set_copied(tx: Tx, backup_id: int, **values: object) -> None:
    """The disk was copied, in this way."""
    await tx.run(_SET_COPIED, the_id=backup_id, **values)


async def set_stored(tx: Tx, backup_id: int, *, disk_bytes: int, size_bytes: int, sent_bytes: int) -> None:
    """It is on the target, whole."""
    sizes = {"disk_bytes": disk_bytes, "size_bytes": size_bytes, "sent_bytes": sent_bytes}
    await tx.run(_SET_STORED, the_id=backup_id, **sizes)


async def set_completed(tx: Tx, backup_id: int, now_ms: int, expires_at_ms: int | None) -> None:
    """It can be had."""
    await tx.run(_SET_COMPLETED, the_id=backup_id, b_now=now_ms, b_expires=expires_at_ms)


async def set_failed(tx: Tx, backup_id: int, error: str, expires_at_ms: int) -> None:
    """It came to nothing; shown until it expires."""
    await tx.run(_SET_FAILED, the_id=backup_id, b_error=error, b_expires=expires_at_ms)


async def delete(tx: Tx, backup_id: int, now_ms: int) -> None:
    """Nobody sees it any more; what is left of it is swept."""
    await tx.run(_DELETE, the_id=backup_id, b_now=now_ms)


async def delete_failed(tx: Tx, server_id: int, kind: Kind, now_ms: int) -> None:
    """Nobody has to see any more that the last try failed: there is a new one."""
    await tx.run(_DELETE_FAILED, the_server=server_id, the_kind=kind, b_now=now_ms)


async def user_of(tx: Tx, backup_id: int) -> int | None:
    """The server of which it is being made, or which is being restored or made from it."""
    return await tx.first(int, _IN_USE, the_id=backup_id)


async def expired(tx: Tx, now_ms: int) -> list[Backup]:
    """Those whose time is over."""
    return await tx.all(Backup, _EXPIRED, the_now=now_ms)


async def to_sweep(tx: Tx) -> list[Backup]:
    """Those of which something may be left that nobody needs."""
    return await tx.all(Backup, _TO_SWEEP)


async def others(tx: Tx, backup: Backup) -> list[Backup]:
    """The server's other whole ones, deleted or not, of which nothing was swept yet."""
    return await tx.all(Backup, _OTHERS, the_server=backup.server_id, the_id=backup.id)


async def set_gone(tx: Tx, backup_id: int, now_ms: int) -> None:
    """Nothing of it is left."""
    await tx.run(_SET_GONE, the_id=backup_id, gone_at_ms=now_ms)


async def there(tx: Tx) -> list[Backup]:
    """All of which something may be somewhere."""
    return await tx.all(Backup, _THERE)
