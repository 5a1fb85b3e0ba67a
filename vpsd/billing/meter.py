"""Charges rentals and transfer. It may run twice, late, or on two workers at once: everything is charged once.

Each function is called in a transaction of its own: the ledger's row, its charges and how far a rental has been charged
change together. Rentals that another worker has locked are skipped, and a unique index prevents charging twice.
"""

from collections.abc import Iterator

import msgspec
from sqlalchemy import and_, bindparam, func, insert, or_, select, update

from vpsd.billing import ledger, prices
from vpsd.billing.models import Charge, Rental, charges, rentals, uncharged
from vpsd.billing.prices import Month
from vpsd.core.clock import iso_utc, month_name
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.units import GIB, HOUR_MS, MINUTE_MS
from vpsd.metrics import traffic
from vpsd.metrics.models import traffic as traffic_table

BATCH = 1000  # rentals or months of transfer per transaction; more would keep requests waiting

_MOST_MS = 4 * HOUR_MS  # of a rental in one batch, when many hours are overdue
_LATEST_SAMPLE_MS = 10 * MINUTE_MS  # a month's transfer is complete this long after its end


class DueTransfer(msgspec.Struct, frozen=True):
    """A server's month whose transfer is complete and has not been charged."""

    server_id: int
    month: str
    account_id: int


class _Due(msgspec.Struct, frozen=True):
    account_id: int
    rentals: int


_r, _t = rentals.c, traffic_table.c
_DUE = and_(
    uncharged,
    or_(
        _r.charged_until_ms < bindparam("hour_ms"),
        and_(_r.to_ms <= bindparam("now_ms"), _r.charged_until_ms < _r.to_ms),
    ),
)
_DUE_ACCOUNTS = Statement(
    select(_r.account_id, func.count().label("rentals")).where(_DUE).group_by(_r.account_id).order_by(_r.account_id),
    into=_Due,
)
_AMONG = and_(_r.account_id >= bindparam("first"), _r.account_id <= bindparam("last"))
_DUE_RENTALS = Statement(
    select(rentals)
    .where(_AMONG, _DUE)
    .order_by(_r.account_id, _r.server_id, _r.from_ms)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True),
    into=Rental,
)
# A server whose plan or price changed has several rentals in a month; they share the month's cap.
_ENDED = Statement(
    select(rentals)
    .where(_AMONG, _r.to_ms > bindparam("since_ms"), _r.confirmed_at_ms.is_not(None))
    .order_by(_r.server_id, _r.from_ms, _r.id),
    into=Rental,
)
_ADD_CHARGE = Statement(insert(charges), [column.name for column in charges.c if column.name != "id"])
_MOVE = Statement(update(rentals).where(_r.id == bindparam("rental")), ("charged_until_ms",))
_CONFIRMED = Statement(
    select(rentals)
    .where(
        _r.account_id == bindparam("account_id"),
        _r.server_id == bindparam("server_id"),
        _r.confirmed_at_ms.is_not(None),
    )
    .order_by(_r.from_ms, _r.id),
    into=Rental,
)
_DUE_TRANSFERS = Statement(
    select(_t.server_id, _t.month, func.min(_r.account_id).label("account_id"))
    .join_from(traffic_table, rentals, _r.server_id == _t.server_id)
    .where(
        _t.charged_at_ms.is_(None),
        or_(
            _t.server_id > bindparam("after_server"),
            and_(_t.server_id == bindparam("after_server"), _t.month > bindparam("after_month")),
        ),
    )
    .group_by(_t.server_id, _t.month)
    # A server all of whose rentals have an end is deleted.
    .having(or_(_t.month < bindparam("month"), func.count(_r.to_ms) == func.count()))
    .order_by(_t.server_id, _t.month)
    .limit(bindparam("limit")),
    into=DueTransfer,
)


async def due(ctx: Ctx) -> list[list[int]]:
    """The accounts to charge now, in order, grouped so that each group has about a batch of rentals."""
    return list(_batches(await ctx.tx.all(_DUE_ACCOUNTS, **_times(ctx.now_ms))))


def _batches(found: list[_Due]) -> Iterator[list[int]]:
    ids: list[int] = []
    together = 0
    for account in found:
        ids.append(account.account_id)
        together += account.rentals
        if together >= BATCH or account is found[-1]:
            yield ids
            ids, together = [], 0


def _times(now_ms: int) -> dict[str, int]:
    return {"hour_ms": now_ms // HOUR_MS * HOUR_MS, "now_ms": now_ms}


async def charge_accounts(ctx: Ctx, first: int, last: int, now_ms: int) -> set[int]:
    """Charge a batch of what is due at a time, of the accounts with ids from `first` to `last`.

    Returns the accounts that were charged; none once everything is charged or locked by another worker.
    """
    among = {"first": first, "last": last}
    found = await ctx.tx.all(_DUE_RENTALS, **among, **_times(now_ms), limit=BATCH)
    if not found:
        return set()
    since_ms = prices.month_of(min(rental.charged_until_ms for rental in found)).start_ms
    of_server: dict[int, list[Rental]] = {}
    for rental in await ctx.tx.all(_ENDED, **among, since_ms=since_ms):
        of_server.setdefault(rental.server_id, []).append(rental)
    of_account: dict[int, list[Charge]] = {}
    moves = []
    unfinished: set[int] = set()  # servers with an earlier rental that has not been charged to its end
    for rental in found:
        if rental.server_id in unfinished:
            continue
        alone = [rental]
        others = of_server.get(rental.server_id, alone)
        if rental not in others:  # a rental that continues comes after those that have ended
            others = [*others, rental]
        until_ms = min(prices.charge_until(rental, now_ms), rental.charged_until_ms + _MOST_MS)
        if until_ms != rental.to_ms:
            unfinished.add(rental.server_id)
        moves.append({"rental": rental.id, "charged_until_ms": until_ms})
        of_account.setdefault(rental.account_id, []).extend(prices.server_charges(rental, others, until_ms))
    for account_id, made in of_account.items():
        await _book(ctx.in_account(account_id), made, _period(made))
    await ctx.tx.many(_MOVE, moves)
    return set(of_account)


def _period(made: list[Charge]) -> str:
    servers_charged = len({entry.server_id for entry in made})
    from_ms, to_ms = min(entry.from_ms for entry in made), max(entry.to_ms for entry in made)
    noun = "server" if servers_charged == 1 else "servers"
    return f"{servers_charged} {noun}, {iso_utc(from_ms)} to {iso_utc(to_ms)}"


async def _book(ctx: Ctx, made: list[Charge], description: str) -> None:
    ledger_id = await ledger.add_entry(ctx, "usage", -sum(entry.amount_micros for entry in made), description)
    await ctx.tx.many(_ADD_CHARGE, [{**msgspec.structs.asdict(entry), "ledger_id": ledger_id} for entry in made])


async def due_transfers(ctx: Ctx, now_ms: int, after: DueTransfer | None = None) -> list[DueTransfer]:
    """At most `BATCH` transfers to charge: of past months, and of deleted servers."""
    return await ctx.tx.all(
        _DUE_TRANSFERS,
        month=month_name(now_ms - _LATEST_SAMPLE_MS),
        after_server=after.server_id if after else 0,
        after_month=after.month if after else "",
        limit=BATCH,
    )


async def charge_transfer(ctx: Ctx, transfer: DueTransfer) -> bool:
    """Charge transfer beyond the plan; returns whether there was any that another worker has not charged meanwhile."""
    ctx = ctx.in_account(transfer.account_id)
    server_id, month = transfer.server_id, prices.month_named(transfer.month)
    moved = await traffic.lock_uncharged(ctx, server_id, month.name)
    if moved is None:
        return False
    had = await ctx.tx.all(_CONFIRMED, account_id=ctx.account_id, server_id=server_id)
    over = prices.transfer_over(had, month, month.end_ms, moved.received_bytes, moved.sent_bytes) if had else 0
    if over:
        text = f"transfer of server {server_id} in {month.name}: {over / GIB:.3f} GB beyond its plan"
        await _book(ctx, [_transfer_charge(had, month, over, ctx.settings.transfer_price_micros)], text)
    await traffic.mark_charged(ctx, server_id, month.name)
    return over > 0


def _transfer_charge(had: list[Rental], month: Month, over: int, price_micros: int) -> Charge:
    began = [rental for rental in had if rental.to_ms is None or rental.to_ms > rental.from_ms] or had
    present = ([rental for rental in began if rental.from_ms < month.end_ms] or began)[-1]
    return Charge(
        id=0,
        ledger_id=0,
        server_id=present.server_id,
        plan_id=present.plan_id,
        kind="transfer",
        from_ms=month.start_ms,
        to_ms=month.end_ms if began[-1].to_ms is None else min(month.end_ms, began[-1].to_ms),
        quantity=over,
        rate_micros=price_micros,
        amount_micros=prices.transfer_cost(over, price_micros),
    )
