"""`vpsd billing verify`: recomputes every balance from what happened, and tells every difference.

What happened is: credits that were booked, rentals (from when to when, on which plan), and traffic. The charges and the
ledger's usage rows are what is checked.
"""

from itertools import pairwise

import msgspec
from sqlalchemy import bindparam, func, select

from vpsd.accounts import service as accounts
from vpsd.billing import prices, service
from vpsd.billing.models import Charge, Rental, charges, ledger, rentals
from vpsd.core.db import Statement, Tx
from vpsd.servers.models import servers, traffic

_r = rentals.c
_CREDITS = Statement(
    select(ledger.c.account_id, func.sum(ledger.c.amount_micros))
    .where(ledger.c.kind != bindparam("the_kind"))
    .group_by(ledger.c.account_id)
)
_RENTALS = Statement(
    select(rentals).where(_r.account_id == bindparam("the_account")).order_by(_r.server_id, _r.from_ms, _r.id)
)
_CHARGES = Statement(
    select(charges)
    .join_from(charges, ledger)
    .where(ledger.c.account_id == bindparam("the_account"))
    .order_by(charges.c.server_id, charges.c.kind, charges.c.from_ms)
)
_UNBALANCED = Statement(
    select(ledger.c.id, ledger.c.account_id, ledger.c.amount_micros, func.sum(charges.c.amount_micros))
    .select_from(ledger.outerjoin(charges, charges.c.ledger_id == ledger.c.id))
    .where(ledger.c.kind == bindparam("the_kind"))
    .group_by(ledger.c.id, ledger.c.account_id, ledger.c.amount_micros)
    .having(ledger.c.amount_micros != -func.coalesce(func.sum(charges.c.amount_micros), 0))
)
_SERVERS = Statement(
    select(servers.c.id, servers.c.provisioned_at_ms, servers.c.deleted_at_ms)
    .where(servers.c.account_id == bindparam("the_account"))
    .order_by(servers.c.id)
)
_TRAFFIC = Statement(
    select(traffic.c.server_id, traffic.c.month, traffic.c.received_bytes, traffic.c.sent_bytes)
    .join_from(traffic, servers)
    .where(
        servers.c.account_id == bindparam("the_account"), traffic.c.settled_at_ms > 0
    )  # 0: from before there were prices
)


class Verdict(msgspec.Struct, frozen=True):
    """An account's balance as the ledger says it and as it follows from what happened, in micros."""

    account: str
    balance_micros: int
    recomputed_micros: int
    problems: list[str]

    @property
    def difference_micros(self) -> int:
        """0 when all is well."""
        return self.balance_micros - self.recomputed_micros


async def verify(tx: Tx) -> list[Verdict]:
    """Recompute every account; the transaction has to be a snapshot, or what is charged meanwhile looks wrong."""
    credit = dict(await tx.all(lambda account, total: (account, int(total)), _CREDITS, the_kind="usage"))
    balances = await service.balances(tx)
    unbalanced: dict[int, list[str]] = {}
    for entry_id, account_id, amount, total in await tx.all(lambda *row: row, _UNBALANCED, the_kind="usage"):
        text = f"ledger row {entry_id} says {amount}, and its charges come to {-int(total or 0)}"
        unbalanced.setdefault(account_id, []).append(text)
    verdicts = []
    for account in await accounts.list_accounts(tx):
        spent, problems = await _recompute(tx, account.id)
        verdicts.append(
            Verdict(
                account.name,
                balances.get(account.id, 0),
                credit.get(account.id, 0) - spent,
                [*unbalanced.get(account.id, []), *problems],
            )
        )
    return verdicts


async def _recompute(tx: Tx, account_id: int) -> tuple[int, list[str]]:
    of_server: dict[int, list[Rental]] = {}
    for rental in await tx.all(Rental, _RENTALS, the_account=account_id):
        of_server.setdefault(rental.server_id, []).append(rental)
    made: dict[tuple[int, str], list[Charge]] = {}
    for entry in await tx.all(Charge, _CHARGES, the_account=account_id):
        made.setdefault((entry.server_id, entry.kind), []).append(entry)
    spent, problems = 0, []
    for server_id, provisioned_at_ms, deleted_at_ms in await tx.all(lambda *row: row, _SERVERS, the_account=account_id):
        had = _confirmed(of_server.get(server_id, []))
        if provisioned_at_ms is not None and deleted_at_ms is None and not had:
            problems.append(f"server {server_id} worked and was never rented")
        had = [rental for rental in had if rental.to_ms is None or rental.to_ms > rental.from_ms]
        if had:
            problems += _gaps(server_id, had, deleted_at_ms)
            spent += prices.cost(had, had[0].from_ms, _meter_at(had))
            problems += _overlaps(server_id, made.get((server_id, "server"), []), had)
    for server_id, month_name, received, sent in await tx.all(lambda *row: row, _TRAFFIC, the_account=account_id):
        month = prices.month_named(month_name)
        had = _confirmed(of_server.get(server_id, []))
        over = prices.transfer_over(had, month, month.end_ms, received, sent)
        charged = [entry for entry in made.get((server_id, "transfer"), []) if entry.from_ms == month.start_ms]
        if over and had and not charged:
            problems.append(f"server {server_id}: its transfer of {month_name} was not charged")
        spent += sum(prices.transfer_cost(over, entry.rate_micros) for entry in charged)  # at the price of that day
    return spent, problems


def _confirmed(had: list[Rental]) -> list[Rental]:
    return [rental for rental in had if rental.confirmed_at_ms is not None]


def _meter_at(had: list[Rental]) -> int:
    """Until when all is charged."""
    moved = [rental.charged_until_ms for rental in had if rental.was_charged]
    return max(moved, default=had[0].from_ms)


def _gaps(server_id: int, had: list[Rental], deleted_at_ms: int | None) -> list[str]:
    """A server is rented without a gap, until it is deleted."""
    problems = [
        f"server {server_id}: rental {earlier.id} ends at {earlier.to_ms}, and {later.id} begins at {later.from_ms}"
        for earlier, later in pairwise(had)
        if earlier.to_ms != later.from_ms
    ]
    if (had[-1].to_ms is None) != (deleted_at_ms is None):
        problems.append(f"server {server_id}: its rental and its life do not end together")
    return problems


def _overlaps(server_id: int, made: list[Charge], had: list[Rental]) -> list[str]:
    """Charges follow one another from the first moment to where the meter stands."""
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
    """Until when there are charges for a rental."""
    within = [
        entry.to_ms
        for entry in made
        if rental.from_ms <= entry.from_ms and (rental.to_ms is None or entry.from_ms < rental.to_ms)
    ]
    return max(within, default=rental.from_ms)
