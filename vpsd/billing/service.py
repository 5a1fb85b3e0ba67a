"""Ledger and rentals: what accounts have, what servers cost, and whether the one covers the other.

Locks are taken in one order: account, server, rental.
"""

from typing import Any

import msgspec
from sqlalchemy import and_, bindparam, case, func, insert, literal, or_, select, union_all, update

from vpsd.accounts import events
from vpsd.accounts import service as accounts
from vpsd.accounts.models import Account, Actor
from vpsd.billing import prices
from vpsd.billing.models import Entry, Rental, charges, ledger, rentals
from vpsd.catalog.models import Plan, plans
from vpsd.core import money
from vpsd.core.clock import Clock, iso_utc
from vpsd.core.db import Database, Statement, Tx
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.errors import Invalid, OverQuota, PaymentRequired
from vpsd.servers.models import servers, traffic
from vpsd.settings import Settings

_r = rentals.c
_OWN = ledger.c.account_id == bindparam("the_account")
_SUM = func.coalesce(func.sum(ledger.c.amount_micros), 0)
_BALANCE = Statement(select(_SUM).where(_OWN))
_BALANCES = Statement(select(ledger.c.account_id, _SUM).group_by(ledger.c.account_id))
_COUNT = Statement(select(func.count()).select_from(ledger).where(_OWN))
_ENTRIES = Statement(
    select(
        *(ledger.c.id, ledger.c.uuid, ledger.c.kind, ledger.c.amount_micros, ledger.c.description),
        *(ledger.c.reference, ledger.c.created_at_ms),
        func.sum(ledger.c.amount_micros).over(order_by=ledger.c.id),
    )
    .where(_OWN)
    .order_by(ledger.c.id.desc())
    .limit(bindparam("the_limit"))
    .offset(bindparam("the_offset"))
)
_ADD = Statement(
    insert(ledger).returning(ledger.c.id),
    ("uuid", "account_id", "kind", "amount_micros", "description", "reference", "created_at_ms"),
)
_BY_REFERENCE = Statement(select(ledger.c.id).where(_OWN, ledger.c.reference == bindparam("the_reference")))
_had_now = (_r.account_id == bindparam("the_account"), _r.from_ms <= bindparam("the_now"))
_present = union_all(
    select(_r.price_monthly_micros.label("price")).where(*_had_now, _r.to_ms.is_(None)),
    select(_r.price_monthly_micros).where(*_had_now, _r.to_ms > bindparam("the_now")),  # another price is to follow
).subquery()
_PRICE_OF_ALL = Statement(select(func.coalesce(func.sum(_present.c.price), 0)))
_PRICE = Statement(
    select(_r.price_monthly_micros)
    .where(
        _r.server_id == bindparam("the_server"),
        _r.from_ms <= bindparam("the_now"),
        or_(_r.to_ms.is_(None), _r.to_ms > _r.from_ms),  # others never began
    )
    .order_by(_r.from_ms.desc(), _r.id.desc())
    .limit(1)
)
_HELD = Statement(
    select(
        func.count(),
        func.coalesce(func.sum(plans.c.vcpus), 0),
        func.coalesce(func.sum(plans.c.memory_mb), 0),
        func.coalesce(func.sum(plans.c.storage_gb), 0),
    )
    .join_from(servers, plans)
    .where(servers.c.account_id == bindparam("the_account"), servers.c.deleted_at_ms.is_(None))
)
_OPEN = Statement(
    insert(rentals),
    ("server_id", "account_id", "plan_id", "price_monthly_micros", "bandwidth_gb", "from_ms", "charged_until_ms")
    + ("confirmed_at_ms",),
)
_later = case((_r.from_ms < bindparam("b_from"), bindparam("b_from")), else_=_r.from_ms)
_CONFIRM = Statement(
    update(rentals)
    .where(
        _r.server_id == bindparam("the_server"),
        _r.confirmed_at_ms.is_(None),
        or_(_r.to_ms.is_(None), _r.to_ms > bindparam("b_from")),
    )
    .values(from_ms=_later, charged_until_ms=_later, confirmed_at_ms=bindparam("b_now"))
)
_GOING_ON = Statement(
    select(rentals)
    .where(_r.server_id == bindparam("the_server"), or_(_r.to_ms.is_(None), _r.to_ms > bindparam("the_time")))
    .order_by(_r.from_ms, _r.id)
    .with_for_update()
)
_END = Statement(update(rentals).where(_r.id == bindparam("the_id")), ("to_ms",))
_SERVERS_OF_PLAN = Statement(
    select(_r.server_id)
    .where(_r.plan_id == bindparam("the_plan"), or_(_r.to_ms.is_(None), _r.to_ms > bindparam("the_now")))
    .distinct()
    .order_by(_r.server_id)
)
_LOCK_SERVER = Statement(
    select(servers.c.id)
    .where(servers.c.id == bindparam("the_server"), servers.c.deleted_at_ms.is_(None))
    .with_for_update(key_share=True)
)
_IN_TIME = and_(
    _r.account_id == bindparam("the_account"),
    _r.confirmed_at_ms.is_not(None),
    _r.from_ms < bindparam("the_end"),
    or_(_r.to_ms.is_(None), and_(_r.to_ms > bindparam("the_start"), _r.to_ms > _r.from_ms)),
)
_RENTALS = Statement(select(rentals).where(_IN_TIME).order_by(_r.server_id, _r.from_ms, _r.id))
_OF_ACCOUNT = select(_r.server_id).where(_r.account_id == bindparam("the_account"))
_NAMES = Statement(select(servers.c.id, servers.c.name).where(servers.c.id.in_(_OF_ACCOUNT)))
_TRAFFIC = Statement(
    select(traffic.c.server_id, traffic.c.received_bytes, traffic.c.sent_bytes, traffic.c.settled_at_ms).where(
        traffic.c.server_id.in_(_OF_ACCOUNT), traffic.c.month == bindparam("the_month")
    )
)
_TRANSFERS = Statement(
    select(charges.c.server_id, charges.c.amount_micros).where(
        charges.c.server_id.in_(_OF_ACCOUNT),
        charges.c.kind == literal("transfer"),
        charges.c.from_ms >= bindparam("the_start"),
        charges.c.from_ms < bindparam("the_end"),
    )
)


async def balance(tx: Tx, account_id: int) -> int:
    """What an account has, in micros: the sum of its ledger."""
    return await tx.first(int, _BALANCE, the_account=account_id) or 0


async def balances(tx: Tx) -> dict[int, int]:
    """What every account has that ever had or owed anything, by account."""
    return dict(await tx.all(lambda account_id, total: (account_id, int(total)), _BALANCES))


async def entries(tx: Tx, account_id: int, page: Page) -> tuple[int, list[Entry]]:
    """How many rows an account's ledger has, and a page of them, newest first."""
    count = await tx.first(int, _COUNT, the_account=account_id)
    return count or 0, await tx.all(
        _entry,
        _ENTRIES,
        the_account=account_id,
        the_limit=page.size,
        the_offset=page.offset,
    )


def _entry(*row: Any) -> Entry:
    values = list(row)
    values[-1] = int(values[-1])  # PostgreSQL's sums are decimals
    return Entry(*values)


async def add_entry(
    tx: Tx,
    ids: Ids,
    clock: Clock,
    account_id: int,
    kind: str,
    amount_micros: int,
    description: str,
    reference: str | None = None,
) -> int:
    """Write a row into the ledger; its id."""
    entry_id = await tx.first(
        int,
        _ADD,
        uuid=ids.uuid(),
        account_id=account_id,
        kind=kind,
        amount_micros=amount_micros,
        description=description,
        reference=reference,
        created_at_ms=clock.now_ms(),
    )
    assert entry_id is not None
    return entry_id


async def add_credit(
    tx: Tx,
    ids: Ids,
    clock: Clock,
    settings: Settings,
    account: Account,
    amount_micros: int,
    description: str,
    reference: str | None = None,
) -> int:
    """Add credit, or with a negative amount take some back, and give the new balance.

    A reference (an invoice, a payment) stands once in an account: `Invalid` when it is there already. So a command that
    is repeated adds nothing twice.
    """
    await accounts.lock_account(tx, account.id)
    if amount_micros == 0:
        raise Invalid({"amount": ["Give an amount other than 0."]})
    if reference is not None and not (0 < len(reference) <= 255 and reference.isprintable()):
        raise Invalid({"reference": ["Give 1 to 255 printable characters."]})
    if not (len(description) <= 1000 and description.isprintable()):
        raise Invalid({"note": ["Give at most 1000 printable characters."]})
    booked = await tx.first(int, _BY_REFERENCE, the_account=account.id, the_reference=reference)
    if reference is not None and booked is not None:
        raise Invalid({"reference": [f"{reference} was booked for {account.name!r} already; nothing was added."]})
    await add_entry(tx, ids, clock, account.id, "credit", amount_micros, description, reference)
    detail = f"{money.text(amount_micros)}: {description}"
    await events.add(tx, clock, accounts.operator(account.id), "credit.add", detail=detail)
    await note_credit(tx, clock, settings, await accounts.get_account(tx, account.id))
    return await balance(tx, account.id)


async def note_credit(tx: Tx, clock: Clock, settings: Settings, account: Account) -> int | None:
    """Since when an account that needs credit has none left, in milliseconds; None: it has some, or needs none.

    Its events tell when it runs out and when there is credit again. Called whenever its credit changes, so that each
    running out brings a grace of its own.
    """
    actor = Actor(account_id=account.id, kind="vpsd")
    have = await left(tx, account)
    covered = have is None or have > 0
    if covered or not await monthly_price(tx, clock, account.id):
        if account.exhausted_at_ms is not None:
            await accounts.set_exhausted(tx, account.id, None)
            if covered:
                await events.add(tx, clock, actor, "credit.restored")
        return None
    if account.exhausted_at_ms is not None:
        return account.exhausted_at_ms
    now = clock.now_ms()
    await accounts.set_exhausted(tx, account.id, now)
    suspends_at = iso_utc(suspends_at_ms(settings, now))
    detail = f"Servers are suspended at {suspends_at} unless there is credit by then."
    await events.add(tx, clock, actor, "credit.exhausted", detail=detail)
    return now


def suspends_at_ms(settings: Settings, exhausted_at_ms: int) -> int:
    """When servers are suspended of an account that ran out at a moment."""
    return exhausted_at_ms + settings.grace_hours * prices.HOUR_MS


async def monthly_price(tx: Tx, clock: Clock, account_id: int) -> int:
    """What all servers of an account cost a month together, those that are being made included."""
    return await tx.first(int, _PRICE_OF_ALL, the_account=account_id, the_now=clock.now_ms()) or 0


async def price_of(tx: Tx, clock: Clock, server_id: int) -> int:
    """What a server costs a month."""
    return await tx.first(int, _PRICE, the_server=server_id, the_now=clock.now_ms()) or 0


async def check_create(
    tx: Tx, clock: Clock, settings: Settings, account_id: int, plan: Plan, instead_of: tuple[int, Plan] | None = None
) -> None:
    """Make sure that an account may have a server of a plan, one more or instead of one that has another plan.

    Keeps others from the account until the transaction ends. Raises `PaymentRequired` or `OverQuota`.
    """
    account = await accounts.lock_account(tx, account_id)  # so that two creates cannot both spend the last credit
    await _check_quota(tx, account, plan, instead_of and instead_of[1])
    more = plan.price_monthly_micros - (await price_of(tx, clock, instead_of[0]) if instead_of else 0)
    if account.credit_limit_micros is None or (instead_of and more <= 0):
        return
    together = await monthly_price(tx, clock, account_id) + more
    needed = -(-together * settings.cover_hours // 672)
    have = await balance(tx, account_id)
    missing = max(needed, 1) - have - account.credit_limit_micros
    if together and missing > 0:
        hours = f"all your servers with this one for {settings.cover_hours} hours ({money.text(needed)})"
        raise PaymentRequired(
            f"A {plan.name} costs {money.text(plan.price_monthly_micros)} {settings.currency} a month. The balance is "
            f"{money.text(have)} and has to cover {hours}: {money.text(missing)} {settings.currency} are "
            "missing. Add credit, or delete a server."
        )


async def check_start(tx: Tx, clock: Clock, settings: Settings, account_id: int, *, runs: bool = False) -> None:
    """Make sure that there is credit to start a server on; raises `PaymentRequired`.

    A server that runs may be rebooted until its grace is over: a reboot then would only put its suspension off.
    """
    account = await accounts.get_account(tx, account_id)
    have = await left(tx, account)
    if have is None or have > 0 or not await monthly_price(tx, clock, account_id):
        return
    since = account.exhausted_at_ms
    if runs and (since is None or clock.now_ms() < suspends_at_ms(settings, since)):
        return
    raise PaymentRequired(
        f"The credit is used up: more than {money.text(-have)} {settings.currency} have to be added before a "
        "server can be started."
    )


async def left(tx: Tx, account: Account) -> int | None:
    """What an account may still spend, its credit limit included; None: as much as it likes."""
    return None if account.credit_limit_micros is None else await balance(tx, account.id) + account.credit_limit_micros


async def _check_quota(tx: Tx, account: Account, plan: Plan, instead_of: Plan | None) -> None:
    limits = (account.max_servers, account.max_vcpus, account.max_memory_mb, account.max_storage_gb)
    if limits == (None, None, None, None):
        return
    held = await tx.first(lambda *sums: tuple(map(int, sums)), _HELD, the_account=account.id) or (0, 0, 0, 0)
    more = [1, plan.vcpus, plan.memory_mb, plan.storage_gb]
    if instead_of is not None:
        given_back = (1, instead_of.vcpus, instead_of.memory_mb, instead_of.storage_gb)
        more = [wanted - back for wanted, back in zip(more, given_back, strict=True)]
    names = ("servers", "vCPUs", "MB of memory", "GB of storage")
    over = [
        f"{limit} {name} are the limit, and {have} are in use: {wanted} more are too many"
        for limit, have, wanted, name in zip(limits, held, more, names, strict=True)
        if limit is not None and wanted > 0 and have + wanted > limit
    ]
    if over:
        raise OverQuota(f"{'; '.join(over)}. Delete a server, or ask for a higher limit.")


async def open_rental(tx: Tx, account_id: int, server_id: int, plan: Plan, from_ms: int) -> None:
    """Note from when a server is had on a plan, at its present price; it costs nothing before it is confirmed."""
    await tx.run(
        _OPEN,
        server_id=server_id,
        account_id=account_id,
        plan_id=plan.id,
        price_monthly_micros=plan.price_monthly_micros,
        bandwidth_gb=plan.bandwidth_gb,
        from_ms=from_ms,
        charged_until_ms=from_ms,
        confirmed_at_ms=None,
    )


async def confirm_rental(tx: Tx, clock: Clock, server_id: int, from_ms: int) -> None:
    """The server works for the first time: it costs from when its making was asked for."""
    await tx.run(_CONFIRM, the_server=server_id, b_from=from_ms, b_now=clock.now_ms())


async def end_rental(tx: Tx, server_id: int, at_ms: int) -> list[Rental]:
    """End what goes on at a moment, or where it has been charged beyond that already; gives what was ended.

    What was to begin later never begins.
    """
    ended = await tx.all(Rental, _GOING_ON, the_server=server_id, the_time=at_ms)
    for rental in ended:
        await tx.run(_END, the_id=rental.id, to_ms=max(at_ms, rental.from_ms, rental.charged_until_ms))
    return ended


async def change_plan(tx: Tx, server_id: int, plan: Plan, at_ms: int) -> None:
    """Have a server cost a plan's present price from a moment on, or from where it has been charged beyond that."""
    ended = await end_rental(tx, server_id, at_ms)
    from_ms = max([at_ms, *(rental.charged_until_ms for rental in ended if rental.was_charged)])
    await tx.run(
        _OPEN,
        server_id=server_id,
        account_id=ended[-1].account_id,
        plan_id=plan.id,
        price_monthly_micros=plan.price_monthly_micros,
        bandwidth_gb=plan.bandwidth_gb,
        from_ms=from_ms,
        charged_until_ms=from_ms,
        confirmed_at_ms=ended[-1].confirmed_at_ms,
    )


async def schedule_prices(database: Database, clock: Clock, plan: Plan) -> int:
    """Have the servers of a plan pay its price from the day that the catalogue names, and from no other day.

    What was scheduled before and is no longer wanted is taken back. Each server is a transaction of its own, under its
    lock; doing it again changes nothing. Says how many servers it changed.
    """
    async with database.read() as tx:
        servers_had = await tx.all(int, _SERVERS_OF_PLAN, the_plan=plan.id, the_now=clock.now_ms())
    told: set[int] = set()
    changed = 0
    for server_id in servers_had:
        async with database.write() as tx:
            account_id = await _schedule_price(tx, clock, server_id, plan)
            if account_id is not None:
                changed += 1
                if account_id not in told:
                    told.add(account_id)
                    await _tell_price(tx, clock, account_id, plan)
    return changed


async def _schedule_price(tx: Tx, clock: Clock, server_id: int, plan: Plan) -> int | None:
    """The account, where something was to be changed."""
    now = clock.now_ms()
    if await tx.first(int, _LOCK_SERVER, the_server=server_id) is None:
        return None  # deleted meanwhile
    going_on = await tx.all(Rental, _GOING_ON, the_server=server_id, the_time=now)
    # A clock that was set back does not undo what has begun and was charged.
    present = [rental for rental in going_on if rental.from_ms <= now or rental.was_charged]
    later = [rental for rental in going_on if rental not in present and rental.to_ms is None]
    if not present or present[-1].plan_id != plan.id:
        return None
    wanted_ms = plan.price_from_ms if plan.price_from_ms is not None and plan.price_from_ms > now else None
    if present[-1].price_monthly_micros == plan.price_monthly_micros:
        wanted_ms = None
    if [(rental.from_ms, rental.price_monthly_micros) for rental in later] == (
        [] if wanted_ms is None else [(wanted_ms, plan.price_monthly_micros)]
    ):
        return None
    for rental in later:
        await tx.run(_END, the_id=rental.id, to_ms=rental.from_ms)  # it never begins
    if later:
        await tx.run(_END, the_id=present[-1].id, to_ms=None)
    if wanted_ms is not None:
        await change_plan(tx, server_id, plan, wanted_ms)
    return present[-1].account_id


async def _tell_price(tx: Tx, clock: Clock, account_id: int, plan: Plan) -> None:
    begins = "" if plan.price_from_ms is None else f" from {iso_utc(plan.price_from_ms)}"
    detail = f"{plan.name}: {money.text(plan.price_monthly_micros)} a month{begins}"
    if plan.price_from_ms is None:
        detail = f"{plan.name}: the announced price is taken back"
    await events.add(tx, clock, accounts.operator(account_id), "plan.price", "plan", plan.id, detail)


class ServerUsage(msgspec.Struct, frozen=True):
    """What a server costs in a month: so far and, if nothing changes, at its end. Bytes are bytes, money is micros."""

    server_id: int
    name: str
    plan_id: int
    price_monthly_micros: int
    milliseconds: int
    cost_micros: int
    forecast_micros: int
    transfer_bytes: int
    transfer_included_bytes: int  # by the month's end
    transfer_micros: int


async def usage(tx: Tx, settings: Settings, account_id: int, month: prices.Month, now_ms: int) -> list[ServerUsage]:
    """What each server of an account costs in a month, in the order in which they were made."""
    times = {"the_start": month.start_ms, "the_end": month.end_ms}
    of_server: dict[int, list[Rental]] = {}
    for rental in await tx.all(Rental, _RENTALS, the_account=account_id, **times):
        of_server.setdefault(rental.server_id, []).append(rental)
    names = dict(await tx.all(lambda *row: row, _NAMES, the_account=account_id))
    moved, settled = {}, set()
    for server_id, received, sent, settled_at_ms in await tx.all(
        lambda *row: row, _TRAFFIC, the_account=account_id, the_month=month.name
    ):
        moved[server_id] = (received, sent)
        if settled_at_ms is not None:
            settled.add(server_id)
    charged = dict.fromkeys(settled, 0)
    charged |= dict(await tx.all(lambda *row: row, _TRANSFERS, the_account=account_id, **times))
    return [
        _usage(settings, month, now_ms, found, names[server_id], moved.get(server_id, (0, 0)), charged.get(server_id))
        for server_id, found in of_server.items()
        if found[0].from_ms < now_ms
    ]


def _usage(
    settings: Settings,
    month: prices.Month,
    now_ms: int,
    found: list[Rental],
    name: str,
    moved: tuple[int, int],
    transfer_charged: int | None,
) -> ServerUsage:
    until_ms = min(now_ms, month.end_ms)
    spans = prices.price_spans(found)
    present = [rental for rental in found if rental.from_ms <= until_ms][-1]
    over = prices.transfer_over(found, month, month.end_ms, *moved)
    return ServerUsage(
        server_id=present.server_id,
        name=name,
        plan_id=present.plan_id,
        price_monthly_micros=present.price_monthly_micros,
        milliseconds=sum(
            max(0, min(until_ms, until_ms if r.to_ms is None else r.to_ms) - max(month.start_ms, r.from_ms))
            for r in found
        ),
        cost_micros=prices.accrued(spans, month, until_ms),
        forecast_micros=prices.accrued(spans, month, month.end_ms),
        transfer_bytes=max(moved),
        transfer_included_bytes=prices.accrued(prices.transfer_spans(found), month, month.end_ms),
        transfer_micros=prices.transfer_cost(over, settings.transfer_price_micros)
        if transfer_charged is None
        else transfer_charged,
    )
