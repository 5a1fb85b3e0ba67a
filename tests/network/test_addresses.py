"""Addresses: the one that has been free the longest, one to a server, at rest between two."""

import asyncio
import ipaddress
import random

import pytest

from tests.billing.books import have_connections
from tests.cloud import Cloud
from vpsd.core.clock import iso_utc
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
    assert await assign(cloud, third) == "10.9.0.4"
    held = sorted(await cloud.addresses(), key=lambda assignment: assignment.address)
    assert held == [Assignment("10.9.0.2", first), Assignment("10.9.0.3", second), Assignment("10.9.0.4", third)]


async def test_servers_that_begin_at_once_have_addresses_of_their_own_whoever_comes_first(
    cloud: Cloud, servers: list[int]
) -> None:
    assert [await assign(cloud, server) for server in (servers[3], servers[1])] == ["10.9.0.5", "10.9.0.3"]
    async with cloud.writing() as ctx:
        await addresses.hold(ctx, "10.9.0.6", servers[0])
    assert await assign(cloud, servers[4]) == "10.9.0.2"  # somebody has its own: the lowest that is free
    assert await assign(cloud, servers[5]) == "10.9.0.4"  # there is none of its own any more


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


async def release(cloud: Cloud, server_id: int) -> None:
    async with cloud.writing() as ctx:
        await addresses.release(ctx, server_id)


async def test_one_that_was_given_back_rests_while_there_are_others(cloud: Cloud, servers: list[int]) -> None:
    cloud.set(address_rest_minutes=0)
    assert await assign(cloud, servers[0]) == "10.9.0.2"
    await release(cloud, servers[0])
    assert await cloud.addresses() == []
    assert [await assign(cloud, server) for server in servers[1:5]] == [f"10.9.0.{number}" for number in range(3, 7)]
    assert await assign(cloud, servers[5]) == "10.9.0.2"


async def test_one_that_rests_is_given_when_its_time_is_over_and_no_sooner(cloud: Cloud, servers: list[int]) -> None:
    cloud.set(address_rest_minutes=10)
    for server in servers[:5]:
        await assign(cloud, server)
    await release(cloud, servers[2])
    free_at = iso_utc(cloud.clock.now_ms() + 600_000)
    cloud.clock.advance(599.999)
    with pytest.raises(PoolUsedUp, match=f"the first that rests is free at {free_at}.*VPSD_ADDRESS_REST_MINUTES"):
        await assign(cloud, servers[5])
    cloud.clock.advance(0.001)
    assert await assign(cloud, servers[5]) == "10.9.0.4"


async def test_of_those_that_have_rested_the_longest_free_is_given_first(cloud: Cloud, servers: list[int]) -> None:
    cloud.set(address_rest_minutes=1)
    held = {server: await assign(cloud, server) for server in servers[:5]}
    order = random.Random(3).sample(servers[:5], 5)
    for server in order:
        await release(cloud, server)
        cloud.clock.advance(7)
    cloud.clock.advance(60)
    fresh = [await cloud.create(f"new-{number}") for number in range(5)]
    assert [await assign(cloud, server) for server in fresh] == [held[server] for server in order]


async def test_whatever_comes_and_goes_no_address_is_shared_or_given_before_its_rest(cloud: Cloud) -> None:
    cloud.set(address_pool="10.9.0.0/29", address_rest_minutes=5)
    chance, held, released_ms = random.Random(11), dict[int, str](), dict[str, int]()
    for number in range(60):
        cloud.clock.advance(chance.choice([1, 60, 200]))
        now_ms = cloud.clock.now_ms()
        if held and chance.random() < 0.45:
            server = chance.choice(sorted(held))
            released_ms[held.pop(server)] = now_ms
            await release(cloud, server)
            continue
        rested = [address for address, at_ms in released_ms.items() if at_ms + 300_000 <= now_ms]
        try:
            address = await assign(cloud, server := await cloud.create(f"web-{number}"))
        except PoolUsedUp:
            assert not rested
            assert len(held) + len(released_ms) == 5
            continue
        assert address not in held.values()
        assert address not in released_ms or address in rested
        assert released_ms.pop(address, 0) <= min(
            (released_ms[other] for other in rested if other != address), default=now_ms
        )
        held[server] = address
    assert {entry.server_id: entry.address for entry in await cloud.addresses()} == held


async def test_two_that_meet_at_a_rested_address_get_different_ones(cloud: Cloud, servers: list[int]) -> None:
    cloud.set(address_rest_minutes=0)
    for server in servers[:5]:
        await assign(cloud, server)
    for server in servers[:3]:
        await release(cloud, server)
    fresh = [await cloud.create(f"new-{number}") for number in range(3)]
    await have_connections(cloud)
    given = await asyncio.gather(*(assign(cloud, server) for server in fresh))
    assert sorted(given) == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]


async def test_one_that_rests_can_be_held_by_the_server_that_answers_at_it(cloud: Cloud, servers: list[int]) -> None:
    await assign(cloud, servers[0])
    async with cloud.writing() as ctx:
        await addresses.free(ctx, "10.9.0.2")
        await addresses.hold(ctx, "10.9.0.2", servers[1])
    assert await cloud.addresses() == [Assignment("10.9.0.2", servers[1])]


async def test_a_deleted_servers_address_is_not_the_next_ones(cloud: Cloud) -> None:
    first = await cloud.have_server("first")
    address = (await cloud.row(first)).ip_address
    await cloud.ask("DELETE", f"/api/v1/servers/{first}/")
    await cloud.settle()
    second = await cloud.have_server("second")
    assert (await cloud.row(second)).ip_address not in (address, None)
