"""Credit: what an account may still spend, what its servers cost, and whether the one covers the other.

Locks are taken in this order: account, server, rental.
"""

import msgspec
from sqlalchemy import ColumnElement, ScalarSelect, bindparam, or_, select

from vpsd.accounts import service as accounts
from vpsd.accounts.faults import NotPrintable
from vpsd.accounts.models import Account
from vpsd.billing import ledger, prices
from vpsd.billing.models import account_sums, rentals
from vpsd.catalog.models import Plan
from vpsd.core import money
from vpsd.core.clock import iso_utc
from vpsd.core.context import Actor, Ctx
from vpsd.core.db import Statement
from vpsd.core.tables import total
from vpsd.core.units import HOUR_MS
from vpsd.errors import Fault, Invalid, OverQuota, PaymentRequired
from vpsd.events import service as events
from vpsd.settings import Settings

_LAST_MS = 253_402_300_799_000  # the last second of the year 9999

_r, _s = rentals.c, account_sums.table.c
_OWN_SUMS = _s.account_id == bindparam("account_id")


def _prices(*of: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(total(_r.price_monthly_micros)).where(_r.account_id == bindparam("account_id"), *of).scalar_subquery()


# The sum is of rentals that have no end. Those that begin later do not count yet; those whose end is to come still do,
# for another price follows.
_PRICE_OF_ALL = Statement(
    select(
        select(total(_s.price_monthly_micros)).where(_OWN_SUMS).scalar_subquery()
        - _prices(_r.to_ms.is_(None), _r.from_ms > bindparam("now_ms"))
        + _prices(_r.to_ms > bindparam("now_ms"), _r.from_ms <= bindparam("now_ms"))
    ),
    into=int,
)
_PRICE = Statement(
    select(_r.price_monthly_micros)
    .where(
        _r.account_id == bindparam("account_id"),
        _r.server_id == bindparam("server_id"),
        _r.from_ms <= bindparam("now_ms"),
        or_(_r.to_ms.is_(None), _r.to_ms > _r.from_ms),  # others never began
    )
    .order_by(_r.from_ms.desc(), _r.id.desc())
    .limit(1),
    into=int,
)


class _Held(msgspec.Struct, frozen=True):
    """What an account's servers use, named after the limits."""

    max_servers: int
    max_vcpus: int
    max_memory_mb: int
    max_storage_gb: int


_HELD = Statement(  # a server is rented until it is purged
    select(*(total(_s[name.removeprefix("max_")]).label(name) for name in _Held.__struct_fields__)).where(_OWN_SUMS),
    into=_Held,
)
_NAMES = {
    "max_servers": "servers",
    "max_vcpus": "vCPUs",
    "max_memory_mb": "MB of memory",
    "max_storage_gb": "GB of storage",
}


class BalanceSummary(msgspec.Struct, frozen=True):
    """An account's balance and forecast. Amounts in micros; an hour is charged when it is over."""

    balance_micros: int
    credit_limit_micros: int | None  # how far the balance may fall below zero; None: no limit
    price_monthly_micros: int  # of all servers together
    runs_out_at_ms: int | None  # when the credit will be used up if nothing changes; None: never
    exhausted_at_ms: int | None  # since when it has been used up
    suspends_at_ms: int | None  # when servers will be suspended unless credit is added


class ZeroAmount(Fault, frozen=True):
    """Zero cannot be booked."""

    def __str__(self) -> str:
        return "Give an amount other than 0."


class AlreadyBooked(Fault, frozen=True):
    """The account's ledger already has a row with that reference."""

    reference: str
    account: str

    def __str__(self) -> str:
        return f"{self.reference} has already been booked for {self.account!r}; nothing was added."


class NotCovered(PaymentRequired):
    """The balance does not cover another server. Amounts in micros."""

    def __init__(self, plan: Plan, settings: Settings, have: int, needed: int, missing: int) -> None:
        hours = f"all your servers, including this one, for {settings.cover_hours} hours ({money.decimal(needed)})"
        super().__init__(
            f"A {plan.name} costs {money.decimal(plan.price_monthly_micros)} {settings.currency} a month. The balance "
            f"is {money.decimal(have)} and has to cover {hours}: {money.decimal(missing)} {settings.currency} are "
            "missing. Add credit, or delete a server."
        )
        self.missing_micros = missing


class CreditUsedUp(PaymentRequired):
    """There is no credit to start a server with; more than `missing_micros` has to be added."""

    def __init__(self, missing_micros: int, currency: str) -> None:
        super().__init__(
            f"The credit is used up: more than {money.decimal(missing_micros)} {currency} have to be added before a "
            "server can be started."
        )
        self.missing_micros = missing_micros


class Excess(msgspec.Struct, frozen=True):
    """A resource that an account would have too much of."""

    resource: str
    limit: int
    in_use: int
    wanted: int


class QuotaExceeded(OverQuota):
    """The account would exceed its limits."""

    def __init__(self, over: list[Excess]) -> None:
        text = "; ".join(
            f"{excess.limit} {excess.resource} are the limit, and {excess.in_use} are in use: "
            f"{excess.wanted} more are too many"
            for excess in over
        )
        super().__init__(f"{text}. Delete a server, or ask for a higher limit.")
        self.over = over


async def add_credit(ctx: Ctx, amount_micros: int, description: str, reference: str | None = None) -> int:
    """Add credit, or take it back with a negative amount; returns the new balance in micros.

    A reference (an invoice, a payment) is unique in an account, so that repeating a command adds nothing twice. Raises
    `Invalid` if it was used before.
    """
    account = await accounts.lock_account(ctx, ctx.account_id)
    if amount_micros == 0:
        raise Invalid({"amount": [ZeroAmount()]})
    if reference is not None and not (0 < len(reference) <= 255 and reference.isprintable()):
        raise Invalid({"reference": [NotPrintable(1, 255)]})
    if not (len(description) <= 1000 and description.isprintable()):
        raise Invalid({"note": [NotPrintable(0, 1000)]})
    if reference is not None and await ledger.is_booked(ctx, reference):
        raise Invalid({"reference": [AlreadyBooked(reference, account.name)]})
    await ledger.add_entry(ctx, "credit", amount_micros, description, reference)
    await events.record(ctx, "credit.add", detail=f"{money.decimal(amount_micros)}: {description}")
    await update_credit(ctx)
    return await ledger.balance(ctx)


async def set_limits(ctx: Ctx, limits: dict[str, int | None]) -> None:
    """Change some of the account's limits, and whether its credit is used up; raises like `accounts.set_limits`."""
    await accounts.set_limits(ctx, await accounts.get_account(ctx, ctx.account_id), limits)
    await update_credit(ctx)


async def update_credit(ctx: Ctx) -> int | None:
    """Since when an account that needs credit has none left, in ms; None: it has some, or needs none.

    Records in its events when it runs out and when there is credit again. Called whenever its credit changes, so that
    each time it runs out a new grace period begins. Locks the account until the transaction ends.
    """
    account = await accounts.lock_account(ctx, ctx.account_id)
    as_vpsd = msgspec.structs.replace(ctx, actor=Actor(kind="vpsd", account_id=account.id))
    left = await credit_left(ctx, account)
    covered = left is None or left > 0
    if covered or not await monthly_price(ctx):
        if account.exhausted_at_ms is not None:
            await accounts.set_exhausted(ctx, None)
            if covered:
                await events.record(as_vpsd, "credit.restored")
        return None
    if account.exhausted_at_ms is not None:
        return account.exhausted_at_ms
    now = ctx.now_ms
    await accounts.set_exhausted(ctx, now)
    suspends_at = iso_utc(suspends_at_ms(ctx.settings, now))
    detail = f"Servers are suspended at {suspends_at} unless there is credit by then."
    await events.record(as_vpsd, "credit.exhausted", detail=detail)
    return now


def suspends_at_ms(settings: Settings, exhausted_at_ms: int) -> int:
    """When the servers of an account that ran out of credit at `exhausted_at_ms` are suspended."""
    return exhausted_at_ms + settings.grace_hours * HOUR_MS


async def monthly_price(ctx: Ctx) -> int:
    """What all servers of the account cost a month, in micros, including those that are being created."""
    return await ctx.tx.first(_PRICE_OF_ALL, account_id=ctx.account_id, now_ms=ctx.now_ms) or 0


async def price_of(ctx: Ctx, server_id: int) -> int:
    """What a server of the account costs a month, in micros."""
    return await ctx.tx.first(_PRICE, account_id=ctx.account_id, server_id=server_id, now_ms=ctx.now_ms) or 0


async def credit_left(ctx: Ctx, account: Account) -> int | None:
    """What the account may still spend, in micros, including its credit limit; None: there is no limit."""
    return None if account.credit_limit_micros is None else await ledger.balance(ctx) + account.credit_limit_micros


async def summary(ctx: Ctx) -> BalanceSummary:
    """The account's balance, what its servers cost, and when its credit will be used up."""
    account = await accounts.get_account(ctx, ctx.account_id)
    have, price = await ledger.balance(ctx), await monthly_price(ctx)
    left = None if account.credit_limit_micros is None else have + account.credit_limit_micros
    runs_out_at_ms = None
    if left is not None and left > 0 and price:
        runs_out_at_ms = min(ctx.now_ms + left * prices.FULL_MONTH_MS // price, _LAST_MS)
    since = account.exhausted_at_ms
    return BalanceSummary(
        balance_micros=have,
        credit_limit_micros=account.credit_limit_micros,
        price_monthly_micros=price,
        runs_out_at_ms=runs_out_at_ms,
        exhausted_at_ms=since,
        suspends_at_ms=None if since is None else suspends_at_ms(ctx.settings, since),
    )


async def check_create(ctx: Ctx, plan: Plan, instead_of: tuple[int, Plan] | None = None) -> None:
    """Make sure that the account may have a server of a plan: another one, or instead of one (its id, its plan).

    Locks the account until the transaction ends. Raises `NotCovered` or `QuotaExceeded`.
    """
    account = await accounts.lock_account(ctx, ctx.account_id)  # so that two creates cannot spend the same credit
    await _check_quota(ctx, account, plan, instead_of and instead_of[1])
    more = plan.price_monthly_micros - (await price_of(ctx, instead_of[0]) if instead_of else 0)
    if account.credit_limit_micros is None or (instead_of and more <= 0):
        return
    together = await monthly_price(ctx) + more
    needed = -(-together * ctx.settings.cover_hours // 672)
    have = await ledger.balance(ctx)
    missing = max(needed, 1) - have - account.credit_limit_micros
    if together and missing > 0:
        raise NotCovered(plan, ctx.settings, have, needed, missing)


async def check_start(ctx: Ctx, *, runs: bool = False) -> None:
    """Make sure that there is credit to start a server with; raises `CreditUsedUp`.

    A server that runs may be rebooted until the grace period is over; a reboot after that would only delay its
    suspension.
    """
    account = await accounts.get_account(ctx, ctx.account_id)
    left = await credit_left(ctx, account)
    if left is None or left > 0 or not await monthly_price(ctx):
        return
    since = account.exhausted_at_ms
    if runs and (since is None or ctx.now_ms < suspends_at_ms(ctx.settings, since)):
        return
    raise CreditUsedUp(-left, ctx.settings.currency)


async def _check_quota(ctx: Ctx, account: Account, plan: Plan, instead_of: Plan | None) -> None:
    if all(getattr(account, limit) is None for limit in _NAMES):
        return
    held = await ctx.tx.first(_HELD, account_id=account.id)
    over = []
    for limit, name in _NAMES.items():
        most, have = getattr(account, limit), getattr(held, limit)
        wanted = _takes(plan, limit) - (_takes(instead_of, limit) if instead_of else 0)
        if most is not None and wanted > 0 and have + wanted > most:
            over.append(Excess(name, most, have, wanted))
    if over:
        raise QuotaExceeded(over)


def _takes(plan: Plan, limit: str) -> int:
    """How much a server of a plan counts against a limit."""
    return 1 if limit == "max_servers" else int(getattr(plan, limit.removeprefix("max_")))
