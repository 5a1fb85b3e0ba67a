"""However many hosts there are, a few of the emptiest are looked at, and the rest only where none of these will do."""

from typing import Any

import msgspec
import pytest

from tests.cloud import TINY, Cloud
from tests.explain import explain
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host
from vpsd.hypervisor.protocol import HostFacts

SERVERS = "/api/v1/servers/"
NANO = {"name": "web", **TINY}  # 1 vCPU, 256 MB, 2 GB
PLANS = "/api/v1/plans/?location=us-west"


async def have_hosts(cloud: Cloud, count: int, **facts: Any) -> list[Host]:
    """So many hosts besides the first, all of which say the same of themselves."""
    seen: HostFacts = msgspec.structs.replace(await cloud.hypervisor.facts(), **facts)
    found = []
    async with cloud.writing() as ctx:
        first = len(await hosts.list_hosts(ctx))
        for number in range(first, first + count):
            host = await hosts.add_host(ctx, f"host-{number}", "simulator", uri=f"simulator://{number}")
            await hosts.record_facts(ctx, host.id, seen, "ok")
            found.append(host)
    return found


async def fullness(cloud: Cloud) -> list[float]:
    return [host.fullness for host in await cloud.hosts()]


async def test_how_full_a_host_is_follows_what_is_handed_out_and_what_it_has(cloud: Cloud) -> None:
    await cloud.have_host(cpus=4, memory_mb=512, storage_gb=100)
    assert await fullness(cloud) == [0]
    server = await cloud.create()
    assert await fullness(cloud) == [0.5]  # 256 of 512 MB, and less of all else
    await cloud.have_host(cpus=2, memory_mb=1024, storage_gb=100)
    assert await fullness(cloud) == [0.5]  # 1 of 2 CPUs
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, cpu_ratio=4.0)
    assert await fullness(cloud) == [0.25]
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    await cloud.settle()
    assert await fullness(cloud) == [0]


async def test_the_emptiest_are_told_by_an_index(cloud: Cloud) -> None:
    await have_hosts(cloud, 300)
    plan = await explain(cloud.database, hosts._EMPTIEST, {"location": "us-west"}, "hosts")
    assert "ix_hosts_enabled_fullness" in plan
    async with cloud.reading() as ctx:
        assert len(await hosts.emptiest(ctx, "us-west")) == hosts._FEW


async def test_a_server_goes_to_an_emptier_host_than_any_of_the_first(cloud: Cloud) -> None:
    await cloud.have_host(cpus=4, memory_mb=8000, storage_gb=100)
    await have_hosts(cloud, hosts._FEW, memory_mb=8000)
    async with cloud.writing() as ctx:
        for host in await hosts.list_hosts(ctx):
            await hosts.change_used(ctx, host.id, hosts.Resources(memory_mb=4000), hosts.Resources(), servers=1)
    (emptier,) = await have_hosts(cloud, 1, memory_mb=8000)
    server = await cloud.create()
    assert (await cloud.row(server)).host_id == emptier.id


@pytest.mark.parametrize("why", ["too little", "unreachable"])
async def test_where_none_of_the_emptiest_will_do_the_others_are_looked_at(cloud: Cloud, why: str) -> None:
    await cloud.have_host(memory_mb=100, storage_gb=100)
    emptiest = await have_hosts(cloud, hosts._FEW, memory_mb=255 if why == "too little" else 8000, storage_gb=100)
    assert (await cloud.get(PLANS)).json()["count"] == (0 if why == "too little" else 3)
    (fuller,) = await have_hosts(cloud, 1, memory_mb=2048, storage_gb=100)
    async with cloud.writing() as ctx:
        await hosts.change_used(ctx, fuller.id, hosts.Resources(memory_mb=1024), hosts.Resources(), servers=1)
        if why == "unreachable":
            for host in emptiest:
                await hosts.record_unreachable(ctx, host.id, "it does not answer")
    offered = (await cloud.get(PLANS)).json()["results"]
    assert [plan["name"] for plan in offered] == ["Nano VPS"]
    server = (await cloud.post(SERVERS, NANO)).json()
    assert (await cloud.row(server["id"])).host_id == fuller.id
