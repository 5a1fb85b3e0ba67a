"""Which target it is: a target is known by the mark that lies on it, not by its path.

So a folder that is not mounted is no empty target, and one that has moved is the same as before. Only what was never
seen is marked by itself, when it is first used; whatever else an operator wants has to be said (`adopt`).
"""

import re
from collections.abc import Sequence

import msgspec
from sqlalchemy import bindparam, func, insert, select, update

from vpsd.backups.models import backup_targets, backups
from vpsd.backups.queries import IS_STORED
from vpsd.backups.repository import BackupRef, Repository
from vpsd.backups.targets import MARK, TargetNotThere
from vpsd.core.context import Ctx, Transactions
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.units import MINUTE_MS
from vpsd.errors import Fault, Invalid, NotFound, Unusable
from vpsd.servers.models import servers

_LOOKED_FOR = 20  # manifests that are looked for, newest first, before backups are said not to be there
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class BackupTarget(msgspec.Struct, frozen=True):
    """One row, field for column."""

    mark: str
    name: str
    location: str
    created_at_ms: int
    seen_at_ms: int

    @property
    def locations(self) -> list[str]:
        """Where it was seen, the last place first."""
        return self.location.splitlines()


class _Stored(msgspec.Struct, frozen=True):
    target: str
    server_uuid: str
    uuid: str


_t, _b = backup_targets.c, backups.c
_TARGETS = Statement(select(backup_targets).order_by(_t.created_at_ms, _t.mark), into=BackupTarget)
_ADD = Statement(insert(backup_targets), ("mark", "name", "location", "created_at_ms", "seen_at_ms"))
_ONE = update(backup_targets).where(_t.mark == bindparam("of_mark"))
_SET_SEEN = Statement(_ONE, ("location", "seen_at_ms"))
_SET_NAME = Statement(_ONE, ("name",))
_STORED = Statement(
    select(_b.target, servers.c.uuid.label("server_uuid"), _b.uuid)
    .join_from(backups, servers)
    .where(_b.target.is_not(None), _b.purged_at_ms.is_(None), IS_STORED)
    .order_by(_b.id.desc()),
    into=_Stored,
)
_COUNT = Statement(
    select(func.count())
    .select_from(backups)
    .where(_b.target == bindparam("target"), _b.purged_at_ms.is_(None), IS_STORED),
    into=int,
)
_SET_TARGET = Statement(update(backups).where(_b.target == bindparam("before")), ("target",))


class OddName(Fault, frozen=True):
    """A target cannot be called that."""

    def __str__(self) -> str:
        return "Use at most 63 letters, digits, dots, hyphens and underscores, and begin with a letter or digit."


class NameTaken(Fault, frozen=True):
    """Another target is called that."""

    name: str

    def __str__(self) -> str:
        return f"Another target is called {self.name}."


async def list_targets(ctx: Ctx) -> list[BackupTarget]:
    """All that were ever seen, oldest first."""
    return await read_targets(ctx.tx)


async def read_targets(tx: Tx) -> list[BackupTarget]:
    """The same, without a context."""
    return await tx.all(_TARGETS)


async def count_backups(ctx: Ctx, target: BackupTarget) -> int:
    """How many completed backups and snapshots lie on it."""
    return await ctx.tx.first(_COUNT, target=target.mark) or 0


async def rename(ctx: Ctx, target: str, name: str) -> None:
    """Call a target, given by its name or mark, something else; raises `NotFound`, `Invalid`."""
    known = await list_targets(ctx)
    found = next((one for one in known if target in (one.name, one.mark)), None)
    if found is None:
        raise NotFound("backup target", target)
    if not _NAME.fullmatch(name):
        raise Invalid({"name": [OddName()]})
    if any(one.name == name and one is not found for one in known):
        raise Invalid({"name": [NameTaken(name)]})
    await ctx.tx.run(_SET_NAME, of_mark=found.mark, name=name)


def last_at(known: Sequence[BackupTarget], location: str) -> BackupTarget | None:
    """The target that was seen at a place; of several, the one that was seen last."""
    return max((one for one in known if location in one.locations), key=lambda one: one.seen_at_ms, default=None)


async def identify(transactions: Transactions, repository: Repository, *, first_use: bool = False) -> str | None:
    """The mark of the target at the configured place; None where none was ever used there.

    With `first_use` one that was never seen is marked. Raises `TargetNotThere` where another target, or backups, should
    be, and what the target raises.
    """
    with repository.noting():
        mark = await _identify(transactions, repository, first_use)
    repository.status.status, repository.status.error = "unused" if mark is None else "ok", None
    return mark


async def _identify(transactions: Transactions, repository: Repository, first_use: bool) -> str | None:
    location = repository.location
    async with transactions.read() as ctx:
        known = await list_targets(ctx)  # before the mark: who marks it meanwhile puts that there first
    mark = await repository.read_mark()
    this = next((one for one in known if one.mark == mark), None)
    if this is not None:
        await _note_seen(transactions, this, location)
        return this.mark
    async with transactions.read() as ctx:
        stored = await ctx.tx.all(_STORED)
    marks = {one.mark for one in known}
    unmarked = [one for one in stored if one.target not in marks]  # by a vpsd that knew targets by their paths
    here = await _find_here(repository, unmarked)
    former = last_at(known, location)
    if former is not None:
        raise not_there(location, mark, former)
    if location not in here and any(one.target == location for one in unmarked):
        raise TargetNotThere(
            f"{location} holds none of the backups that were stored there: is it mounted? Nothing is stored or deleted "
            "there until they are back. If they are not to come back: vpsd backup target adopt"
        )
    if mark is None and not here and not first_use:
        return None
    mark = await repository.put_mark(mark or transactions.ids.uuid())
    try:
        await _add(transactions, mark, location, {*here, location})
    except UniqueViolation:  # somebody else was here first
        return await _identify(transactions, repository, first_use)
    return mark


def not_there(location: str, mark: str | None, former: BackupTarget) -> TargetNotThere:
    """What is at a place, marked or not, is not the target that was there."""
    what = "bears the mark of another target" if mark else f"has no {MARK}"
    return TargetNotThere(
        f"{location} {what}, and the target {former.name} was there: is it mounted? Nothing is stored or deleted there "
        "until it is back. If it is not to come back: vpsd backup target adopt"
    )


async def adopt(transactions: Transactions, repository: Repository, *, new: bool = False) -> str:
    """Take what is at the configured place as the target: its mark.

    One that has lost its mark is known by the backups on it, and gets the same again. Anything else has to be `new`;
    raises `Unusable`, and changes nothing, where it is not said to be.
    """
    location, mark = repository.location, await repository.read_mark()
    async with transactions.read() as ctx:
        known = await list_targets(ctx)
        stored = await ctx.tx.all(_STORED)
    marks = {one.mark for one in known}
    here = await _find_here(repository, stored)
    mark = mark or next((one for one in here if one in marks), None)
    if mark is None and not here and not new:
        raise Unusable(
            f"{location} has no {MARK}, and holds none of the backups that vpsd knows. Nothing was changed. Is it "
            "mounted? If it is to be a new, empty target: vpsd backup target adopt --new"
        )
    mark = await repository.put_mark(mark or transactions.ids.uuid())
    this = next((one for one in known if one.mark == mark), None)
    if this is None:
        # Those of this place that are not here stay what they were, on a target that has no mark.
        await _add(transactions, mark, location, set(here) - marks)
    else:
        await _note_seen(transactions, this, location)
    repository.status.status, repository.status.error = "ok", None
    return mark


async def _find_here(repository: Repository, stored: Sequence[_Stored]) -> list[str]:
    """The targets of backups, as their rows call them, that really lie at the configured place."""
    found: dict[str, list[BackupRef]] = {}
    for one in stored:
        found.setdefault(one.target, []).append(BackupRef(one.server_uuid, one.uuid))
    here = []
    for target, refs in found.items():
        for ref in refs[:_LOOKED_FOR]:
            if await repository.has_manifest(ref):
                here.append(target)
                break
    return here


async def _note_seen(transactions: Transactions, target: BackupTarget, location: str) -> None:
    now_ms = transactions.clock.now_ms()
    if target.locations[:1] == [location] and abs(now_ms - target.seen_at_ms) < MINUTE_MS:
        return
    lines = [location, *(line for line in target.locations if line != location)]
    async with transactions.write() as ctx:
        await ctx.tx.run(_SET_SEEN, of_mark=target.mark, location="\n".join(lines), seen_at_ms=now_ms)


async def _add(transactions: Transactions, mark: str, location: str, former: set[str]) -> None:
    """Know a target from now on, and the backups that are called after where it was by its mark."""
    async with transactions.write() as ctx:
        name = _free_name(location, {one.name for one in await list_targets(ctx)})
        now_ms = ctx.now_ms
        await ctx.tx.run(_ADD, mark=mark, name=name, location=location, created_at_ms=now_ms, seen_at_ms=now_ms)
        for before in sorted(former):
            await ctx.tx.run(_SET_TARGET, before=before, target=mark)


def _free_name(location: str, taken: set[str]) -> str:
    """The last part of where it is, with a number where that is taken."""
    last = re.split("[/ ]", location)[-1]
    name = re.sub("[^A-Za-z0-9._-]+", "-", last).strip("-._")[:50] or "target"
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(one for one in (name, *numbered) if one not in taken)
