"""Transfer by server and month, counted until it is charged."""

from sqlalchemy import bindparam, insert, or_, select, update

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.metrics.models import Transfer, traffic

_t = traffic.c
_OF_MONTH = (_t.server_id == bindparam("server_id"), _t.month == bindparam("month"))
_EXISTS = Statement(select(_t.server_id).where(*_OF_MONTH), into=int)
_ADD = Statement(insert(traffic), ("server_id", "month", "received_bytes", "sent_bytes"))
_MORE = Statement(
    update(traffic)
    .where(*_OF_MONTH, or_(_t.charged_at_ms.is_(None), _t.charged_at_ms == 0))
    .values(received_bytes=_t.received_bytes + bindparam("received"), sent_bytes=_t.sent_bytes + bindparam("sent"))
)
_LOCK = Statement(
    select(_t.received_bytes, _t.sent_bytes).where(*_OF_MONTH, _t.charged_at_ms.is_(None)).with_for_update(),
    into=Transfer,
)
_MARK = Statement(update(traffic).where(*_OF_MONTH), ("charged_at_ms",))


async def add(ctx: Ctx, server_id: int, month: str, received: int, sent: int) -> None:
    """Add bytes that a server transferred in a month such as 2026-11, unless the month has been charged."""
    if await ctx.tx.run(_MORE, server_id=server_id, month=month, received=received, sent=sent):
        return
    if await ctx.tx.first(_EXISTS, server_id=server_id, month=month) is None:
        await ctx.tx.run(_ADD, server_id=server_id, month=month, received_bytes=received, sent_bytes=sent)


async def lock_uncharged(ctx: Ctx, server_id: int, month: str) -> Transfer | None:
    """A month's transfer that has not been charged yet, locked until the transaction ends."""
    return await ctx.tx.first(_LOCK, server_id=server_id, month=month)


async def mark_charged(ctx: Ctx, server_id: int, month: str) -> None:
    """Close a month: its transfer was charged, or was within the plan."""
    await ctx.tx.run(_MARK, server_id=server_id, month=month, charged_at_ms=ctx.now_ms)
