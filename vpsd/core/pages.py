"""Pages of a list."""

import msgspec

from vpsd.errors import Fault, Invalid

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
_LARGEST_OFFSET = 2**62  # beyond any list, and still a number that databases take


class NoSuchPage(Fault, frozen=True):
    """The list ends before that page."""

    number: int
    last: int

    def __str__(self) -> str:
        return f"There is no page {self.number}; the last one is {self.last}."


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: pages count from 1."""

    number: int = 1
    size: int = DEFAULT_SIZE

    @property
    def offset(self) -> int:
        """How many entries come before."""
        return min((self.number - 1) * self.size, _LARGEST_OFFSET)

    def check(self, count: int) -> None:
        """Refuse a page beyond the last with `Invalid`; the first page of an empty list exists."""
        last = max(1, -(-count // self.size))
        if self.number > last:
            raise Invalid({"page": [NoSuchPage(self.number, last)]})
