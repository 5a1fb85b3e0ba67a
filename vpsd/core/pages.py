"""Pages of a list: `page` and `page_size`, as the official client asks for them."""

import msgspec

from vpsd.errors import Invalid

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: pages count from 1."""

    number: int = 1
    size: int = DEFAULT_SIZE

    @property
    def offset(self) -> int:
        """How many entries come before."""
        return (self.number - 1) * self.size

    def check(self, count: int) -> None:
        """Refuse a page beyond the last with `Invalid`; the first page of an empty list exists."""
        last = max(1, -(-count // self.size))
        if self.number > last:
            raise Invalid({"page": [f"There is no page {self.number}; the last one is {last}."]})
