"""The limiter: a burst, then a steady refill, reckoned to the second."""

from vpsd.core.clock import FakeClock
from vpsd.core.limits import Limiter, Quota


def test_a_burst_is_let_through_and_what_is_left_is_told() -> None:
    limiter = Limiter(FakeClock(), 3)
    assert limiter.take("a") == Quota(limit=3, remaining=2, reset_seconds=20, retry_seconds=0)
    assert limiter.take("a") == Quota(limit=3, remaining=1, reset_seconds=40, retry_seconds=0)
    assert limiter.take("a") == Quota(limit=3, remaining=0, reset_seconds=60, retry_seconds=0)
    assert limiter.take("a") == Quota(limit=3, remaining=0, reset_seconds=60, retry_seconds=20)


def test_what_was_refused_is_not_counted() -> None:
    clock = FakeClock()
    limiter = Limiter(clock, 3)
    for _ in range(100):
        limiter.take("a")
    assert limiter.look("a") == Quota(limit=3, remaining=0, reset_seconds=60, retry_seconds=20)
    clock.advance(20)
    assert limiter.take("a").retry_seconds == 0


def test_it_refills_steadily_and_not_all_at_once() -> None:
    clock = FakeClock()
    limiter = Limiter(clock, 6)
    for _ in range(6):
        assert limiter.take("a").retry_seconds == 0
    let_through = 0
    for _ in range(120):  # two minutes, asked once a second
        clock.advance(1)
        let_through += not limiter.take("a").retry_seconds
    assert let_through == 12


def test_it_never_holds_more_than_a_burst() -> None:
    clock = FakeClock()
    limiter = Limiter(clock, 3)
    limiter.take("a")
    clock.advance(10_000)
    assert [limiter.take("a").retry_seconds for _ in range(4)] == [0, 0, 0, 20]


def test_the_wait_that_is_told_is_enough_and_no_less_would_do() -> None:
    clock = FakeClock()
    limiter = Limiter(clock, 7, 600)
    for _ in range(7):
        limiter.take("a")
    for passed in (0, 0.001, 30, 85):
        clock.advance(passed)
        wait = limiter.look("a").retry_seconds
        clock.advance(wait - 1)
        assert limiter.look("a").retry_seconds == 1
        clock.advance(1)
        assert limiter.take("a").retry_seconds == 0


def test_a_part_of_a_second_is_a_second_to_wait() -> None:
    clock = FakeClock()
    limiter = Limiter(clock, 1)
    limiter.take("a")
    clock.advance(59.999)
    assert limiter.take("a").retry_seconds == 1
    clock.advance(0.001)
    assert limiter.take("a").retry_seconds == 0


def test_limits_that_do_not_divide_the_window_are_kept() -> None:
    for limit in (7, 9, 14, 43, 49, 1200, 2400, 59_999):
        limiter = Limiter(FakeClock(), limit)
        quotas = [limiter.take("a") for _ in range(min(limit, 3000))]
        assert all(quota.remaining == limit - 1 - number for number, quota in enumerate(quotas))
        assert all(quota.retry_seconds == 0 for quota in quotas)
        if limit <= 3000:
            assert limiter.take("a").retry_seconds > 0


def test_looking_counts_nothing() -> None:
    limiter = Limiter(FakeClock(), 1)
    for _ in range(10):
        assert limiter.look("a") == Quota(limit=1, remaining=1, reset_seconds=0, retry_seconds=0)
    assert limiter.take("a").retry_seconds == 0
    assert limiter.look("a").retry_seconds == 60


def test_each_key_has_a_limit_of_its_own() -> None:
    limiter = Limiter(FakeClock(), 1)
    assert limiter.take("a").retry_seconds == 0
    assert limiter.take("b").retry_seconds == 0
    assert limiter.take("a").retry_seconds == 60


def test_a_limit_of_0_is_none() -> None:
    limiter = Limiter(FakeClock(), 0)
    assert {limiter.take("a") for _ in range(10_000)} == {Quota(0, 0, 0, 0)}


def test_what_the_clock_is_set_to_changes_nothing() -> None:
    clock = FakeClock()
    limiter = Limiter(clock, 3)
    limiter.take("a")
    for seconds in (-86_400, 10 * 86_400):
        clock.jump(seconds)
        assert limiter.look("a") == Quota(limit=3, remaining=2, reset_seconds=20, retry_seconds=0)


def test_who_was_silent_longest_is_forgotten_first_and_who_goes_on_asking_never() -> None:
    limiter = Limiter(FakeClock(), 2)
    limiter.take("busy")
    limiter.take("busy")
    for number in range(60_000):
        limiter.take(f"address {number}")
        if number % 10_000 == 0:
            assert limiter.take("busy").retry_seconds == 30
    assert limiter.look("address 9999").remaining == 2
    assert limiter.look("address 59999").remaining == 1


def test_however_many_keys_come_at_once_memory_has_an_end() -> None:
    limiter = Limiter(FakeClock(), 2)
    for number in range(120_000):
        limiter.take(f"address {number}")
        assert len(limiter._full_at) <= 50_000
