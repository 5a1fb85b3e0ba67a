"""Pages of a list: by number, or on from the entry where the last one ended, whatever comes and goes meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any, Generic

import msgspec
from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, func

from vpsd.core.context import Ctx
from vpsd.core.db import Row, Statement
from vpsd.errors import Fault

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
_LARGEST_OFFSET = 2**62  # beyond any list, and still within what databases accept


class ForeignCursor(Fault, frozen=True):
    """A cursor that the list did not give, at least not for these filters in this order."""

    def __str__(self) -> str:
        return (
            "This is no cursor of this list with these filters in this order. Send the one of next as it came; leave "
            "cursor out to begin anew."
        )


class Position(msgspec.Struct, frozen=True):
    """A place in a list: the id of an entry, and its sort key where the list is not ordered by ids alone."""

    id: int
    key: str | int | None = None


class Page(msgspec.Struct, frozen=True):
    """Part of a list: the entries `after` a position or, without one, a page by its number, from 1."""

    number: int = 1
    size: int = DEFAULT_SIZE
    after: Position | None = None

    @property
    def offset(self) -> int:
        """The number of entries before it, for one by its number."""
        return min((self.number - 1) * self.size, _LARGEST_OFFSET)


class Part(msgspec.Struct, Generic[Row], frozen=True):
    """What is on a page, how many entries the list has in all, and where it goes on; None at its end."""

    count: int
    rows: list[Row]
    end: Position | None

    @classmethod
    def of(
        cls,
        page: Page,
        count: int,
        rows: Sequence[Row],
        position: Callable[[Any], Position] = lambda row: Position(row.id),
    ) -> "Part[Row]":
        """A page of which one row more than it holds was read, if there is one."""
        shown = list(rows[: page.size])
        return cls(count, shown, position(shown[-1]) if len(rows) > page.size else None)


class PagedList(Generic[Row]):
    """A list of an account in the order of its ids, read page by page: `rows` selects all of it.

    `count` counts them, where that is cheaper than to count what `rows` selects.
    """

    def __init__(
        self,
        rows: Select[Any],
        by: ColumnElement[int],
        *,
        into: type[Row],
        newest_first: bool = False,
        count: Select[Any] | None = None,
    ) -> None:
        after: BindParameter[int] = bindparam("after_id")
        ordered = rows.order_by(None).order_by(by.desc() if newest_first else by).limit(bindparam("limit"))
        self.page = Statement(ordered.offset(bindparam("offset")), into=into)
        self.onwards = Statement(ordered.where(by < after if newest_first else by > after), into=into)
        counted = rows.with_only_columns(func.count(), maintain_column_froms=True).order_by(None)
        self.count = Statement(counted if count is None else count, into=int)

    async def read(self, ctx: Ctx, page: Page, **values: Any) -> Part[Row]:
        """A page of the account's list; `values` are what else the select asks for."""
        values = {"account_id": ctx.account_id, **values}
        count = await ctx.tx.first(self.count, **values) or 0
        if page.after is None:
            rows = await ctx.tx.all(self.page, **values, limit=page.size + 1, offset=page.offset)
        else:
            rows = await ctx.tx.all(self.onwards, **values, limit=page.size + 1, after_id=page.after.id)
        return Part.of(page, count, rows)
