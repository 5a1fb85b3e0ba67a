"""`every`: work done again and again, on a clock that the test holds."""

import asyncio
import logging

import pytest

from vpsd.core.clock import every
from vpsd.errors import Unavailable


class HeldClock:
    """A clock on which nobody wakes before the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []  # for how many seconds somebody wanted to sleep
        self._rung = asyncio.Event()

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self._rung.wait()

    async def ring(self) -> None:
        """Let the time pass that somebody sleeps for, and all that follows from it happen."""
        self._rung.set()
        await asyncio.sleep(0)
        self._rung.clear()
        await rest()


async def rest() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Work:
    """Counts how often it is done; fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.done = 0
        self._failures = list(failures)

    async def look(self) -> None:
        self.done += 1
        if self._failures:
            raise self._failures.pop(0)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


async def test_work_is_done_at_once_and_then_whenever_its_time_has_passed(clock: HeldClock) -> None:
    work = Work()
    task = asyncio.create_task(every(clock, 15, work.look))
    await rest()
    assert (work.done, clock.asked) == (1, [15])
    await clock.ring()
    assert (work.done, clock.asked) == (2, [15, 15])
    task.cancel()


async def test_a_wake_brings_the_work_forward(clock: HeldClock) -> None:
    work, wake = Work(), asyncio.Event()
    task = asyncio.create_task(every(clock, 15, work.look, wake=wake))
    await rest()
    wake.set()
    await rest()
    assert (work.done, wake.is_set()) == (2, False)
    await rest()
    assert work.done == 2  # one wake is one look
    await clock.ring()
    assert work.done == 3
    task.cancel()


async def test_a_wake_during_the_work_is_not_lost(clock: HeldClock) -> None:
    wake = asyncio.Event()
    looks: list[int] = []

    async def look() -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            wake.set()  # something has come up that this look may have missed

    task = asyncio.create_task(every(clock, 15, look, wake=wake))
    await rest()
    assert looks == [0, 1]
    task.cancel()


async def test_a_failure_is_logged_and_the_work_is_tried_again(
    clock: HeldClock, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(KeyError("a bug"))
    task = asyncio.create_task(every(clock, 15, work.look))
    await rest()
    await clock.ring()
    assert work.done == 2
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "Work.look failed; it is tried again in 15 s")
    task.cancel()


async def test_a_host_that_stays_away_is_logged_once_until_it_has_been_back(
    clock: HeldClock, caplog: pytest.LogCaptureFixture
) -> None:
    away = [Unavailable("the host does not answer") for _ in range(3)]
    work = Work(*away)
    task = asyncio.create_task(every(clock, 15, work.look))
    await rest()
    for _ in range(3):
        await clock.ring()
    assert work.done == 4
    assert [record.getMessage() for record in caplog.records] == ["Work.look has to wait: the host does not answer"]
    work._failures.append(Unavailable("gone again"))
    await clock.ring()
    assert len(caplog.records) == 2
    task.cancel()


async def test_whoever_is_cancelled_leaves_nobody_waiting(clock: HeldClock) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(every(clock, 15, Work().look, wake=asyncio.Event()))
    await rest()
    task.cancel()
    await rest()
    assert asyncio.all_tasks() == before
