"""What a server costs: pure functions of its rentals, in whole micros and in UTC.

VPS.org's rule (its FAQ): by the hour up to the monthly price; an hour costs the month's price / 672. vpsd applies it to
the millisecond: part of an hour costs that part. By construction, a month costs at most the highest price that the
server had in it. The cost of an interval is the difference between two values of one monotonic function, so adjacent
intervals add up to the last micro, however they are divided and however late they are charged.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from vpsd.billing.models import Charge, Rental
from vpsd.core.clock import month_name
from vpsd.core.units import GIB, HOUR_MS

FULL_MONTH_MS = 672 * HOUR_MS


class Month(msgspec.Struct, frozen=True):
    """A calendar month of UTC: `start_ms` belongs to it, `end_ms` to the next."""

    name: str  # 2026-11
    start_ms: int
    end_ms: int


@lru_cache(maxsize=64)
def month_named(name: str) -> Month:
    """The month of a name like 2026-11; raises ValueError for any other text."""
    start = datetime.strptime(name, "%Y-%m").replace(tzinfo=UTC)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return Month(start.strftime("%Y-%m"), round(start.timestamp() * 1000), round(end.timestamp() * 1000))


@lru_cache(maxsize=4096)
def _month_of_hour(hour: int) -> Month:
    return month_named(month_name(hour * HOUR_MS))


def month_of(at_ms: int) -> Month:
    """The month that a time belongs to."""
    return _month_of_hour(at_ms // HOUR_MS)


class Span(msgspec.Struct, frozen=True):
    """A span of time, and what it amounts to over a whole month (672 hours)."""

    from_ms: int
    to_ms: int | None
    full: int


def accrued(spans: Sequence[Span], month: Month, until_ms: int) -> int:
    """What consecutive spans amount to in a month, until a time; grows monotonically with that time."""
    total = most = 0
    for span in spans:
        begin = max(span.from_ms, month.start_ms)
        end = min(month.end_ms, until_ms, month.end_ms if span.to_ms is None else span.to_ms)
        if begin < end:
            most = max(most, span.full)
            total = min(most, total + span.full * (end - begin) // FULL_MONTH_MS)
    return total


def price_spans(rentals: Sequence[Rental]) -> list[Span]:
    """The monthly prices of a server's rentals, in micros."""
    return [Span(rental.from_ms, rental.to_ms, rental.price_monthly_micros) for rental in rentals]


def transfer_spans(rentals: Sequence[Rental]) -> list[Span]:
    """The monthly transfer that a server's rentals include, in bytes."""
    return [Span(rental.from_ms, rental.to_ms, rental.bandwidth_gb * GIB) for rental in rentals]


def intervals(from_ms: int, until_ms: int) -> Iterator[tuple[int, int]]:
    """A span of time split at every full hour of UTC."""
    while from_ms < until_ms:
        end_ms = min(until_ms, (from_ms // HOUR_MS + 1) * HOUR_MS)
        yield from_ms, end_ms
        from_ms = end_ms


def charge_until(rental: Rental, now_ms: int) -> int:
    """Until when a rental can be charged: the last full hour, or its end if that has passed."""
    if rental.to_ms is not None and rental.to_ms <= now_ms:
        return rental.to_ms
    return now_ms // HOUR_MS * HOUR_MS


def server_charges(rental: Rental, rentals: Sequence[Rental], until_ms: int) -> Iterator[Charge]:
    """The charges for a rental since it was last charged; `rentals` are all of the server's, in order."""
    spans = price_spans(rentals)
    month, before = None, 0
    for from_ms, to_ms in intervals(rental.charged_until_ms, until_ms):
        if month is None or from_ms == month.end_ms:
            month = month_of(from_ms)
            before = accrued(spans, month, from_ms)
        after = accrued(spans, month, to_ms)
        yield Charge(
            0, 0, rental.server_id, rental.plan_id, "server", from_ms, to_ms, to_ms - from_ms,
            rental.price_monthly_micros, after - before,
        )  # fmt: skip
        before = after


def cost(rentals: Sequence[Rental], from_ms: int, until_ms: int) -> int:
    """What a server costs between two times, which may be in different months."""
    spans, total = price_spans(rentals), 0
    while from_ms < until_ms:
        month = month_of(from_ms)
        end_ms = min(month.end_ms, until_ms)
        total += accrued(spans, month, end_ms) - accrued(spans, month, from_ms)
        from_ms = end_ms
    return total


def transfer_over(rentals: Sequence[Rental], month: Month, until_ms: int, received: int, sent: int) -> int:
    """Bytes beyond what the plans include: the larger of in and out counts, and part of a month includes that part."""
    return max(0, max(received, sent) - accrued(transfer_spans(rentals), month, until_ms))


def transfer_cost(over_bytes: int, price_micros: int) -> int:
    """What bytes beyond the plan cost, at a price per GB."""
    return over_bytes * price_micros // GIB


def price_hourly(price_monthly_micros: int) -> int:
    """The hourly price as VPS.org shows it: the monthly one / 672, rounded to a thousandth of a credit."""
    return (price_monthly_micros // 672 + 500) // 1000 * 1000
