"""Whatever clocks and workers do, nothing is lost, doubled, leaked or stuck, and every ledger is exact."""

import pytest

from tests.cloud import Cloud
from tests.fuzz.effort import LONG, SEED, again
from tests.fuzz.storm import Storm

_STORMS, _EVENTS = (60, 150) if LONG else (4, 100)


@pytest.mark.parametrize("seed", range(SEED, SEED + _STORMS))
async def test_after_a_storm_everything_is_in_order(cloud: Cloud, seed: int) -> None:
    storm = Storm(cloud, seed)
    await storm.rage(_EVENTS)
    await storm.calm_down()
    found = await storm.audit()
    assert not found, "\n".join([*storm.said, again("test_storms.py", seed), *found])
