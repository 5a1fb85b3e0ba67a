"""Pages of a list: `page` and `page_size`, as the official client asks for them."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vpsd.core.forms import Form
from vpsd.errors import Invalid

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
_LARGEST_OFFSET = 2**62  # beyond any list, and still a number that databases take


class PageQuery(msgspec.Struct):
    """What every list can be asked."""

    page: Annotated[
        int, Meta(ge=1, description="Which page, from 1", extra={"message": "Give a whole number from 1."})
    ] = 1
    page_size: Annotated[
        int,
        Meta(
            ge=1,
            le=LARGEST_SIZE,
            description="How many to a page",
            extra={"message": f"Give a whole number from 1 to {LARGEST_SIZE}."},
        ),
    ] = DEFAULT_SIZE


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: pages count from 1."""

    number: int = 1
    size: int = DEFAULT_SIZE

    @classmethod
    def of(cls, asked: Form[Any]) -> "Page":
        """The page that was asked for; the first where none was or where it was nonsense."""
        return cls(asked.get("page", 1), asked.get("page_size", DEFAULT_SIZE))

    @property
    def offset(self) -> int:
        """How many entries come before."""
        return min((self.number - 1) * self.size, _LARGEST_OFFSET)

    def check(self, count: int) -> None:
        """Refuse a page beyond the last with `Invalid`; the first page of an empty list exists."""
        last = max(1, -(-count // self.size))
        if self.number > last:
            raise Invalid({"page": [f"There is no page {self.number}; the last one is {last}."]})
