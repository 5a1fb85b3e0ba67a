"""The ledger: credits, and one row for each batch of charges. The balance is its sum."""

import msgspec
from sqlalchemy import BigInteger, bindparam, cast, func, insert, select

from vpsd.billing.models import Entry, account_sums, ledger
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.pages import Page, PagedList, Part
from vpsd.core.tables import total

_l, _s = ledger.c, account_sums.table.c
_OWN = _l.account_id == bindparam("account_id")


class _Balance(msgspec.Struct, frozen=True):
    account_id: int
    micros: int


_BALANCE = Statement(
    select(total(_s.balance_micros)).where(_s.account_id == bindparam("account_id")),
    into=int,
)
_BALANCES = Statement(
    select(_l.account_id, total(_l.amount_micros).label("micros")).group_by(_l.account_id), into=_Balance
)
_balanced = (  # within: a balance is the sum of all rows before it, whichever of them are on the page
    select(
        *(_l.id, _l.uuid, _l.kind, _l.amount_micros, _l.description, _l.reference, _l.created_at_ms),
        cast(func.sum(_l.amount_micros).over(order_by=_l.id), BigInteger).label("balance_micros"),
    )
    .where(_OWN)
    .subquery()
)
_ENTRIES = PagedList(
    select(_balanced),
    _balanced.c.id,
    into=Entry,
    newest_first=True,
    count=select(func.count()).select_from(ledger).where(_OWN),
)
_ADD = Statement(
    insert(ledger).returning(_l.id),
    ("uuid", "account_id", "kind", "amount_micros", "description", "reference", "created_at_ms"),
    into=int,
)
_BY_REFERENCE = Statement(select(_l.id).where(_OWN, _l.reference == bindparam("reference")), into=int)


async def balance(ctx: Ctx) -> int:
    """The account's balance, in micros."""
    return await ctx.tx.first(_BALANCE, account_id=ctx.account_id) or 0


async def balances(ctx: Ctx) -> dict[int, int]:
    """The balances of all accounts that have a ledger, in micros, by account."""
    return {found.account_id: found.micros for found in await ctx.tx.all(_BALANCES)}


async def entries(ctx: Ctx, page: Page) -> Part[Entry]:
    """How many rows the account's ledger has, and a page of them, newest first."""
    return await _ENTRIES.read(ctx, page)


async def is_booked(ctx: Ctx, reference: str) -> bool:
    """Whether the account has a row with that reference."""
    return await ctx.tx.first(_BY_REFERENCE, account_id=ctx.account_id, reference=reference) is not None


async def add_entry(ctx: Ctx, kind: str, amount_micros: int, description: str, reference: str | None = None) -> int:
    """Add a row to the account's ledger; returns its id."""
    entry_id = await ctx.tx.first(
        _ADD,
        uuid=ctx.ids.uuid(),
        account_id=ctx.account_id,
        kind=kind,
        amount_micros=amount_micros,
        description=description,
        reference=reference,
        created_at_ms=ctx.now_ms,
    )
    assert entry_id is not None
    return entry_id
