"""Backups of which the target has lost or changed something.

What is damaged is a chunk, which any number of a server's backups may share, or a manifest. So a finding marks all that
it concerns. The next backup stores a damaged chunk anew, where it is, as long as the disk still has that content; with
that, or when it is found to be whole, the backups that have no other damage are completed ones again.
"""

import logging

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from vpsd.backups import queries
from vpsd.backups.models import BackupStatus, Kind, backups, damaged_chunks
from vpsd.backups.queries import StoredBackup, noun
from vpsd.backups.repository import ChunkRef, Damaged, Repository, VerifyResult, WrongKey
from vpsd.backups.targets import Missing
from vpsd.core.context import Ctx, Transactions
from vpsd.core.db import Statement
from vpsd.events import service as events
from vpsd.servers import queries as servers

log = logging.getLogger(__name__)

LOST = "Parts of it were lost or changed where it is kept."  # all that customers hear


class _Chunk(msgspec.Struct, frozen=True):
    owner: str
    digest: str


_d = damaged_chunks.c
_OF_SERVER = _d.server_id == bindparam("server_id")
_KNOWN = Statement(select(_d.owner, _d.digest).where(_OF_SERVER), into=_Chunk)
_ADD = Statement(insert(damaged_chunks), ("server_id", "owner", "digest", "found_at_ms"))
_FORGET = Statement(
    delete(damaged_chunks).where(_OF_SERVER, _d.owner == bindparam("of"), _d.digest == bindparam("named"))
)
_MARK = Statement(
    update(backups).where(
        backups.c.id == bindparam("backup_id"),
        backups.c.account_id == bindparam("account_id"),
        backups.c.status == bindparam("before"),
        backups.c.deleted_at_ms.is_(None),
    ),
    ("status", "error"),
)


async def chunks(ctx: Ctx, server_id: int) -> frozenset[ChunkRef]:
    """Those of a server's backups that are known to be damaged."""
    return frozenset((one.owner, one.digest) for one in await ctx.tx.all(_KNOWN, server_id=server_id))


async def verify(transactions: Transactions, repository: Repository, backup: StoredBackup) -> VerifyResult:
    """Read everything that a backup needs, and mark it by what is found.

    Raises `Damaged`, or `Missing` for a manifest that is gone; and `WrongKey`, `TargetNotThere`, which are no damage.
    """
    try:
        read = await repository.verify(backup.ref)
    except (Damaged, Missing) as error:
        await repository.check_mark(backup.target)  # what is not mounted is not damaged
        await note(transactions, repository, backup.server_id, backup.target, error)
        raise
    whole = (await repository.read_manifest(backup.ref)).referenced_chunks()
    await record(transactions, repository, backup.server_id, backup.target, whole=frozenset(whole))
    return read


async def note(
    transactions: Transactions, repository: Repository, server_id: int, target: str | None, error: Damaged | Missing
) -> None:
    """Remember what somebody who read or made a backup of a server has met, and mark the backups that it concerns."""
    log.error("a backup of server %s is damaged: %s", server_id, error)
    found = error.chunks if isinstance(error, Damaged) else frozenset()
    await record(transactions, repository, server_id, target, damaged=found, look=True)


async def record(
    transactions: Transactions,
    repository: Repository,
    server_id: int,
    target: str | None,
    *,
    damaged: frozenset[ChunkRef] = frozenset(),
    whole: frozenset[ChunkRef] = frozenset(),
    look: bool = False,
) -> None:
    """Remember which chunks are damaged, and which are not any more; mark the backups on that target accordingly.

    `look`: also where nothing of that is new.
    """
    async with transactions.write() as ctx:
        await servers.lock(ctx, server_id)  # whoever finds the same waits
        before = await chunks(ctx, server_id)
        new, mended = damaged - before, (before & whole) - damaged
        named = [{"server_id": server_id, "of": owner, "named": digest} for owner, digest in mended]
        await ctx.tx.many(_FORGET, named)
        now_ms = ctx.now_ms
        rows = [{"server_id": server_id, "owner": o, "digest": d, "found_at_ms": now_ms} for o, d in sorted(new)]
        await ctx.tx.many(_ADD, rows)
        stored = await queries.on_target(ctx, server_id, target)
    if new or mended or look or any(one.status == BackupStatus.DAMAGED for one in stored):
        for one in stored:
            await _review(transactions, repository, one, (before | new) - mended)


async def _review(
    transactions: Transactions, repository: Repository, backup: StoredBackup, damaged: frozenset[ChunkRef]
) -> None:
    """Mark a backup as what it is."""
    try:
        is_damaged = bool((await repository.read_manifest(backup.ref)).referenced_chunks() & damaged)
    except (Damaged, Missing):
        await repository.check_mark(backup.target)
        is_damaged = True
    except WrongKey:
        return  # nobody can tell without its key
    status = BackupStatus.DAMAGED if is_damaged else BackupStatus.COMPLETED
    if status == backup.status or (not is_damaged and backup.status == BackupStatus.IN_PROGRESS):
        return
    what = noun((Kind(backup.kind),))
    async with transactions.write() as ctx:
        error = LOST if is_damaged else None
        own = ctx.in_account(backup.account_id)
        named = {"account_id": own.account_id, "backup_id": backup.id}
        if await ctx.tx.run(_MARK, **named, before=backup.status, status=status, error=error):
            action = f"{what}.{'damaged' if is_damaged else 'mended'}"
            await events.record(own, action, what, backup.id, f"of server {backup.server_id}")
