"""What one host can take of a process: one whose calls hang leaves slots to the others' servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cloud import Cloud
from tests.worker.test_host_keeper import add_host, move


class Hanging:
    """A host that answers no call until it is let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.let_go = asyncio.Event()

    async def __call__(self, _: str) -> None:
        self.waiting += 1
        await self.let_go.wait()
        self.waiting -= 1


@asynccontextmanager
async def working(cloud: Cloud) -> AsyncIterator[None]:
    running = asyncio.create_task(cloud.runner().run())
    yield
    running.cancel()
    await asyncio.wait({running})


async def until(cloud: Cloud, servers: list[int], status: str) -> None:
    async with asyncio.timeout(30):
        while {await cloud.status(server) for server in servers} != {status}:
            await asyncio.sleep(0)


async def have_servers(cloud: Cloud, count: int) -> list[int]:
    return [await cloud.create(f"web-{number}") for number in range(count)]


async def hang(cloud: Cloud, servers: list[int], name: str = "second") -> Hanging:
    """Have these servers on another host, which does not answer, and of which nobody knows that yet."""
    host = await add_host(cloud, name)
    for server in servers:
        await move(cloud, server, host)
    cloud.runtime.hypervisors.at(host)
    hanging = cloud.others[name].before_call = Hanging()
    return hanging


@pytest.mark.parametrize(("settings", "taken"), [({}, 2), ({"host_workers": 3}, 3), ({"host_workers": 1}, 1)])
async def test_a_host_whose_calls_hang_leaves_slots_to_the_servers_of_others(
    cloud: Cloud, settings: dict[str, int], taken: int
) -> None:
    cloud.set(workers=4, **settings)
    servers = await have_servers(cloud, 10)
    there, here = servers[:6], servers[6:]  # those that hang have waited longer
    hanging = await hang(cloud, there)
    async with working(cloud):
        await until(cloud, here, "active")
        assert hanging.waiting == taken
        hanging.let_go.set()
        await until(cloud, there, "active")


async def test_several_hosts_that_hang_leave_some_as_well(cloud: Cloud) -> None:
    cloud.set(workers=4, host_workers=1)
    servers = await have_servers(cloud, 8)
    for number in range(3):
        await hang(cloud, servers[2 * number : 2 * number + 2], f"host-{number}")
    async with working(cloud):
        await until(cloud, servers[6:], "active")
        for other in cloud.others.values():
            assert isinstance(other.before_call, Hanging)
            assert other.before_call.waiting == 1
            other.before_call.let_go.set()


@pytest.mark.parametrize(("settings", "at_once"), [({}, 4), ({"host_workers": 1}, 1)])
async def test_a_host_that_is_alone_has_all_slots_unless_it_is_limited(
    cloud: Cloud, settings: dict[str, int], at_once: int
) -> None:
    cloud.set(workers=4, **settings)
    servers = await have_servers(cloud, 6)
    hanging = cloud.hypervisor.before_call = Hanging()
    async with working(cloud):
        async with asyncio.timeout(30):
            while hanging.waiting < at_once:
                await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert hanging.waiting == at_once
        hanging.let_go.set()
        await until(cloud, servers, "active")
