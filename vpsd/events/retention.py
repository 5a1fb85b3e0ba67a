"""How long events are kept: what is older than the operator says is deleted, and nothing else can be."""

import msgspec
from sqlalchemy import bindparam, delete, func, insert, or_, select, update

from vpsd.core.clock import iso_utc
from vpsd.core.context import OPERATOR, Actor, Ctx, Transactions
from vpsd.core.db import Statement
from vpsd.core.units import DAY_MS
from vpsd.events import service as events
from vpsd.events.models import event_retention
from vpsd.events.models import events as table

_PAUSE_SECONDS = 0.05  # after each batch, for everybody else who writes: nothing else lets them
_BATCH = 1000  # in one transaction: others want to write, too


class _OfAccount(msgspec.Struct, frozen=True):
    account_id: int
    count: int


_OLD = table.c.at_ms < bindparam("before_ms")
_KEPT_FROM = event_retention.c.kept_from_ms
_RAISE = Statement(
    update(event_retention)
    .where(or_(bindparam("before_ms") > _KEPT_FROM, bindparam("now_ms") < _KEPT_FROM))  # by a clock that was ahead
    .values(kept_from_ms=bindparam("before_ms"))
)
_ADD = Statement(insert(event_retention), ("id", "kept_from_ms"))
_GET = Statement(select(_KEPT_FROM), into=int)
_COUNT = Statement(
    select(table.c.account_id, func.count().label("count")).where(_OLD).group_by(table.c.account_id), into=_OfAccount
)
_PRUNE = Statement(delete(table).where(table.c.id.in_(select(table.c.id).where(_OLD).limit(_BATCH))))


async def prune(transactions: Transactions, days: int, actor: Actor) -> int:
    """Delete all events that are older than so many days, and say how many they were.

    What the operator deletes is told by an event in each account that it concerns.
    """
    async with transactions.write(actor) as ctx:
        before_ms = ctx.now_ms - days * DAY_MS
        await _keep_from(ctx, before_ms)
        if actor is OPERATOR:
            for found in await ctx.tx.all(_COUNT, before_ms=before_ms):
                detail = f"{found.count} from before {iso_utc(before_ms)}"
                await events.record(ctx.in_account(found.account_id), "event.prune", detail=detail)
    deleted = 0
    while True:
        async with transactions.write(actor) as ctx:
            count = await ctx.tx.run(_PRUNE, before_ms=before_ms)
        deleted += count
        if count < _BATCH:
            return deleted
        await transactions.clock.sleep(_PAUSE_SECONDS)


async def _keep_from(ctx: Ctx, before_ms: int) -> None:
    if await ctx.tx.first(_GET) is None:
        await ctx.tx.run(_ADD, id=1, kept_from_ms=before_ms)
    await ctx.tx.run(_RAISE, before_ms=before_ms, now_ms=ctx.now_ms)
