"""The queues of hosts: of the moves that begin at one, a few are under way at once, and the others wait their turn."""

from sqlalchemy import bindparam, func, or_, select

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.lifecycle import Command
from vpsd.operations.models import Operation, operations

_c = operations.c
_mover = operations.alias()
_under_way = (
    select(func.count())
    .select_from(_mover)
    .where(_mover.c.host_id == _c.host_id, _mover.c.finished_at_ms.is_(None), _mover.c.started_at_ms.is_not(None))
    .scalar_subquery()
)

MAY_BEGIN = or_(_c.host_id.is_(None), _c.started_at_ms.is_not(None), _under_way < bindparam("most_moves"))
"""Whether an operation is no move, or has begun already, or there is a place for it in its host's queue."""

_OPEN = Statement(
    select(operations)
    .where(_c.finished_at_ms.is_(None), _c.host_id.is_not(None), _c.command == Command.MIGRATE)
    .order_by(_c.id),
    into=Operation,
)
_SINCE = Statement(
    select(operations)
    .where(_c.host_id == bindparam("host_id"), _c.command == Command.MIGRATE, _c.created_at_ms >= bindparam("since_ms"))
    .order_by(_c.id),
    into=Operation,
)


async def latest_moves(ctx: Ctx, host_id: int, since_ms: int) -> dict[int, Operation]:
    """By server, the latest of the moves from a host that were asked for since then."""
    return {move.server_id: move for move in await ctx.tx.all(_SINCE, host_id=host_id, since_ms=since_ms)}


async def open_moves(ctx: Ctx) -> list[Operation]:
    """The moves between hosts that wait or are under way, oldest first."""
    return await ctx.tx.all(_OPEN)
