"""Times of operations after the clock was set."""

from sqlalchemy import and_, bindparam, or_, update

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.jumps import Jump
from vpsd.operations.deadlines import DEADLINE
from vpsd.operations.models import operations
from vpsd.operations.service import LEASE_SECONDS, LONGEST_PAUSE_SECONDS

_NEVER_MS = 1 << 62

_c = operations.c
_UNFINISHED = _c.finished_at_ms.is_(None)
_OPEN = and_(_UNFINISHED, _c.waits_for.is_(None))

_CUT_LEASES = Statement(
    update(operations).where(_OPEN, _c.lease_until_ms > bindparam("longest_ms")), ("lease_until_ms",)
)
_CUT_PAUSES = Statement(update(operations).where(_UNFINISHED, _c.run_at_ms > bindparam("longest_ms")), ("run_at_ms",))
_RENEW_DEADLINES = Statement(
    update(operations)
    .where(_UNFINISHED, or_(_c.deadline_at_ms > bindparam("before_ms"), _c.deadline_at_ms > DEADLINE))
    .values(deadline_at_ms=DEADLINE)
)


async def set_times_right(ctx: Ctx, jump: Jump | None) -> None:
    """Have no open operation wait for, or be given up by, a time that the clock was wrong about.

    Whoever had time left when the clock was set gets all of its time anew. Without a jump, at the start of a process:
    only times that lie further ahead than they can are set right.
    """
    now_ms = ctx.now_ms
    lease_ms = LEASE_SECONDS * 1000
    await ctx.tx.run(_CUT_LEASES, longest_ms=now_ms + lease_ms, lease_until_ms=now_ms + lease_ms)
    was_set_back = jump is not None and jump.seconds < 0
    waits_until_ms = now_ms if was_set_back else now_ms + LONGEST_PAUSE_SECONDS * 1000
    await ctx.tx.run(_CUT_PAUSES, longest_ms=waits_until_ms, run_at_ms=now_ms)
    await ctx.tx.run(_RENEW_DEADLINES, now_ms=now_ms, before_ms=_NEVER_MS if jump is None else jump.before_ms)
