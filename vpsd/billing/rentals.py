"""Rentals: from when to when a server is rented, on which plan, at which price. The caller has locked the server."""

from sqlalchemy import bindparam, case, insert, or_, select, update

from vpsd.billing.models import Rental, rentals
from vpsd.catalog.models import Plan
from vpsd.core import money
from vpsd.core.clock import iso_utc
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.events import service as events

_r = rentals.c
_OF_SERVER = (_r.account_id == bindparam("account_id"), _r.server_id == bindparam("server_id"))
_GOES_ON = or_(_r.to_ms.is_(None), _r.to_ms > bindparam("now_ms"))
_OPEN = Statement(insert(rentals), [column.name for column in _r if column.name not in ("id", "to_ms")])
_later = case((_r.from_ms < bindparam("worked_ms"), bindparam("worked_ms")), else_=_r.from_ms)
_CONFIRM = Statement(
    update(rentals)
    .where(
        *_OF_SERVER,
        _r.confirmed_at_ms.is_(None),
        or_(_r.to_ms.is_(None), _r.to_ms > bindparam("worked_ms")),
    )
    .values(from_ms=_later, charged_until_ms=_later, confirmed_at_ms=bindparam("now_ms"))
)
_GOING_ON = Statement(
    select(rentals).where(*_OF_SERVER, _GOES_ON).order_by(_r.from_ms, _r.id).with_for_update(), into=Rental
)
_END = Statement(
    update(rentals).where(_r.account_id == bindparam("account_id"), _r.id == bindparam("rental")), ("to_ms",)
)
_SERVERS_OF_PLAN = Statement(
    select(_r.server_id).where(_r.plan_id == bindparam("plan_id"), _GOES_ON).distinct().order_by(_r.server_id),
    into=int,
)


async def open_rental(ctx: Ctx, server_id: int, plan: Plan) -> None:
    """Rent a server from now on, at the plan's current price; it costs nothing until this is confirmed."""
    await _open(ctx, server_id, plan, ctx.now_ms, None)


async def confirm_rental(ctx: Ctx, server_id: int, from_ms: int) -> None:
    """The server works for the first time: it costs from when its creation was requested."""
    await ctx.tx.run(_CONFIRM, account_id=ctx.account_id, server_id=server_id, worked_ms=from_ms, now_ms=ctx.now_ms)


async def end_rental(ctx: Ctx, server_id: int) -> None:
    """End the rental now, or where it was charged beyond that; one that was to begin later never begins."""
    await _end_going_on(ctx, server_id, ctx.now_ms)


async def change_plan(ctx: Ctx, server_id: int, plan: Plan, at_ms: int) -> None:
    """Have a server cost a plan's current price from a time on, or from where it was charged beyond that."""
    ended = await _end_going_on(ctx, server_id, at_ms)
    from_ms = max([at_ms, *(rental.charged_until_ms for rental in ended if rental.was_charged)])
    await _open(ctx, server_id, plan, from_ms, ended[-1].confirmed_at_ms)


async def servers_to_reprice(ctx: Ctx, plan: Plan) -> list[int]:
    """The servers of all accounts that are rented on a plan; `schedule_price` decides whether anything changes."""
    return await ctx.tx.all(_SERVERS_OF_PLAN, plan_id=plan.id, now_ms=ctx.now_ms)


async def schedule_price(ctx: Ctx, server_id: int, plan: Plan) -> bool:
    """Have a server cost its plan's price from the day in the catalogue; returns whether anything changed.

    What was scheduled before and no longer applies is cancelled. Repeating it changes nothing.
    """
    now = ctx.now_ms
    going_on = await _going_on(ctx, server_id, now)
    # A clock that was set back does not undo what was already charged.
    present = [rental for rental in going_on if rental.from_ms <= now or rental.was_charged]
    later = [rental for rental in going_on if rental not in present and rental.to_ms is None]
    if not present or present[-1].plan_id != plan.id:
        return False
    wanted_ms = plan.price_from_ms if plan.price_from_ms is not None and plan.price_from_ms > now else None
    if present[-1].price_monthly_micros == plan.price_monthly_micros:
        wanted_ms = None
    if [(rental.from_ms, rental.price_monthly_micros) for rental in later] == (
        [] if wanted_ms is None else [(wanted_ms, plan.price_monthly_micros)]
    ):
        return False
    for rental in later:
        await _end(ctx, rental, rental.from_ms)  # it never begins
    if later:
        await _end(ctx, present[-1], None)
    if wanted_ms is not None:
        await change_plan(ctx, server_id, plan, wanted_ms)
    return True


async def record_price(ctx: Ctx, plan: Plan) -> None:
    """Record in the account's events what servers of a plan cost, and from which day."""
    begins = "" if plan.price_from_ms is None else f" from {iso_utc(plan.price_from_ms)}"
    detail = f"{plan.name}: {money.decimal(plan.price_monthly_micros)} a month{begins}"
    if plan.price_from_ms is None:
        detail = f"{plan.name}: the announced price is withdrawn"
    await events.record(ctx, "plan.price", "plan", plan.id, detail)


async def _open(ctx: Ctx, server_id: int, plan: Plan, from_ms: int, confirmed_at_ms: int | None) -> None:
    await ctx.tx.run(
        _OPEN,
        server_id=server_id,
        account_id=ctx.account_id,
        plan_id=plan.id,
        price_monthly_micros=plan.price_monthly_micros,
        bandwidth_gb=plan.bandwidth_gb,
        from_ms=from_ms,
        charged_until_ms=from_ms,
        confirmed_at_ms=confirmed_at_ms,
    )


async def _going_on(ctx: Ctx, server_id: int, at_ms: int) -> list[Rental]:
    return await ctx.tx.all(_GOING_ON, account_id=ctx.account_id, server_id=server_id, now_ms=at_ms)


async def _end_going_on(ctx: Ctx, server_id: int, at_ms: int) -> list[Rental]:
    ended = await _going_on(ctx, server_id, at_ms)
    for rental in ended:
        await _end(ctx, rental, max(at_ms, rental.from_ms, rental.charged_until_ms))
    return ended


async def _end(ctx: Ctx, rental: Rental, to_ms: int | None) -> None:
    await ctx.tx.run(_END, account_id=ctx.account_id, rental=rental.id, to_ms=to_ms)
