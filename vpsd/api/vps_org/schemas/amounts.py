"""Money as it goes over the wire: JSON numbers written from decimal text, never floats."""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from vpsd.core import money

Amount: TypeAlias = Annotated[msgspec.Raw, Meta(description="Credits, exactly", extra_json_schema={"type": "number"})]


def amount(micros: int) -> Amount:
    """A JSON number with every digit."""
    return msgspec.Raw(money.decimal(micros).encode())


def amount_or_none(micros: int | None) -> Amount | None:
    """Like `amount`, for limits that may not be set."""
    return None if micros is None else amount(micros)
