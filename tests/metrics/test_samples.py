"""Samples: what becomes of the counters of a guest."""

import pytest

from tests.billing.books import change
from tests.cloud import Cloud
from vpsd.core.db import Statement
from vpsd.hypervisor.protocol import GuestStats
from vpsd.metrics import samples, traffic
from vpsd.metrics.models import Sample, Transfer, usage
from vpsd.metrics.models import traffic as traffic_table
from vpsd.metrics.samples import cpu_percent, gained

_LAST = Statement(usage.select(), into=Sample)
MONTH = "2025-06"


async def save(cloud: Cloud, stats: GuestStats, at_ms: int, vcpus: int = 1) -> Sample:
    """The sample that is kept of server 1 after this."""
    async with cloud.writing() as ctx:
        await samples.save(ctx, 1, vcpus, stats, at_ms)
        kept = await ctx.tx.first(_LAST)
    assert kept is not None
    return kept


async def moved(cloud: Cloud) -> Transfer | None:
    async with cloud.writing() as ctx:
        return await traffic.lock_uncharged(ctx, 1, MONTH)


@pytest.fixture
async def began_ms(cloud: Cloud) -> int:
    """When server 1 is there to be measured."""
    await cloud.create()
    return cloud.clock.now_ms()


async def test_a_sample_that_was_asked_for_earlier_changes_nothing(cloud: Cloud, began_ms: int) -> None:
    late = await save(cloud, GuestStats(9.0, 50, 1, 900, 90), began_ms + 2000)
    assert await save(cloud, GuestStats(5.0, 40, 1, 500, 50), began_ms + 1000) == late
    assert await moved(cloud) == Transfer(900, 90)


async def test_a_guest_that_says_nothing_for_once_has_not_begun_anew(cloud: Cloud, began_ms: int) -> None:
    await save(cloud, GuestStats(1.0, 40, 1, 500, 50), began_ms)
    await save(cloud, GuestStats(), began_ms + 1000)
    await save(cloud, GuestStats(3.0, 40, 1, 700, 60), began_ms + 2000)
    assert await moved(cloud) == Transfer(700, 60)


async def test_nothing_is_added_to_a_month_that_was_charged(cloud: Cloud, began_ms: int) -> None:
    await save(cloud, GuestStats(1.0, 40, 1, 500, 50), began_ms)
    async with cloud.writing() as ctx:
        await traffic.mark_charged(ctx, 1, MONTH)
        await traffic.add(ctx, 1, MONTH, 7, 7)
    assert await moved(cloud) is None
    await change(cloud, traffic_table.update(), ("charged_at_ms",), charged_at_ms=None)
    assert await moved(cloud) == Transfer(500, 50)


async def test_what_was_moved_before_there_were_prices_goes_on_being_counted(cloud: Cloud, began_ms: int) -> None:
    await save(cloud, GuestStats(1.0, 40, 1, 500, 50), began_ms)
    await change(cloud, traffic_table.update(), ("charged_at_ms",), charged_at_ms=0)
    await save(cloud, GuestStats(2.0, 40, 1, 600, 60), began_ms + 1000)
    assert await moved(cloud) is None  # and is never charged
    await change(cloud, traffic_table.update(), ("charged_at_ms",), charged_at_ms=None)
    assert await moved(cloud) == Transfer(600, 60)


def test_cpu_is_a_share_of_the_plans_vcpus() -> None:
    last = Sample(1, 0, None, None, None, 10.0, None, None)
    assert cpu_percent(last, 20.0, 10_000, 2) == 50.0
    assert cpu_percent(last, 40.0, 10_000, 2) == 100.0  # never more than there is
    assert cpu_percent(last, 5.0, 10_000, 2) is None
    assert cpu_percent(None, 5.0, 10_000, 2) is None


def test_counters_that_began_anew_count_from_zero() -> None:
    assert gained((0, 0), (5, 6)) == (5, 6)
    assert gained((5, 6), (8, 6)) == (3, 0)
    assert gained((8, 6), (5, 7)) == (5, 7)
