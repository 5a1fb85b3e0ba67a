"""Measured figures: what a sample makes of the host's counters."""

from tests.cloud import Cloud
from vpsd.hypervisor.protocol import GuestStats
from vpsd.worker.sampler import Sample, cpu_percent, since


async def test_usage_is_null_until_it_is_measured_and_then_as_measured(cloud: Cloud) -> None:
    server = await cloud.have_server()
    nothing = {"cpu_percent": None, "memory_used": None, "disk_used": None, "bandwidth_used": None}
    await cloud.sampler().sample()
    assert await _usage(cloud, server) == nothing
    cloud.hypervisor.guest_stats = GuestStats(10.0, 40, 3 << 29, 5 << 30, 1 << 30)
    cloud.clock.advance(1)
    await cloud.sampler().sample()
    cloud.clock.advance(20)
    cloud.hypervisor.guest_stats = GuestStats(15.0, 50, 3 << 29, 6 << 30, 1 << 30)
    await cloud.sampler().sample()
    assert await _usage(cloud, server) == {
        "cpu_percent": 25.0,
        "memory_used": 50,
        "disk_used": 1.5,
        "bandwidth_used": 6.0,
    }
    cloud.hypervisor.guest_stats = GuestStats(1.0, 50, 3 << 29, 1 << 30, 8 << 30)  # rebooted: counters began anew
    cloud.clock.advance(20)
    await cloud.sampler().sample()
    assert await _usage(cloud, server) == {
        "cpu_percent": None,
        "memory_used": 50,
        "disk_used": 1.5,
        "bandwidth_used": 9.0,  # out: 1 before the reboot and 8 since; in: 6 and 1
    }


async def test_an_old_figure_says_nothing_about_now_but_bandwidth_stays_for_the_month(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.guest_stats = GuestStats(10.0, 40, 1 << 30, 2 << 30, 1 << 30)
    await cloud.sampler().sample()
    cloud.clock.advance(121)
    assert await _usage(cloud, server) == {
        "cpu_percent": None,
        "memory_used": None,
        "disk_used": None,
        "bandwidth_used": 2.0,
    }
    cloud.clock.advance(31 * 86400)
    assert (await _usage(cloud, server))["bandwidth_used"] is None


async def _usage(cloud: Cloud, server: int) -> dict[str, float | None]:
    usage: dict[str, float | None] = (await cloud.get(f"/api/v1/servers/{server}/")).json()["resource_usage"]
    return usage


def test_cpu_is_a_share_of_the_plans_vcpus() -> None:
    last = Sample(1, 0, None, None, None, 10.0, None, None)
    assert cpu_percent(last, 20.0, 10_000, 2) == 50.0
    assert cpu_percent(last, 40.0, 10_000, 2) == 100.0  # never more than there is
    assert cpu_percent(last, 5.0, 10_000, 2) is None
    assert cpu_percent(None, 5.0, 10_000, 2) is None


def test_counters_that_began_anew_count_from_zero() -> None:
    assert since((0, 0), (5, 6)) == (5, 6)
    assert since((5, 6), (8, 6)) == (3, 0)
    assert since((8, 6), (5, 7)) == (5, 7)
