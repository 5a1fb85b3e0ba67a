"""Measured figures: what a sample makes of the host's counters."""

from tests.billing.books import have_stats
from tests.cloud import Cloud
from vpsd.hypervisor.protocol import GuestStats


async def test_usage_is_null_until_it_is_measured_and_then_as_measured(cloud: Cloud) -> None:
    server = await cloud.have_server()
    nothing = {"cpu_percent": None, "memory_used": None, "disk_used": None, "bandwidth_used": None}
    await cloud.sampler().sample()
    assert await _usage(cloud, server) == nothing
    figures = GuestStats(10.0, 40, 3 << 29, 5 << 30, 1 << 30)

    async def stats(name: str) -> GuestStats:
        return figures

    have_stats(cloud, stats)
    cloud.clock.advance(1)
    await cloud.sampler().sample()
    cloud.clock.advance(20)
    figures = GuestStats(15.0, 50, 3 << 29, 6 << 30, 1 << 30)
    await cloud.sampler().sample()
    assert await _usage(cloud, server) == {
        "cpu_percent": 25.0,
        "memory_used": 50,
        "disk_used": 1.5,
        "bandwidth_used": 6.0,
    }
    figures = GuestStats(1.0, 50, 3 << 29, 1 << 30, 8 << 30)  # rebooted: counters began anew
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

    async def stats(name: str) -> GuestStats:
        return GuestStats(10.0, 40, 1 << 30, 2 << 30, 1 << 30)

    have_stats(cloud, stats)
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
