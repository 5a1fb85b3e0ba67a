"""Prices are pure: whatever a server's history and whenever the meter looks, its charges are what it costs."""

import calendar
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpsd.billing import prices
from vpsd.billing.models import Charge, Rental
from vpsd.billing.prices import FULL_MONTH_MS, Month, Span
from vpsd.core import money
from vpsd.core.units import DAY_MS, GIB, HOUR_MS


def _ms(year: int, month: int, day: int = 1, hour: int = 0, minute: int = 0) -> int:
    """A moment of UTC, reckoned without what is tested."""
    return calendar.timegm((year, month, day, hour, minute, 0)) * 1000


# Ends of months of 28, 29, 30 and 31 days, of a year, and of summer time (Europe: 1:00 UTC, New York: 6:00 and 7:00).
EDGES = [
    *(_ms(2026, 3), _ms(2027, 3), _ms(2028, 3), _ms(2026, 5), _ms(2026, 8), _ms(2027, 1)),
    *(_ms(2026, 3, 29, 1), _ms(2026, 10, 25, 1), _ms(2026, 3, 8, 7), _ms(2026, 11, 1, 6), _ms(2026, 11, 1, 4)),
]
moments = st.builds(
    lambda edge, offset: edge + offset,
    st.sampled_from(EDGES),
    st.integers(-35 * DAY_MS, 35 * DAY_MS) | st.integers(-2, 2),
)
durations = st.one_of(
    st.integers(0, 2),  # of nothing too: what was to begin later and never began
    st.integers(1, 3 * HOUR_MS),
    st.sampled_from([HOUR_MS, DAY_MS, FULL_MONTH_MS - 1, FULL_MONTH_MS, FULL_MONTH_MS + 1]),
    st.integers(DAY_MS, 70 * DAY_MS),
)
monthly_prices = st.sampled_from([0, 1, 671, 2_000_000, 5_000_000, 10_000_000]) | st.integers(0, 10**9)

pure = settings(
    derandomize=True,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def histories(draw: st.DrawFn) -> list[Rental]:
    """A server's rentals, one after the other: made, repriced or resized a few times, deleted or going on."""
    from_ms = draw(moments)
    had: list[Rental] = []
    stretches = draw(st.lists(st.tuples(durations, monthly_prices, st.integers(0, 4096)), min_size=1, max_size=4))
    goes_on = draw(st.booleans())
    for number, (duration, price, bandwidth_gb) in enumerate(stretches):
        last = goes_on and number == len(stretches) - 1
        to_ms = None if last else from_ms + duration
        had.append(Rental(number + 1, 1, 1, number % 3 + 1, price, bandwidth_gb, from_ms, to_ms, from_ms, from_ms))
        from_ms += duration
    return had


@st.composite
def looks(draw: st.DrawFn) -> tuple[list[Rental], list[int]]:
    """A history, and when the meter looked at the clock: late, often, after days of downtime, at a clock set back."""
    had = draw(histories())
    jumps = draw(st.lists(durations | st.integers(-3 * DAY_MS, 0), max_size=8))
    now, seen = had[0].from_ms, []
    for jump in jumps:
        now += jump
        seen.append(now)
    return had, seen


def _look(had: list[Rental], now_ms: int) -> list[Charge]:
    """What the meter does when it looks at a clock: it charges what is due and moves its place."""
    made: list[Charge] = []
    for number, rental in enumerate(had):
        until_ms = prices.charge_until(rental, now_ms)
        if rental.charged_until_ms < until_ms:
            made += prices.server_charges(rental, had, until_ms)
            had[number] = msgspec.structs.replace(rental, charged_until_ms=until_ms)
    return made


def _place(had: list[Rental]) -> int:
    return max(rental.charged_until_ms for rental in had if rental.charged_until_ms > rental.from_ms)


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/New_York"])
def time_zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The process's own time zone; pytest's patches know nothing of tzset, so it is undone by hand."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    prices.month_named.cache_clear()
    prices._month_of_hour.cache_clear()
    yield request.param
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pure
@given(case=looks())
def test_charges_follow_one_another_and_are_never_below_zero(
    time_zone: str, case: tuple[list[Rental], list[int]]
) -> None:
    had, seen = case
    began = had[0].from_ms
    made = [charge for now in seen for charge in _look(had, now)]
    assert all(charge.from_ms < charge.to_ms <= max(seen) for charge in made)
    assert all(charge.quantity == charge.to_ms - charge.from_ms <= HOUR_MS for charge in made)
    assert all(charge.amount_micros >= 0 for charge in made)
    assert all(earlier.to_ms == later.from_ms for earlier, later in pairwise(made))
    assert [charge.from_ms for charge in made[:1]] in ([], [began])
    # The database's unique index stands on these: an hour has one first moment, however it is cut.
    assert len({charge.from_ms for charge in made}) == len(made)


@pure
@given(case=looks())
def test_charging_piece_by_piece_adds_up_to_the_cost_in_one_go(
    time_zone: str, case: tuple[list[Rental], list[int]]
) -> None:
    had, seen = case
    made = [charge for now in seen for charge in _look(had, now)]
    if made:
        assert sum(charge.amount_micros for charge in made) == prices.cost(had, had[0].from_ms, _place(had))


@pure
@given(had=histories(), cuts=st.lists(st.integers(0, 200 * DAY_MS), max_size=6))
def test_costs_of_pieces_add_up_wherever_they_are_cut(had: list[Rental], cuts: list[int]) -> None:
    began = had[0].from_ms
    places = sorted([began, *(began + cut for cut in cuts)])
    whole = prices.cost(had, began, places[-1])
    assert whole == sum(prices.cost(had, first, last) for first, last in pairwise(places))


@pure
@given(case=looks())
def test_a_month_never_costs_more_than_the_highest_price_in_it(
    time_zone: str, case: tuple[list[Rental], list[int]]
) -> None:
    had, seen = case
    of_month: dict[str, int] = {}
    for charge in (charge for now in seen for charge in _look(had, now)):
        name = time.strftime("%Y-%m", time.gmtime(charge.from_ms // 1000))
        of_month[name] = of_month.get(name, 0) + charge.amount_micros
    for name, total in of_month.items():
        year, month = map(int, name.split("-"))
        start, end = _ms(year, month), _ms(year + month // 12, month % 12 + 1)
        assert total <= max(
            rental.price_monthly_micros
            for rental in had
            if rental.from_ms < end and (rental.to_ms is None or rental.to_ms > max(start, rental.from_ms))
        )


@pure
@given(had=histories(), months=st.integers(0, 3), offsets=st.lists(st.integers(-DAY_MS, 32 * DAY_MS), min_size=2))
def test_what_has_accrued_never_falls_as_the_moment_moves_on(
    time_zone: str, had: list[Rental], months: int, offsets: list[int]
) -> None:
    month = prices.month_of(had[0].from_ms)
    for _ in range(months):
        month = prices.month_of(month.end_ms)
    spans = prices.price_spans(had)
    accrued = [prices.accrued(spans, month, month.start_ms + offset) for offset in sorted(offsets)]
    assert all(0 <= earlier <= later for earlier, later in pairwise(accrued))
    assert prices.accrued(spans, month, month.start_ms) == 0  # what was before belongs to the month before


@pure
@given(price=monthly_prices, first=moments, duration=durations)
def test_a_stretch_at_one_price_costs_its_share_to_the_millisecond(price: int, first: int, duration: int) -> None:
    month = prices.month_of(first)
    until_ms = min(first + duration, month.end_ms)
    exact = min(Fraction(price), Fraction(price * (until_ms - first), 672 * 3_600_000))
    accrued = prices.accrued([Span(first, None, price)], month, until_ms)
    assert exact - 1 < accrued <= exact  # parts of a micro are dropped, never asked for


@pytest.mark.parametrize(
    ("name", "days"),
    [("2027-02", 28), ("2028-02", 29), ("2026-03", 31), ("2026-11", 30), ("2026-10", 31), ("2026-12", 31)],
)
@pytest.mark.parametrize("price", [1, 2_000_000, 5_000_000, 9_999_999])
def test_a_full_month_at_one_price_costs_exactly_that(time_zone: str, name: str, days: int, price: int) -> None:
    month = prices.month_named(name)
    assert month.end_ms - month.start_ms == days * DAY_MS
    before, after = month.start_ms - 5 * DAY_MS - 1, month.end_ms + 5 * DAY_MS + 1
    had = [Rental(1, 1, 1, 1, price, 1, before, None, before, before)]
    made = _look(had, after)
    assert sum(charge.amount_micros for charge in made if month.start_ms <= charge.from_ms < month.end_ms) == price
    assert prices.cost(had, month.start_ms, month.end_ms) == price


@pure
@given(price=monthly_prices, begins=st.integers(0, 3 * DAY_MS))
def test_672_hours_within_a_month_cost_exactly_the_price_and_a_millisecond_less_costs_no_more(
    price: int, begins: int
) -> None:
    month = prices.month_named("2026-07")
    first = month.start_ms + begins
    had = [Rental(1, 1, 1, 1, price, 1, first, None, first, first)]
    assert prices.cost(had, first, first + FULL_MONTH_MS) == price
    assert prices.cost(had, first, month.end_ms) == price
    assert price - 1 <= prices.cost(had, first, first + FULL_MONTH_MS - 1) <= price


@pytest.mark.parametrize("edge", EDGES)
def test_months_are_those_of_utc_wherever_the_process_is(time_zone: str, edge: int) -> None:
    for at_ms in (edge - 1, edge, edge + HOUR_MS - 1):
        utc = time.gmtime(at_ms // 1000)
        start = _ms(utc.tm_year, utc.tm_mon)
        end = _ms(utc.tm_year + utc.tm_mon // 12, utc.tm_mon % 12 + 1)
        name = f"{utc.tm_year}-{utc.tm_mon:02}"
        assert prices.month_of(at_ms) == prices.month_named(name) == Month(name, start, end)
    month = prices.month_of(edge)
    assert prices.month_of(month.start_ms - 1).end_ms == month.start_ms


def test_a_change_of_the_clock_in_spring_and_autumn_makes_no_hour_longer_or_shorter(time_zone: str) -> None:
    for edge in EDGES:
        cut = list(prices.intervals(edge - DAY_MS - 1, edge + DAY_MS + 1))
        assert [end - begin for begin, end in cut] == [1, *[HOUR_MS] * 48, 1]


def test_a_month_that_is_none_is_refused() -> None:
    for name in ("2026-13", "2026-00", "2026", "November", ""):
        with pytest.raises(ValueError, match=r"does not match|unconverted data"):
            prices.month_named(name)


@pytest.mark.parametrize(
    ("price", "shown"), [("5.00", "0.007"), ("10.00", "0.015"), ("20.00", "0.03"), ("2.00", "0.003"), ("0", "0.00")]
)
def test_the_hours_price_is_shown_to_a_thousandth_as_its_source_shows_it(price: str, shown: str) -> None:
    assert money.parse(money.decimal(prices.price_hourly(money.parse(price)))) == money.parse(shown)


def test_an_hour_of_5_00_a_month_is_charged_by_672nds_and_not_as_shown() -> None:
    first = _ms(2026, 11)
    had = [Rental(1, 1, 1, 3, 5_000_000, 1024, first, None, first, first)]
    (charge,) = _look(had, first + HOUR_MS)
    assert charge.amount_micros == 5_000_000 // 672 == 7440


def test_part_of_an_hour_is_charged_when_the_server_is_gone_and_not_before() -> None:
    first = _ms(2026, 11, 5, 10, 20)
    goes_on = Rental(1, 1, 1, 1, 10_000_000, 1, first, None, first, first)
    assert prices.charge_until(goes_on, first + 30 * 60_000) == _ms(2026, 11, 5, 10)  # not even once
    ended = msgspec.structs.replace(goes_on, to_ms=first + 30 * 60_000)
    assert prices.charge_until(ended, first + 30 * 60_000 - 1) == _ms(2026, 11, 5, 10)
    assert prices.charge_until(ended, first + 30 * 60_000) == ended.to_ms
    (charge,) = _look([ended], first + HOUR_MS)
    assert (charge.from_ms, charge.to_ms) == (first, ended.to_ms)
    assert charge.amount_micros == 10_000_000 * 30 * 60_000 // FULL_MONTH_MS


def test_a_higher_price_within_a_month_lifts_the_cap_and_a_lower_one_does_not_lower_it() -> None:
    month = prices.month_named("2026-12")
    change = month.start_ms + 29 * DAY_MS
    risen = [Span(month.start_ms, change, 5_000_000), Span(change, None, 10_000_000)]
    assert prices.accrued(risen, month, change) == 5_000_000
    assert prices.accrued(risen, month, month.end_ms) == 5_000_000 + 10_000_000 * 48 // 672
    fallen = [Span(month.start_ms, change, 10_000_000), Span(change, None, 5_000_000)]
    assert prices.accrued(fallen, month, month.end_ms) == 10_000_000


@pure
@given(
    had=histories(),
    received=st.integers(0, 10**13),
    sent=st.integers(0, 10**13),
    price=st.sampled_from([0, 1, 10_000, 1_000_000]),
)
def test_the_larger_of_in_and_out_counts_beyond_the_plans_share(
    had: list[Rental], received: int, sent: int, price: int
) -> None:
    month = prices.month_of(had[0].from_ms)
    included = prices.accrued(prices.transfer_spans(had), month, month.end_ms)
    over = prices.transfer_over(had, month, month.end_ms, received, sent)
    assert over == max(0, max(received, sent) - included)
    assert over == prices.transfer_over(had, month, month.end_ms, sent, received)
    assert included <= max(rental.bandwidth_gb for rental in had) * GIB
    assert 0 <= prices.transfer_cost(over, price) <= Fraction(over * price, GIB)
    assert prices.transfer_cost(over, price) > Fraction(over * price, GIB) - 1


def test_a_gb_beyond_what_half_a_months_plan_includes_costs_a_hundredth() -> None:
    month = prices.month_named("2026-11")
    first, last = month.start_ms, month.start_ms + FULL_MONTH_MS // 2
    had = [Rental(1, 1, 1, 3, 5_000_000, 1024, first, last, first, first)]
    assert prices.transfer_over(had, month, month.end_ms, 512 * GIB, 0) == 0
    over = prices.transfer_over(had, month, month.end_ms, 100 * GIB, 513 * GIB)
    assert over == GIB
    assert prices.transfer_cost(over, 10_000) == money.parse("0.01")
    assert prices.transfer_cost(over // 2, 10_000) == money.parse("0.005")
    whole = [msgspec.structs.replace(had[0], to_ms=None)]
    assert prices.transfer_over(whole, month, month.end_ms, 1024 * GIB, 0) == 0  # 30 days include no more than the plan
    assert prices.transfer_over(whole, month, month.end_ms, 1024 * GIB + 1, 0) == 1
