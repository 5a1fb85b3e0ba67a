"""Sums over an account's rows, kept up so that they cost the same for a hundred rows and for a million.

Whoever changes one adds a row that says by how much, in the transaction of the change; the sum is that of a few rows.
So nobody waits for anybody, as all would at a row that all change. Triggers of the database add them (migration 0009):
whatever writes there, be it another version of vpsd, keeps them right. `compact` makes one row of many.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
)

from vpsd.core.context import Ctx
from vpsd.core.db import Statement, metadata
from vpsd.core.tables import identity, total

SUMS: "list[Sums]" = []
"""All that there are."""

_MANY = 32  # rows of an account that still cost next to nothing to add up
_MOST = 5_000  # rows that one transaction makes fewer


class Crowd(msgspec.Struct, frozen=True):
    """How many rows the sums of an account are made of."""

    account_id: int
    rows: int


class Difference(msgspec.Struct, frozen=True):
    """What has to be added to an account's sums so that they are right: columns and values."""

    account_id: int
    of: dict[str, str]
    amounts: dict[str, int]

    def __str__(self) -> str:
        return ", ".join([*self.of.values(), *(f"{name} {value:+}" for name, value in self.amounts.items() if value)])


class Sums:
    """A table of an account's sums: what they are told apart by, and what is added up.

    `over` selects the rows that they are the sums of; a column that it lacks is 0 there.
    """

    def __init__(
        self, name: str, by: Sequence[Column[Any]], added: Sequence[Column[Any]], over: Sequence[Select[Any]]
    ) -> None:
        self.table = Table(
            name,
            metadata,
            identity(),
            # It has no reference to accounts, which would be looked up at each change.
            Column("account_id", BigInteger, nullable=False, index=True),
            *by,
            *added,
            sqlite_autoincrement=True,
        )
        self._by, self._added = [str(each.name) for each in by], [str(each.name) for each in added]
        names = ["account_id", *self._by, *self._added]
        row: Any = msgspec.defstruct(name, [("id", int), *((each, Any) for each in names)], frozen=True)
        c = self.table.c
        self._rows: Statement[Any] = Statement(
            select(self.table)
            .where(c.account_id == bindparam("account_id"))
            .order_by(c.id)
            .limit(bindparam("limit"))
            .with_for_update(skip_locked=True),
            into=row,
        )
        changed = select(c.account_id).where(c.id > bindparam("after_id")).distinct()
        self._crowds = Statement(
            select(c.account_id, func.count().label("rows")).where(c.account_id.in_(changed)).group_by(c.account_id),
            into=Crowd,
        )
        self._last = Statement(select(func.max(c.id)), into=int)
        self._remove = Statement(delete(self.table).where(c.id == bindparam("id")))
        self._add = Statement(insert(self.table), names)
        self._differences: Statement[Any] = Statement(self._compare(over), into=row)
        SUMS.append(self)

    def _compare(self, over: Sequence[Select[Any]]) -> Select[Any]:
        c = self.table.c
        keys = ["account_id", *self._by]
        stands = select(*(c[name] for name in keys), *((-c[name]).label(name) for name in self._added))
        right = []
        for rows in (each.subquery() for each in over):
            amounts = [rows.c[name] if name in rows.c else literal(0).label(name) for name in self._added]
            right.append(select(*(rows.c[name] for name in keys), *amounts))
        every = union_all(stands, *right).subquery()
        key = [every.c[name] for name in keys]
        missing = {name: total(every.c[name]) for name in self._added}
        return (
            select(literal(0).label("id"), *key, *(amount.label(name) for name, amount in missing.items()))
            .group_by(*key)
            .having(or_(*(amount != 0 for amount in missing.values())))
            .order_by(*key)
        )

    async def crowds(self, ctx: Ctx, after_id: int) -> tuple[list[Crowd], int]:
        """Accounts whose sums have many rows, some of them above an id, and the highest id that there is."""
        last = await ctx.tx.first(self._last) or 0
        if last <= after_id:
            return [], last
        return [one for one in await ctx.tx.all(self._crowds, after_id=after_id) if one.rows > _MANY], last

    async def compact(self, ctx: Ctx, account_id: int) -> bool:
        """Make one row of an account's rows that differ in their amounts alone; whether there may be more to do.

        Rows that somebody else is at are left to them.
        """
        rows = await ctx.tx.all(self._rows, account_id=account_id, limit=_MOST)
        sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(self._added))
        for row in rows:
            amounts = sums[tuple(getattr(row, name) for name in self._by)]
            for number, name in enumerate(self._added):
                amounts[number] += getattr(row, name)
        if len(rows) < 2 * len(sums):
            return False
        await ctx.tx.many(self._remove, [{"id": row.id} for row in rows])
        kept = [
            Difference(account_id, dict(zip(self._by, key, strict=True)), dict(zip(self._added, amounts, strict=True)))
            for key, amounts in sums.items()
            if any(amounts)
        ]
        await self.add(ctx, kept)
        return len(rows) == _MOST

    async def differences(self, ctx: Ctx) -> list[Difference]:
        """Where the sums are not what the rows sum up to; nothing while triggers keep them."""
        return [
            Difference(
                row.account_id,
                {name: getattr(row, name) for name in self._by},
                {name: getattr(row, name) for name in self._added},
            )
            for row in await ctx.tx.all(self._differences)
        ]

    async def add(self, ctx: Ctx, differences: Sequence[Difference]) -> None:
        """Add to the sums, so that they are right whatever others add meanwhile."""
        if differences:
            await ctx.tx.many(
                self._add, [{"account_id": one.account_id, **one.of, **one.amounts} for one in differences]
            )
