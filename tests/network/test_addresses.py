"""Addresses: the lowest free one, one to a server, until the pool is used up."""

import ipaddress

import pytest

from tests.cloud import Cloud
from vpsd.core.db import UniqueViolation
from vpsd.network import addresses
from vpsd.network.addresses import Assignment, PoolUsedUp


@pytest.fixture
async def servers(cloud: Cloud) -> list[int]:
    """Six servers that nobody has made yet, and a pool of five addresses."""
    cloud.set(address_pool="10.9.0.0/29")
    assert cloud.settings.network == ipaddress.ip_network("10.9.0.0/29")
    return [await cloud.create(f"web-{number}") for number in range(6)]


async def assign(cloud: Cloud, server_id: int) -> str:
    async with cloud.writing() as ctx:
        return await addresses.assign(ctx, server_id)


async def test_a_server_gets_the_lowest_free_address_and_keeps_it(cloud: Cloud, servers: list[int]) -> None:
    first, second, third, *_ = servers
    assert [await assign(cloud, server) for server in (first, second, first)] == ["10.9.0.2", "10.9.0.3", "10.9.0.2"]
    async with cloud.writing() as ctx:
        await addresses.release(ctx, first)
    assert await assign(cloud, third) == "10.9.0.2"
    held = sorted(await cloud.addresses(), key=lambda assignment: assignment.address)
    assert held == [Assignment("10.9.0.2", third), Assignment("10.9.0.3", second)]


async def test_the_first_two_and_the_last_are_never_given(cloud: Cloud, servers: list[int]) -> None:
    given = [await assign(cloud, server) for server in servers[:5]]
    assert given == [f"10.9.0.{number}" for number in range(2, 7)]
    with pytest.raises(PoolUsedUp, match=r"10\.9\.0\.0/29 is used up"):
        await assign(cloud, servers[5])


async def test_an_address_is_held_by_one_server_and_a_server_holds_one(cloud: Cloud, servers: list[int]) -> None:
    await assign(cloud, servers[0])
    for address, server in (("10.9.0.2", servers[1]), ("10.9.0.6", servers[0])):
        with pytest.raises(UniqueViolation):
            async with cloud.writing() as ctx:
                await addresses.hold(ctx, address, server)


async def test_an_address_is_freed_whoever_holds_it(cloud: Cloud, servers: list[int]) -> None:
    async with cloud.writing() as ctx:
        await addresses.hold(ctx, "10.9.0.2", servers[0])
        await addresses.free(ctx, "10.9.0.2")
    assert await cloud.addresses() == []
