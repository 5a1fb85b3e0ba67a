"""What an account's servers cost in a month, so far and as a forecast."""

import asyncio

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import and_, bindparam, literal, or_, select

from vpsd.billing import prices
from vpsd.billing.models import Rental, charges, rentals
from vpsd.billing.prices import Month
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.pages import Page, Part, Position
from vpsd.errors import Fault, Invalid
from vpsd.metrics.models import traffic

_AT_A_TIME = 200  # so many servers take milliseconds

_r, _t = rentals.c, traffic.c
_OWN = _r.account_id == bindparam("account_id")
_OWN_SERVERS = select(_r.server_id).where(_OWN)


class _ServerTransfer(msgspec.Struct, frozen=True):
    server_id: int
    received_bytes: int
    sent_bytes: int
    charged_at_ms: int | None


class _Charged(msgspec.Struct, frozen=True):
    server_id: int
    amount_micros: int


_IN_TIME = and_(
    _OWN,
    _r.confirmed_at_ms.is_not(None),
    _r.from_ms < bindparam("end_ms"),
    or_(_r.to_ms.is_(None), and_(_r.to_ms > bindparam("start_ms"), _r.to_ms > _r.from_ms)),
)
_RENTALS = Statement(select(rentals).where(_IN_TIME).order_by(_r.server_id, _r.from_ms, _r.id), into=Rental)
_TRAFFIC = Statement(
    select(_t.server_id, _t.received_bytes, _t.sent_bytes, _t.charged_at_ms).where(
        _t.server_id.in_(_OWN_SERVERS), _t.month == bindparam("month")
    ),
    into=_ServerTransfer,
)
_TRANSFERS = Statement(
    select(charges.c.server_id, charges.c.amount_micros).where(
        charges.c.server_id.in_(_OWN_SERVERS),
        charges.c.kind == literal("transfer"),
        charges.c.from_ms >= bindparam("start_ms"),
        charges.c.from_ms < bindparam("end_ms"),
    ),
    into=_Charged,
)


class ServerUsage(msgspec.Struct, frozen=True):
    """What a server costs in a month: so far, and at its end if nothing changes. Amounts in micros."""

    server_id: int
    plan_id: int
    price_monthly_micros: int
    milliseconds: int
    cost_micros: int
    forecast_micros: int
    transfer_bytes: int
    transfer_included_bytes: int  # by the month's end
    transfer_micros: int


class MonthUsage(msgspec.Struct, frozen=True):
    """What all servers cost in a month, including transfer, in micros: so far, and at its end if nothing changes."""

    month: str  # 2026-11
    cost_micros: int
    forecast_micros: int
    servers: Part[ServerUsage]  # in the order in which they were created


class NotAMonth(Fault, frozen=True):
    """A text is not a month."""

    def __str__(self) -> str:
        return "Give a month like 2026-11."


async def usage(ctx: Ctx, month: str | UnsetType, page: Page) -> MonthUsage:
    """What the account costs in a month such as 2026-11, by default the current one, and a page of its servers.

    Raises `Invalid` for a text that is not a month.
    """
    asked = prices.month_of(ctx.now_ms) if month is UNSET else _month(month)
    own = {"account_id": ctx.account_id}
    times = {"start_ms": asked.start_ms, "end_ms": asked.end_ms}
    of_server: dict[int, list[Rental]] = {}
    for rental in await ctx.tx.all(_RENTALS, **own, **times):
        of_server.setdefault(rental.server_id, []).append(rental)
    moved = {found.server_id: found for found in await ctx.tx.all(_TRAFFIC, **own, month=asked.name)}
    charged = {found.server_id: 0 for found in moved.values() if found.charged_at_ms is not None}
    charged |= {found.server_id: found.amount_micros for found in await ctx.tx.all(_TRANSFERS, **own, **times)}
    servers: list[ServerUsage] = []
    for server_id, had in of_server.items():
        if had[0].from_ms < ctx.now_ms:
            servers.append(_usage(ctx, asked, had, moved.get(server_id), charged.get(server_id)))
        if len(servers) % _AT_A_TIME == 0:
            await asyncio.sleep(0)  # let other tasks run
    after = page.after
    rest = servers[page.offset :] if after is None else [used for used in servers if used.server_id > after.id]
    transfer = sum(server.transfer_micros for server in servers)
    return MonthUsage(
        asked.name,
        transfer + sum(server.cost_micros for server in servers),
        transfer + sum(server.forecast_micros for server in servers),
        Part.of(page, len(servers), rest[: page.size + 1], lambda used: Position(used.server_id)),
    )


def _month(name: str) -> Month:
    try:
        month = prices.month_named(name)
    except ValueError:
        raise Invalid({"month": [NotAMonth()]}) from None
    if month.name != name:  # 2026-1
        raise Invalid({"month": [NotAMonth()]})
    return month


def _usage(
    ctx: Ctx, month: Month, had: list[Rental], moved: _ServerTransfer | None, transfer_charged: int | None
) -> ServerUsage:
    until_ms = min(ctx.now_ms, month.end_ms)
    spans = prices.price_spans(had)
    present = [rental for rental in had if rental.from_ms <= until_ms][-1]
    received, sent = (moved.received_bytes, moved.sent_bytes) if moved else (0, 0)
    over = prices.transfer_over(had, month, month.end_ms, received, sent)
    return ServerUsage(
        server_id=present.server_id,
        plan_id=present.plan_id,
        price_monthly_micros=present.price_monthly_micros,
        milliseconds=sum(
            max(0, min(until_ms, until_ms if r.to_ms is None else r.to_ms) - max(month.start_ms, r.from_ms))
            for r in had
        ),
        cost_micros=prices.accrued(spans, month, until_ms),
        forecast_micros=prices.accrued(spans, month, month.end_ms),
        transfer_bytes=max(received, sent),
        transfer_included_bytes=prices.accrued(prices.transfer_spans(had), month, month.end_ms),
        transfer_micros=prices.transfer_cost(over, ctx.settings.transfer_price_micros)
        if transfer_charged is None
        else transfer_charged,
    )
