"""Base images where they lie, in a host's own pool or in one that several share: one at a time sends or removes one.

Two that write the same file tear it. The claim of an operation holds as long as its worker's lease does, so there is
nothing to renew; that of somebody who removes an image, until its time is over.

Who needs an image has its operation open first, and looks for a claim then; who removes one claims it first, and looks
for open operations then. So at least one of the two sees the other.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

import msgspec
from sqlalchemy import and_, bindparam, delete, exists, func, insert, or_, select, update

from vpsd.core.context import Ctx, Transactions
from vpsd.core.db import Statement, UniqueViolation
from vpsd.core.units import SECOND_MS
from vpsd.errors import DatabaseUnavailable
from vpsd.hosts.models import base_images
from vpsd.operations.models import operations
from vpsd.operations.service import Lease

_c, _o = base_images.c, operations.c
_ONE = and_(_c.place == bindparam("in_place"), _c.image_key == bindparam("key"))
_IS_SENT = exists().where(
    *(_o.id == _c.operation_id, _o.fence == _c.fence, _o.lease_until_ms >= bindparam("now_ms")),
    _o.finished_at_ms.is_(None),
)
_IS_CLAIMED = or_(func.coalesce(_c.claimed_until_ms, 0) >= bindparam("now_ms"), _IS_SENT)

_CLAIMED = Statement(select(_c.image_key).where(_ONE, _IS_CLAIMED), into=str)
_FIND = Statement(select(_c.image_key).where(_ONE), into=str)
_ADD = Statement(insert(base_images), ("place", "image_key"))
_CLAIM = Statement(update(base_images).where(_ONE, ~_IS_CLAIMED), ("operation_id", "fence", "claimed_until_ms"))
_RELEASE = Statement(
    update(base_images).where(
        _ONE,
        or_(
            and_(_c.operation_id == bindparam("by"), _c.fence == bindparam("by_fence")),
            _c.claimed_until_ms == bindparam("until_ms"),
        ),
    ),
    ("operation_id", "fence", "claimed_until_ms"),
)


class Unused(msgspec.Struct, frozen=True):
    """Since when an image is not needed where it lies."""

    image_key: str
    unused_since_ms: int | None


_OF_PLACE = Statement(
    select(_c.image_key, _c.unused_since_ms).where(_c.place == bindparam("in_place")).order_by(_c.image_key),
    into=Unused,
)
_SET_UNUSED = Statement(update(base_images).where(_ONE), ("unused_since_ms",))
_FORGET = Statement(delete(base_images).where(_ONE, ~_IS_CLAIMED))


async def is_claimed(ctx: Ctx, place: str, key: str) -> bool:
    """Whether somebody sends the image there, or removes it, now."""
    return await ctx.tx.first(_CLAIMED, in_place=place, key=key, now_ms=ctx.now_ms) is not None


@asynccontextmanager
async def claimed(
    transactions: Transactions, place: str, key: str, *, lease: Lease | None = None, seconds: int = 0
) -> AsyncIterator[bool]:
    """Have the image for oneself, as long as the lease holds or for some seconds; False where somebody else has it."""
    await _have_row(transactions, place, key)
    until_ms = None if lease is not None else transactions.clock.now_ms() + seconds * SECOND_MS
    by, fence = (None, None) if lease is None else (lease.operation_id, lease.fence)
    values = {"operation_id": by, "fence": fence, "claimed_until_ms": until_ms}
    async with transactions.write() as ctx:
        has_it = bool(await ctx.tx.run(_CLAIM, in_place=place, key=key, now_ms=ctx.now_ms, **values))
    try:
        yield has_it
    finally:
        if has_it:
            nobody = dict.fromkeys(values)
            with suppress(DatabaseUnavailable):  # it ends by itself
                async with transactions.write() as ctx:
                    mine = {"by": by, "by_fence": fence, "until_ms": until_ms}
                    await ctx.tx.run(_RELEASE, in_place=place, key=key, **mine, **nobody)


async def note(transactions: Transactions, place: str, key: str, *, needed: bool) -> int | None:
    """Put down whether an image that lies there is needed; since when it is not."""
    async with transactions.read() as ctx:
        known = {one.image_key: one.unused_since_ms for one in await ctx.tx.all(_OF_PLACE, in_place=place)}
    since_ms = known.get(key)
    if needed == (since_ms is None) and key in known:
        return since_ms
    await _have_row(transactions, place, key)
    async with transactions.write() as ctx:
        since_ms = None if needed else ctx.now_ms
        await ctx.tx.run(_SET_UNUSED, in_place=place, key=key, unused_since_ms=since_ms)
    return since_ms


async def forget_all_but(transactions: Transactions, place: str, keys: Collection[str]) -> None:
    """Only these images are there, as far as nobody sends one now."""
    async with transactions.read() as ctx:
        gone = [one.image_key for one in await ctx.tx.all(_OF_PLACE, in_place=place) if one.image_key not in keys]
    for key in gone:
        async with transactions.write() as ctx:
            await ctx.tx.run(_FORGET, in_place=place, key=key, now_ms=ctx.now_ms)


async def _have_row(transactions: Transactions, place: str, key: str) -> None:
    async with transactions.read() as ctx:
        if await ctx.tx.first(_FIND, in_place=place, key=key) is not None:
            return
    with suppress(UniqueViolation):  # another one was quicker
        async with transactions.write() as ctx:
            await ctx.tx.run(_ADD, place=place, image_key=key)
