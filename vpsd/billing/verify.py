"""`vpsd billing verify`: recomputes every balance, and reports all differences.

It starts from the credits that were booked, the rentals (from when to when, on which plan), and the traffic, and checks
the charges and the ledger's usage rows.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Protocol

import msgspec
from sqlalchemy import bindparam, func, select

from vpsd.accounts import service as accounts
from vpsd.billing import ledger, prices
from vpsd.billing.models import Charge, Rental, account_sums, charges, rentals
from vpsd.billing.models import ledger as ledger_table
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.tables import total
from vpsd.metrics.models import traffic


class Life(Protocol):
    """When a server first worked, and when it was deleted for good."""

    @property
    def id(self) -> int: ...

    @property
    def provisioned_at_ms(self) -> int | None: ...

    @property
    def deleted_at_ms(self) -> int | None: ...


class _Credit(msgspec.Struct, frozen=True):
    account_id: int
    micros: int


class _Unbalanced(msgspec.Struct, frozen=True):
    id: int
    account_id: int
    amount_micros: int
    charged_micros: int


class _ChargedTransfer(msgspec.Struct, frozen=True):
    server_id: int
    month: str
    received_bytes: int
    sent_bytes: int


_l, _r, _t = ledger_table.c, rentals.c, traffic.c
_CREDITS = Statement(
    select(_l.account_id, total(_l.amount_micros).label("micros"))
    .where(_l.kind != bindparam("kind"))
    .group_by(_l.account_id),
    into=_Credit,
)
_RENTALS = Statement(
    select(rentals).where(_r.account_id == bindparam("account_id")).order_by(_r.server_id, _r.from_ms, _r.id),
    into=Rental,
)
_CHARGES = Statement(
    select(charges)
    .join_from(charges, ledger_table)
    .where(_l.account_id == bindparam("account_id"))
    .order_by(charges.c.server_id, charges.c.kind, charges.c.from_ms),
    into=Charge,
)
_UNBALANCED = Statement(
    select(_l.id, _l.account_id, _l.amount_micros, total(charges.c.amount_micros).label("charged_micros"))
    .select_from(ledger_table.outerjoin(charges, charges.c.ledger_id == _l.id))
    .where(_l.kind == bindparam("kind"))
    .group_by(_l.id, _l.account_id, _l.amount_micros)
    .having(_l.amount_micros != -func.coalesce(func.sum(charges.c.amount_micros), 0)),
    into=_Unbalanced,
)
_TRAFFIC = Statement(
    select(_t.server_id, _t.month, _t.received_bytes, _t.sent_bytes).where(
        _t.server_id.in_(select(_r.server_id).where(_r.account_id == bindparam("account_id"))),
        _t.charged_at_ms > 0,  # 0: from before there were prices
    ),
    into=_ChargedTransfer,
)


class BalanceCheck(msgspec.Struct, frozen=True):
    """An account's balance according to the ledger and as recomputed, in micros."""

    account: str
    balance_micros: int
    recomputed_micros: int
    problems: list[str]

    @property
    def difference_micros(self) -> int:
        """0 if the balance is correct."""
        return self.balance_micros - self.recomputed_micros


async def verify(ctx: Ctx, lives: Callable[[Ctx], Awaitable[Sequence[Life]]]) -> list[BalanceCheck]:
    """Recompute all balances; `lives` returns the servers of the context's account.

    The transaction has to be a snapshot, or charges that are made meanwhile look wrong.
    """
    credit = {found.account_id: found.micros for found in await ctx.tx.all(_CREDITS, kind="usage")}
    balances = await ledger.balances(ctx)
    unbalanced: dict[int, list[str]] = {}
    for row in await ctx.tx.all(_UNBALANCED, kind="usage"):
        text = f"ledger row {row.id} says {row.amount_micros}, and its charges come to {-row.charged_micros}"
        unbalanced.setdefault(row.account_id, []).append(text)
    for one in await account_sums.differences(ctx):
        unbalanced.setdefault(one.account_id, []).append(f"its sums are wrong (vpsd check --fix): {one} is missing")
    checks = []
    for account in await accounts.list_accounts(ctx):
        within = ctx.in_account(account.id)
        spent, problems = await _recompute(within, await lives(within))
        checks.append(
            BalanceCheck(
                account.name,
                balances.get(account.id, 0),
                credit.get(account.id, 0) - spent,
                [*unbalanced.get(account.id, []), *problems],
            )
        )
    return checks


async def _recompute(ctx: Ctx, lives: Sequence[Life]) -> tuple[int, list[str]]:
    own = {"account_id": ctx.account_id}
    of_server: dict[int, list[Rental]] = {}
    for rental in await ctx.tx.all(_RENTALS, **own):
        of_server.setdefault(rental.server_id, []).append(rental)
    made: dict[tuple[int, str], list[Charge]] = {}
    for entry in await ctx.tx.all(_CHARGES, **own):
        made.setdefault((entry.server_id, entry.kind), []).append(entry)
    spent, problems = 0, []
    for life in lives:
        had = _confirmed(of_server.get(life.id, []))
        if life.provisioned_at_ms is not None and life.deleted_at_ms is None and not had:
            problems.append(f"server {life.id} worked and was never rented")
        had = [rental for rental in had if rental.to_ms is None or rental.to_ms > rental.from_ms]
        if had:
            problems += _gaps(life.id, had, life.deleted_at_ms)
            spent += prices.cost(had, had[0].from_ms, _meter_at(had))
            problems += _overlaps(life.id, made.get((life.id, "server"), []), had)
    for moved in await ctx.tx.all(_TRAFFIC, **own):
        month = prices.month_named(moved.month)
        had = _confirmed(of_server.get(moved.server_id, []))
        over = prices.transfer_over(had, month, month.end_ms, moved.received_bytes, moved.sent_bytes)
        charged = [entry for entry in made.get((moved.server_id, "transfer"), []) if entry.from_ms == month.start_ms]
        if over and had and not charged:
            problems.append(f"server {moved.server_id}: its transfer of {moved.month} was not charged")
        spent += sum(prices.transfer_cost(over, entry.rate_micros) for entry in charged)  # at the price at that time
    return spent, problems


def _confirmed(had: list[Rental]) -> list[Rental]:
    return [rental for rental in had if rental.confirmed_at_ms is not None]


def _meter_at(had: list[Rental]) -> int:
    """Until when everything is charged."""
    moved = [rental.charged_until_ms for rental in had if rental.was_charged]
    return max(moved, default=had[0].from_ms)


def _gaps(server_id: int, had: list[Rental], deleted_at_ms: int | None) -> list[str]:
    """A server is rented without gaps until it is deleted."""
    problems = [
        f"server {server_id}: rental {earlier.id} ends at {earlier.to_ms}, and {later.id} begins at {later.from_ms}"
        for earlier, later in pairwise(had)
        if earlier.to_ms != later.from_ms
    ]
    if (had[-1].to_ms is None) != (deleted_at_ms is None):
        problems.append(f"server {server_id}: its rental and its life do not end together")
    return problems


def _overlaps(server_id: int, made: list[Charge], had: list[Rental]) -> list[str]:
    """Charges are consecutive, from the beginning to where the rental says."""
    ends = [had[0].from_ms, *(entry.to_ms for entry in made)]
    problems = [
        f"server {server_id}: charged from {entry.from_ms}, and before that until {end}"
        for end, entry in zip(ends, made, strict=False)
        if entry.from_ms != end or entry.to_ms <= entry.from_ms
    ]
    if any(rental.charged_until_ms != _charged_to(rental, made) for rental in had):
        problems.append(f"server {server_id}: the meter does not stand where its charges end")
    return problems


def _charged_to(rental: Rental, made: list[Charge]) -> int:
    """The end of a rental's last charge."""
    within = [
        entry.to_ms
        for entry in made
        if rental.from_ms <= entry.from_ms and (rental.to_ms is None or entry.from_ms < rental.to_ms)
    ]
    return max(within, default=rental.from_ms)
