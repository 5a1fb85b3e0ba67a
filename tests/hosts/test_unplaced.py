"""Servers that were asked for before there was any host get one when there is."""

import pytest
from sqlalchemy import delete

from tests.cloud import Cloud
from tests.servers.test_groups import have_group
from vpsd.audit import Audit
from vpsd.core.db import Statement
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host
from vpsd.hosts.models import hosts as hosts_table
from vpsd.worker.host_keeper import place_servers


@pytest.fixture(autouse=True)
async def no_host(cloud: Cloud) -> None:
    """As it is before the first worker, whatever requests come."""
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(delete(hosts_table)))


async def add_host(cloud: Cloud, name: str, **changes: object) -> Host:
    async with cloud.writing() as ctx:
        host = await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}")
        await hosts.change_host(ctx, host.id, **changes)
    return host


async def test_it_waits_and_says_so_and_runs_on_the_first_host_that_is_added(cloud: Cloud) -> None:
    server = await cloud.create()
    await cloud.work()
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert (detail["status"], detail["status_detail"]) == (
        "provisioning",
        "Waiting for room on a host. It is tried again by itself.",
    )
    for _ in range(30):  # longer than an operation may take
        cloud.clock.advance(120)
        await cloud.work()
        await place_servers(cloud.runtime)
    second = await add_host(cloud, "second")
    await place_servers(cloud.runtime)
    assert (await cloud.row(server)).host_id == second.id
    await cloud.work()
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert (detail["status"], detail["status_detail"]) == ("active", None)
    cloud.runtime = cloud.runtime.at(second)
    assert await Audit(cloud.runtime).run() == []


async def test_it_goes_where_it_may_and_where_there_is_room(cloud: Cloud) -> None:
    server = await cloud.create(location="us-east")
    await add_host(cloud, "west", location="us-west")
    await add_host(cloud, "full", memory_mb=100)
    await place_servers(cloud.runtime)
    assert (await cloud.row(server)).host_id is None
    there = await add_host(cloud, "east", location="us-east")
    await place_servers(cloud.runtime)
    assert (await cloud.row(server)).host_id == there.id


async def test_servers_of_a_group_come_to_different_hosts(cloud: Cloud) -> None:
    group = await have_group(cloud)
    servers = [await cloud.create(name, placement_group_id=group) for name in ("db-1", "db-2")]
    async with cloud.writing() as ctx:  # as the first worker does
        await hosts.ensure_local(ctx, "here", "simulator", "this-one", only_if_first=True)
    await place_servers(cloud.runtime)
    await cloud.work()
    assert [await cloud.status(server) for server in servers] == ["active", "provisioning"]
    await add_host(cloud, "second")
    await place_servers(cloud.runtime)
    await cloud.work()
    assert [await cloud.status(server) for server in servers] == ["active", "active"]
    assert len({(await cloud.row(server)).host_id for server in servers}) == 2


async def test_one_that_is_deleted_meanwhile_holds_no_room(cloud: Cloud) -> None:
    server = await cloud.create()
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await add_host(cloud, "second")
    await place_servers(cloud.runtime)
    await cloud.work()
    assert (await cloud.row(server)).purged_at_ms is not None
    async with cloud.reading() as ctx:
        assert [room.used_memory_mb for room in await hosts.rooms(ctx)] == [0]
