"""Pages of a list."""

from typing import Any, Generic

import msgspec
from sqlalchemy import Select, bindparam, func

from vpsd.core.context import Ctx
from vpsd.core.db import Row, Statement
from vpsd.errors import Fault, Invalid

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
_LARGEST_OFFSET = 2**62  # beyond any list, and still within what databases accept


class NoSuchPage(Fault, frozen=True):
    """The list ends before that page."""

    number: int
    last: int

    def __str__(self) -> str:
        return f"There is no page {self.number}; the last one is {self.last}."


class Page(msgspec.Struct, frozen=True):
    """Part of a list; pages are numbered from 1."""

    number: int = 1
    size: int = DEFAULT_SIZE

    @property
    def offset(self) -> int:
        """The number of entries before it."""
        return min((self.number - 1) * self.size, _LARGEST_OFFSET)

    def check(self, count: int) -> None:
        """Refuse a page beyond the last with `Invalid`; the first page of an empty list exists."""
        last = max(1, -(-count // self.size))
        if self.number > last:
            raise Invalid({"page": [NoSuchPage(self.number, last)]})


class PagedList(Generic[Row]):
    """A list of an account that is read page by page: `rows` selects all of it, in order."""

    def __init__(self, rows: Select[Any], *, into: type[Row]) -> None:
        self.page = Statement(rows.limit(bindparam("limit")).offset(bindparam("offset")), into=into)
        self.count = Statement(
            rows.with_only_columns(func.count(), maintain_column_froms=True).order_by(None), into=int
        )

    async def read(self, ctx: Ctx, page: Page, **values: Any) -> tuple[int, list[Row]]:
        """How long the account's list is, and a page of it; `values` are what else the select asks for."""
        values = {"account_id": ctx.account_id, **values}
        count = await ctx.tx.first(self.count, **values)
        return count or 0, await ctx.tx.all(self.page, **values, limit=page.size, offset=page.offset)
