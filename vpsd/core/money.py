"""Money: whole millionths of a credit (micros), so that every sum is exact; decimal numbers at the edges.

A credit is one unit of the currency that the operator sets. No amount is ever a float, not even in JSON.
"""

from decimal import Decimal, InvalidOperation

MICROS = 1_000_000
_PLACES = 6
LARGEST_MICROS = 10**15  # a billion credits: more than anybody has, with room for sums below 2**63
_LARGEST_DIGITS = 15 - _PLACES  # before the point, less one


def parse(amount: Decimal | str) -> int:
    """Micros of a decimal number; raises ValueError with a text for the person who entered it."""
    try:
        exact = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"{amount} is not an amount; write it like 12.50") from None
    # By its digits: arithmetic of decimals would round what is longer than its precision.
    if not exact.is_finite() or (exact and exact.adjusted() > _LARGEST_DIGITS):
        raise ValueError(f"{amount} is beyond {LARGEST_MICROS // MICROS} credits")
    sign, digits, exponent = exact.as_tuple()
    assert isinstance(exponent, int)
    dropped = max(0, -exponent - _PLACES)  # digits below a millionth
    kept, rest = (digits[:-dropped], digits[-dropped:]) if dropped else (digits, ())
    if any(rest):
        raise ValueError(f"{amount} is finer than a millionth of a credit")
    micros: int = int("".join(map(str, kept)) or "0") * 10 ** max(0, exponent + _PLACES if any(kept) else 0)
    if micros > LARGEST_MICROS:
        raise ValueError(f"{amount} is beyond {LARGEST_MICROS // MICROS} credits")
    return -micros if sign else micros


def decimal(micros: int) -> str:
    """A decimal number with at least two decimal places and no more than necessary: 5.00, -0.007441."""
    whole, rest = divmod(abs(micros), MICROS)
    return f"{'-' if micros < 0 else ''}{whole}.{f'{rest:06}'.rstrip('0'):0<2}"
