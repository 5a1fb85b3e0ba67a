"""What `vpsd host add` looks at, and what it says of it."""

import pytest

from vpsd.cli.host_checks import Check, check_host
from vpsd.core.clock import FakeClock
from vpsd.hypervisor.simulator import Simulator
from vpsd.settings import Settings


async def look_at_clock(ahead_seconds: float, *, call_seconds: float = 0) -> Check:
    clock = FakeClock()
    host = Simulator(clock=clock)
    host.clock_ahead_seconds, host.delay_seconds = ahead_seconds, call_seconds
    seen = await check_host(Settings(), clock, host)
    (found,) = [one for one in seen.checks if one.what == "clock"]
    return found


@pytest.mark.parametrize(("ahead_seconds", "said"), [(5.1, "5.1 s ahead of"), (-3600, "3600.0 s behind")])
async def test_a_host_whose_clock_is_wrong_may_be_added_with_a_warning(ahead_seconds: float, said: str) -> None:
    found = await look_at_clock(ahead_seconds)
    assert (found.ok, found.warning, found.verdict) == (True, True, "WARNING")
    assert said in found.text
    assert "set it right" in found.text


@pytest.mark.parametrize("ahead_seconds", [0, 4.9, -4.9])
async def test_a_clock_that_is_nearly_right_is_well(ahead_seconds: float) -> None:
    found = await look_at_clock(ahead_seconds)
    assert (found.ok, found.warning, found.verdict) == (True, False, "ok")


async def test_a_host_that_takes_long_to_answer_is_given_the_benefit_of_the_doubt() -> None:
    found = await look_at_clock(4, call_seconds=20)  # its clock was read at the end of these
    assert not found.warning
    assert "give or take 10.0 s" in found.text
