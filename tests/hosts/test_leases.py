"""Every host is looked after by one process, and by another soon after that one has died."""

import pytest
from sqlalchemy import text

from tests.api.tables import change
from tests.cloud import Cloud
from vpsd.core.db import Statement
from vpsd.core.units import SECOND_MS
from vpsd.hosts import leases
from vpsd.hosts import service as hosts
from vpsd.hosts.leases import LEASE_SECONDS
from vpsd.hosts.models import hosts as hosts_table


async def have_hosts(cloud: Cloud, *names: str) -> None:
    """Hosts that nobody looks after, instead of the one that is there."""
    await have_more(cloud, *names)
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)


async def have_more(cloud: Cloud, *names: str) -> None:
    async with cloud.writing() as ctx:
        for name in names:
            await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}")


async def keep(cloud: Cloud, owner: str) -> set[str]:
    async with cloud.writing() as ctx:
        return {host.name for host in await leases.keep(ctx, owner)}


async def test_the_first_process_looks_after_all_and_one_that_joins_is_given_its_share(cloud: Cloud) -> None:
    await have_hosts(cloud, "b", "c")
    assert await keep(cloud, "one") == {"simulator", "b", "c"}
    assert await keep(cloud, "two") == {"c"}
    assert await keep(cloud, "one") == {"simulator", "b"}
    for _ in range(2):  # and nothing more goes to and fro
        assert await keep(cloud, "two") == {"c"}
        assert await keep(cloud, "one") == {"simulator", "b"}


@pytest.mark.parametrize(("count", "expected"), [(9, [3, 3, 3]), (8, [2, 3, 3]), (4, [1, 1, 2]), (2, [0, 1, 1])])
async def test_hosts_are_shared_between_three_processes_whoever_came_first(
    cloud: Cloud, count: int, expected: list[int]
) -> None:
    await have_hosts(cloud, *(f"host-{number}" for number in range(1, count)))
    owners = ("one", "two", "three")
    for owner in owners:
        await keep(cloud, owner)
    for _ in range(3):
        found = {owner: await keep(cloud, owner) for owner in owners}
    assert sorted(map(len, found.values())) == expected
    assert len(set().union(*found.values())) == count  # nobody has what another one has


async def test_the_share_of_a_process_that_ends_goes_to_the_others(cloud: Cloud) -> None:
    await have_hosts(cloud, "b", "c", "d")
    for owner in ("one", "two", "one"):
        await keep(cloud, owner)
    async with cloud.writing() as ctx:
        await leases.release(ctx, "one")
    assert await keep(cloud, "two") == {"simulator", "b", "c", "d"}


async def test_hosts_that_come_later_are_shared(cloud: Cloud) -> None:
    await have_hosts(cloud)
    assert await keep(cloud, "one") == {"simulator"}
    await have_more(cloud, "b")
    assert await keep(cloud, "two") == {"b"}
    await have_more(cloud, "c", "d")
    assert await keep(cloud, "one") == {"simulator", "c"}
    assert await keep(cloud, "two") == {"b", "d"}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_share_is_no_larger_where_the_database_takes_a_table_for_small(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:  # from now on it looks for what is free once for each row
        await ctx.tx.all(Statement(text("ANALYZE hosts")))
    await have_hosts(cloud, "b", "c", "d")
    async with cloud.writing() as ctx:
        await change(ctx.tx, hosts_table, cloud.runtime.host_id, lease_owner="one", lease_until_ms=1 << 60)
    assert len(await keep(cloud, "two")) == 2  # half of four


async def test_who_does_not_renew_loses_its_hosts_and_who_does_keeps_them(cloud: Cloud) -> None:
    await have_hosts(cloud)
    await keep(cloud, "one")
    cloud.clock.advance(LEASE_SECONDS - 1)
    assert await keep(cloud, "two") == set()
    assert await keep(cloud, "one") == {"simulator"}
    cloud.clock.advance(LEASE_SECONDS - 1)
    assert await keep(cloud, "two") == set()
    cloud.clock.advance(2)
    assert await keep(cloud, "two") == {"simulator"}
    assert await keep(cloud, "one") == set()  # it comes back, and has them no more


async def test_who_ends_lets_others_go_on_at_once(cloud: Cloud) -> None:
    await have_hosts(cloud)
    await keep(cloud, "one")
    async with cloud.writing() as ctx:
        await leases.release(ctx, "one")
    assert await keep(cloud, "two") == {"simulator"}


async def test_a_lease_by_a_clock_that_was_ahead_keeps_nobody_out(cloud: Cloud) -> None:
    await have_hosts(cloud)
    cloud.clock.advance(3600)
    await keep(cloud, "one")
    cloud.clock.advance(-3600)
    assert await keep(cloud, "two") == {"simulator"}


async def test_each_lease_is_counted(cloud: Cloud) -> None:
    await have_hosts(cloud)
    for owner in ("one", "two"):
        await keep(cloud, owner)
        cloud.clock.advance(LEASE_SECONDS + 1)
    async with cloud.reading() as ctx:
        host = await hosts.row(ctx, cloud.runtime.host_id)
    assert (host.lease_owner, host.fence) == ("two", 2)
    assert host.lease_until_ms == cloud.clock.now_ms() - SECOND_MS
