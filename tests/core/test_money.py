"""Money is exact: what is read is what was written, and what is finer or larger than an amount can be is refused."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpsd.core import money
from vpsd.core.money import LARGEST_MICROS, MICROS

amounts = st.integers(-LARGEST_MICROS, LARGEST_MICROS)
pure = settings(derandomize=True, max_examples=200, deadline=None)


@pure
@given(micros=amounts)
def test_what_is_written_is_read_back_to_the_last_micro(micros: int) -> None:
    assert money.parse(money.decimal(micros)) == micros
    assert money.parse(Decimal(money.decimal(micros))) == micros


@pure
@given(micros=amounts)
def test_text_is_the_amount_itself_with_two_to_six_places(micros: int) -> None:
    text = money.decimal(micros)
    with localcontext() as context:
        context.prec = 40
        assert Decimal(text) * MICROS == micros
    whole, places = text.removeprefix("-").split(".")
    assert text.startswith("-") == (micros < 0)
    assert str(int(whole)) == whole
    assert 2 <= len(places) <= 6
    assert len(places) == 2 or not places.endswith("0")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        *(("5", 5_000_000), ("5.00", 5_000_000), ("12.50", 12_500_000), ("-0.007441", -7441), ("+3", 3_000_000)),
        *(("0", 0), ("-0", 0), ("0.000001", 1), ("1e3", 1_000_000_000), ("25e-2", 250_000), (" 5 ", 5_000_000)),
        *(("1000000000", LARGEST_MICROS), ("-1000000000", -LARGEST_MICROS), ("999999999.999999", LARGEST_MICROS - 1)),
        *(("0.0000010", 1), ("1.0000000000000000000000000000000000000000", 1_000_000)),  # zeros make nothing finer
    ],
)
def test_a_decimal_number_is_read_exactly(text: str, micros: int) -> None:
    assert money.parse(text) == micros


@pytest.mark.parametrize("text", ["", "abc", "1,50", "5 USD", "0x10", "--5", "1.2.3", "sNaN", "NaN", "nan"])
def test_what_is_no_number_is_refused_with_a_word(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an amount|is beyond"):
        money.parse(text)


@pytest.mark.parametrize("text", ["1000000000.000001", "-1000000000.000001", "1e10", "Infinity", "-Infinity", "1e100"])
def test_more_than_anybody_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is beyond 1000000000 credits"):
        money.parse(text)


@pytest.mark.parametrize("text", ["0.0000001", "0.0000005", "-1.0000001", "1e-7", "999999999.9999999"])
def test_what_is_finer_than_a_micro_is_refused_and_never_rounded(text: str) -> None:
    with pytest.raises(ValueError, match="is finer than a millionth of a credit"):
        money.parse(text)


@pytest.mark.parametrize("text", ["1.0000000000000000000000000000001", "0." + "0" * 60 + "1", "1e-9999999"])
def test_not_even_digits_beyond_a_decimals_precision_are_rounded_away(text: str) -> None:
    with pytest.raises(ValueError, match="is finer than a millionth of a credit"):
        money.parse(text)


@pytest.mark.parametrize("text", ["1e999999", "-1e999999", "9e999999999"])
def test_a_number_that_overflows_is_refused_like_any_other_that_is_too_large(text: str) -> None:
    with pytest.raises(ValueError, match="is beyond 1000000000 credits"):
        money.parse(text)


@pure
@given(digits=st.text("0123456789", min_size=1, max_size=12), places=st.text("0123456789", max_size=40))
def test_a_number_is_read_exactly_or_refused(digits: str, places: str) -> None:
    text = f"{digits}.{places}"
    micros = int(digits) * MICROS + int(places[:6].ljust(6, "0"))
    exact = not places[6:].strip("0")
    if exact and micros <= LARGEST_MICROS:
        assert money.parse(text) == micros
    else:
        with pytest.raises(ValueError, match=r"is beyond|is finer"):
            money.parse(text)
