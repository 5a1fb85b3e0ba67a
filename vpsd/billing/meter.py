"""Charges what rentals and transfer have come to. May run twice, late, or on two workers at once: it charges once.

Each batch is one transaction: the ledger's row, its charges and the meter's new place stand or fall together. Rentals
that another worker has in hand are skipped, and the charges' unique index is the last word.
"""

import asyncio
import logging
from collections.abc import Iterator

import msgspec
from sqlalchemy import and_, bindparam, func, insert, or_, select, update

from vpsd.billing import prices, service
from vpsd.billing.models import Charge, Rental, charges, rentals, uncharged
from vpsd.billing.prices import Month
from vpsd.core.clock import Clock, iso_utc
from vpsd.core.db import Database, Statement, Tx
from vpsd.core.ids import Ids
from vpsd.servers.models import servers, traffic
from vpsd.settings import Settings

log = logging.getLogger(__name__)

_BATCH = 1000  # rentals a transaction; more would keep requests waiting
_MOST_MS = 4 * prices.HOUR_MS  # of a rental in a batch, when many hours are late
_LATEST_SAMPLE_MS = 600_000  # a month's transfer is complete this long after its end

_r = rentals.c
_DUE = and_(
    uncharged,
    or_(
        _r.charged_until_ms < bindparam("the_hour"),
        and_(_r.to_ms <= bindparam("the_now"), _r.charged_until_ms < _r.to_ms),
    ),
)
_DUE_ACCOUNTS = Statement(
    select(_r.account_id, func.count()).where(_DUE).group_by(_r.account_id).order_by(_r.account_id)
)
_AMONG = and_(_r.account_id >= bindparam("the_first"), _r.account_id <= bindparam("the_last"))
_DUE_RENTALS = Statement(
    select(rentals)
    .where(_AMONG, _DUE)
    .order_by(_r.account_id, _r.server_id, _r.from_ms)
    .limit(bindparam("the_limit"))
    .with_for_update(skip_locked=True)
)
# A server whose plan or price changed has several rentals in a month; they share the month's cap.
_ENDED = Statement(
    select(rentals)
    .where(_AMONG, _r.to_ms > bindparam("the_time"), _r.confirmed_at_ms.is_not(None))
    .order_by(_r.server_id, _r.from_ms, _r.id)
)
_ADD_CHARGE = Statement(insert(charges), [column.name for column in charges.c if column.name != "id"])
_MOVE = Statement(update(rentals).where(_r.id == bindparam("the_id")), ("charged_until_ms",))
_OF_SERVER = Statement(
    select(rentals)
    .where(_r.server_id == bindparam("the_server"), _r.confirmed_at_ms.is_not(None))
    .order_by(_r.from_ms, _r.id)
)
_t = traffic.c
_UNSETTLED = Statement(
    select(_t.server_id, servers.c.account_id, servers.c.deleted_at_ms, _t.month)
    .join_from(traffic, servers)
    .where(
        _t.settled_at_ms.is_(None),
        or_(_t.month < bindparam("the_month"), servers.c.deleted_at_ms.is_not(None)),
        or_(
            _t.server_id > bindparam("the_server"),
            and_(_t.server_id == bindparam("the_server"), _t.month > bindparam("the_last")),
        ),
    )
    .order_by(_t.server_id, _t.month)
    .limit(bindparam("the_limit"))
)
_LOCK = Statement(
    select(_t.received_bytes, _t.sent_bytes)
    .where(_t.server_id == bindparam("the_server"), _t.month == bindparam("the_last"), _t.settled_at_ms.is_(None))
    .with_for_update()
)
_SETTLE = Statement(
    update(traffic).where(traffic.c.server_id == bindparam("the_server"), traffic.c.month == bindparam("the_month")),
    ("settled_at_ms",),
)


class _Moved(msgspec.Struct, frozen=True):
    server_id: int
    account_id: int
    deleted_at_ms: int | None
    month: str


async def charge(database: Database, settings: Settings, ids: Ids, clock: Clock) -> set[int]:
    """Charge everything that is due; the accounts that were charged.

    What cannot be charged is logged and left for the next time; nobody else waits for it.
    """
    charged: set[int] = set()
    now = clock.now_ms()
    times = {"the_hour": now // prices.HOUR_MS * prices.HOUR_MS, "the_now": now}
    async with database.read() as tx:
        due = await tx.all(lambda account_id, count: (account_id, count), _DUE_ACCOUNTS, **times)
    for first, last in _ranges(due):
        try:
            charged |= await _charge_range(database, ids, clock, first, last, times)
        except Exception:
            log.exception("accounts %s to %s could not be charged together; now one by one", first, last)
            for account_id in [account_id for account_id, _ in due if first <= account_id <= last]:
                try:
                    charged |= await _charge_range(database, ids, clock, account_id, account_id, times)
                except Exception:
                    log.exception("account %s could not be charged; `vpsd billing verify` may say why", account_id)
    return charged | await _charge_transfers(database, settings, ids, clock, now)


async def _charge_range(
    database: Database, ids: Ids, clock: Clock, first: int, last: int, times: dict[str, int]
) -> set[int]:
    charged: set[int] = set()
    while True:
        async with database.write() as tx:
            accounts = await _charge_batch(tx, ids, clock, first, last, times)
        if not accounts:
            return charged
        charged |= accounts
        await asyncio.sleep(0)


def _ranges(due: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Neighbouring accounts, with about a batch of due rentals together."""
    first, together = 0, 0
    for account_id, count in due:
        first = first or account_id
        together += count
        if together >= _BATCH or account_id == due[-1][0]:
            yield first, account_id
            first, together = 0, 0


async def _charge_batch(tx: Tx, ids: Ids, clock: Clock, first: int, last: int, times: dict[str, int]) -> set[int]:
    among = {"the_first": first, "the_last": last}
    due = await tx.all(Rental, _DUE_RENTALS, **among, **times, the_limit=_BATCH)
    if not due:
        return set()
    since = prices.month_of(min(rental.charged_until_ms for rental in due)).start_ms
    of_server: dict[int, list[Rental]] = {}
    for rental in await tx.all(Rental, _ENDED, **among, the_time=since):
        of_server.setdefault(rental.server_id, []).append(rental)
    of_account: dict[int, list[Charge]] = {}
    places = []
    unfinished: set[int] = set()  # servers of which an earlier rental is not charged to its end
    for rental in due:
        if rental.server_id in unfinished:
            continue
        alone = [rental]
        others = of_server.get(rental.server_id, alone)
        if rental not in others:  # what goes on comes after all that has ended
            others = [*others, rental]
        until_ms = min(prices.charge_until(rental, times["the_now"]), rental.charged_until_ms + _MOST_MS)
        if until_ms != rental.to_ms:
            unfinished.add(rental.server_id)
        places.append({"the_id": rental.id, "charged_until_ms": until_ms})
        of_account.setdefault(rental.account_id, []).extend(prices.server_charges(rental, others, until_ms))
    for account_id, made in of_account.items():
        await _book(tx, ids, clock, account_id, made, _period(made))
    await tx.many(_MOVE, places)
    return set(of_account)


def _period(made: list[Charge]) -> str:
    servers_charged = len({entry.server_id for entry in made})
    from_ms, to_ms = min(entry.from_ms for entry in made), max(entry.to_ms for entry in made)
    noun = "server" if servers_charged == 1 else "servers"
    return f"{servers_charged} {noun}, {iso_utc(from_ms)} to {iso_utc(to_ms)}"


async def _book(tx: Tx, ids: Ids, clock: Clock, account_id: int, made: list[Charge], description: str) -> None:
    total = sum(entry.amount_micros for entry in made)
    ledger_id = await service.add_entry(tx, ids, clock, account_id, "usage", -total, description)
    await tx.many(_ADD_CHARGE, [{**msgspec.structs.asdict(entry), "ledger_id": ledger_id} for entry in made])


async def _charge_transfers(database: Database, settings: Settings, ids: Ids, clock: Clock, now_ms: int) -> set[int]:
    """Charge transfer beyond the plans': of months that are over, and of servers that are deleted."""
    charged: set[int] = set()
    after: tuple[int, str] = (0, "")
    complete = prices.month_of(now_ms - _LATEST_SAMPLE_MS).name
    while True:
        async with database.read() as tx:
            found = await tx.all(
                _Moved, _UNSETTLED, the_month=complete, the_server=after[0], the_last=after[1], the_limit=_BATCH
            )
        for moved in found:
            try:
                async with database.write() as tx:
                    if await _settle(tx, settings, ids, clock, moved):
                        charged.add(moved.account_id)
            except Exception:
                log.exception("the transfer of server %s in %s could not be charged", moved.server_id, moved.month)
        if len(found) < _BATCH:
            return charged
        after = (found[-1].server_id, found[-1].month)


async def _settle(tx: Tx, settings: Settings, ids: Ids, clock: Clock, known: _Moved) -> bool:
    """Whether the transfer of a server's month was charged; another worker may have done it already."""
    key = {"the_server": known.server_id, "the_last": known.month}
    counted = await tx.first(lambda *bytes_moved: bytes_moved, _LOCK, **key)
    if counted is None:
        return False
    month = prices.month_named(known.month)
    had = await tx.all(Rental, _OF_SERVER, the_server=known.server_id)
    over = prices.transfer_over(had, month, month.end_ms, *counted) if had else 0
    if over:
        made = _transfer(known, month, had, over, settings.transfer_price_micros)
        text = f"transfer of server {known.server_id} in {known.month}: {over / prices.GB:.3f} GB beyond its plan"
        await _book(tx, ids, clock, known.account_id, [made], text)
    await tx.run(_SETTLE, the_server=known.server_id, the_month=known.month, settled_at_ms=clock.now_ms())
    return over > 0


def _transfer(moved: _Moved, month: Month, had: list[Rental], over: int, price_micros: int) -> Charge:
    in_month = [rental for rental in had if rental.from_ms < month.end_ms] or had
    end_ms = month.end_ms if moved.deleted_at_ms is None else min(month.end_ms, moved.deleted_at_ms)
    return Charge(
        id=0,
        ledger_id=0,
        server_id=moved.server_id,
        plan_id=in_month[-1].plan_id,
        kind="transfer",
        from_ms=month.start_ms,
        to_ms=end_ms,
        quantity=over,
        rate_micros=price_micros,
        amount_micros=prices.transfer_cost(over, price_micros),
    )
