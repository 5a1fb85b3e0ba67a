"""Money on the wire: JSON numbers with every digit."""

from decimal import Decimal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from vpsd.api.vps_org.schemas.amounts import amount, amount_or_none
from vpsd.core import money
from vpsd.core.money import LARGEST_MICROS


@settings(derandomize=True, max_examples=200, deadline=None)
@given(micros=st.integers(-LARGEST_MICROS, LARGEST_MICROS))
def test_on_the_wire_an_amount_is_a_number_with_every_digit(micros: int) -> None:
    sent = msgspec.json.encode({"amount": amount(micros)})
    assert sent == b'{"amount":' + money.decimal(micros).encode() + b"}"
    assert money.parse(msgspec.json.decode(sent, type=dict[str, Decimal])["amount"]) == micros


def test_a_limit_that_is_not_set_is_null_on_the_wire() -> None:
    assert msgspec.json.encode(amount_or_none(None)) == b"null"
    assert msgspec.json.encode(amount_or_none(12_500_000)) == b"12.50"
