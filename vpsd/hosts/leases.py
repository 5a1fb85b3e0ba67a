"""Which process looks after which host: a lease in the host's row, renewed in one statement for all that a process has.

Two that look after the same host for a moment do no harm: what they write is compared with what they saw. The lease
keeps a host from being asked by everybody, and a dead one from stalling more than the task that is its own.
"""

import msgspec
from sqlalchemy import CTE, bindparam, func, or_, select, update

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.units import SECOND_MS
from vpsd.hosts.models import Host, hosts

LEASE_SECONDS = 15


class _Other(msgspec.Struct, frozen=True):
    """Another process, and how many hosts it looks after."""

    owner: str
    hosts: int


_c = hosts.c
_PRESENT = _c.removed_at_ms.is_(None)
_MINE = _c.lease_owner == bindparam("owner")
_LIVE = _c.lease_until_ms >= bindparam("now_ms")
_FREE = or_(
    _c.lease_until_ms.is_(None),
    _c.lease_until_ms < bindparam("now_ms"),
    _c.lease_until_ms > bindparam("longest_ms"),  # by a clock that was ahead
)

# Several hosts are locked in the order of their ids, by everybody: who moves a server locks two (`hosts.service.lock`).
_mine = select(_c.id).where(_MINE).order_by(_c.id).with_for_update(key_share=True)
_RENEW = Statement(
    update(hosts).where(_c.id.in_(_mine.where(_LIVE, _PRESENT))).returning(hosts), ("lease_until_ms",), into=Host
)
_hosts = func.count().label("hosts")
_OTHERS = Statement(
    select(_c.lease_owner.label("owner"), _hosts)
    .where(_c.lease_owner != bindparam("owner"), _LIVE, _PRESENT)
    .group_by(_c.lease_owner)
    .order_by(_hosts.desc(), _c.lease_owner),
    into=_Other,
)
_COUNT = Statement(select(func.count()).select_from(hosts).where(_PRESENT), into=int)
_free = (
    select(_c.id)
    .where(_PRESENT, _FREE)
    .order_by(_c.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
    .cte("free")  # looked for once; a subquery PostgreSQL may look at anew for each row, and then all are taken
)
_spare = (
    select(_c.id)
    .where(_PRESENT, _LIVE, _c.lease_owner == bindparam("other"))
    .order_by(_c.id.desc())
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
    .cte("spare")
)


def _have(which: CTE) -> Statement[Host]:
    lease = {"lease_owner": bindparam("owner"), "lease_until_ms": bindparam("until_ms"), "fence": _c.fence + 1}
    return Statement(update(hosts).where(_c.id.in_(select(which.c.id))).values(lease).returning(hosts), into=Host)


_CLAIM, _TAKE = _have(_free), _have(_spare)
_RELEASE = Statement(update(hosts).where(_c.id.in_(_mine)).values(lease_owner=None, lease_until_ms=None))
_END_LEASES = Statement(update(hosts).values(lease_owner=None, lease_until_ms=None))


async def keep(ctx: Ctx, owner: str) -> list[Host]:
    """The hosts that this process looks after: those that it had, and its share of those that nobody has now.

    One that has fewer than its share takes what others have beyond theirs: a process that joins is given its part. They
    notice when they renew; a host that two look after until then comes to no harm.
    """
    until_ms = ctx.now_ms + LEASE_SECONDS * SECOND_MS
    kept = await ctx.tx.all(_RENEW, owner=owner, now_ms=ctx.now_ms, lease_until_ms=until_ms)
    others = await ctx.tx.all(_OTHERS, owner=owner, now_ms=ctx.now_ms)
    count, processes = await ctx.tx.first(_COUNT) or 0, 1 + len(others)
    least, most = count // processes, -(-count // processes)
    values = {"owner": owner, "until_ms": until_ms, "now_ms": ctx.now_ms}
    if len(kept) < most:
        kept += await ctx.tx.all(_CLAIM, **values, longest_ms=until_ms, limit=most - len(kept))
    for other in others:
        spare = max(min(other.hosts - share, share - len(kept)) for share in (least, most))
        if spare > 0:
            kept += await ctx.tx.all(_TAKE, **values, other=other.owner, limit=spare)
    return kept


async def release(ctx: Ctx, owner: str) -> None:
    """Let others look after the hosts of this process at once: it ends."""
    await ctx.tx.run(_RELEASE, owner=owner)


async def end_all(ctx: Ctx) -> None:
    """End the leases of processes that are known to be dead."""
    await ctx.tx.run(_END_LEASES)
