"""Several hosts: each is looked after by itself, and one that does not answer stalls nobody else's servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from tests.api.tables import change
from tests.cloud import Cloud
from vpsd.audit import Audit
from vpsd.errors import Misconfigured
from vpsd.hosts import leases
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, Host, HostHealth
from vpsd.hosts.models import hosts as hosts_table
from vpsd.hypervisor.protocol import Hypervisor, PowerState
from vpsd.hypervisor.simulator import Simulator
from vpsd.runtime import Hypervisors
from vpsd.servers import capacity
from vpsd.servers.models import servers
from vpsd.worker.host_keeper import HostKeeper


async def add_host(cloud: Cloud, name: str) -> Host:
    async with cloud.writing() as ctx:
        return await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}")


async def move(cloud: Cloud, server: int, host: Host) -> None:
    """Have a server that is not made yet belong to another host."""
    async with cloud.writing() as ctx:
        await change(ctx.tx, servers, server, host_id=host.id)
        for host_id in (cloud.runtime.host_id, host.id):
            await capacity.recount(ctx, host_id)


async def health(cloud: Cloud, host_id: int) -> tuple[str, str | None]:
    async with cloud.reading() as ctx:
        host = await hosts.row(ctx, host_id)
    return host.health, host.error


async def test_a_server_is_made_on_its_host_and_on_no_other(cloud: Cloud) -> None:
    second = await add_host(cloud, "second")
    server = await cloud.create()
    await move(cloud, server, second)
    await cloud.work()
    assert await cloud.status(server) == "active"
    assert (await cloud.others["second"].guests()).keys() == {cloud.guest(server)}
    assert not await cloud.hypervisor.guests()


async def test_what_happens_on_one_host_is_seen_there_alone(cloud: Cloud) -> None:
    second = await add_host(cloud, "second")
    here, there = await cloud.create("here"), await cloud.create("there")
    await move(cloud, there, second)
    await cloud.work()
    cloud.clock.advance(1)
    cloud.others["second"].happens(cloud.guest(there), PowerState.OFF)
    await cloud.reconciler().reconcile()
    assert (await cloud.status(here), await cloud.status(there)) == ("active", "active")
    await cloud.reconciler(second).reconcile()
    assert (await cloud.status(here), await cloud.status(there)) == ("active", "stopped")


async def test_operations_at_a_host_that_does_not_answer_wait_and_others_go_on(cloud: Cloud) -> None:
    second = await add_host(cloud, "second")
    here, there = await cloud.create("here"), await cloud.create("there")
    await move(cloud, there, second)
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, second.id, "no route to host")
    await cloud.work()
    assert (await cloud.status(here), await cloud.status(there)) == ("active", "provisioning")
    assert cloud.others["second"].calls == []  # nobody waits for what is known not to answer
    detail = (await cloud.get(f"/api/v1/servers/{there}/")).json()
    assert "Waiting for its host" in detail["status_detail"]
    assert "no route" not in detail["status_detail"]
    assert "host second does not answer: no route to host" in str(await cloud.causes(there))
    async with cloud.writing() as ctx:
        await hosts.record_facts(ctx, second.id, await cloud.others["second"].facts(), "ok")
    cloud.clock.advance(60)
    await cloud.work()
    assert await cloud.status(there) == "active"


@asynccontextmanager
async def keeping(cloud: Cloud, said: list[str]) -> AsyncIterator[HostKeeper]:
    keeper = HostKeeper(cloud.runtime, "keeper", said.append, lambda _: None)
    yield keeper
    await keeper.end()


async def eventually(cloud: Cloud, host_id: int, wanted: str) -> None:
    async with asyncio.timeout(30):
        while (await health(cloud, host_id))[0] != wanted:
            await asyncio.sleep(0)


async def test_each_host_is_looked_after_and_a_dead_one_stalls_nobody(cloud: Cloud) -> None:
    second, third = await add_host(cloud, "second"), await add_host(cloud, "third")
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)
    cloud.runtime.hypervisors.at(second)
    cloud.others["second"].broken = True
    said: list[str] = []
    async with keeping(cloud, said) as keeper:
        await keeper.keep()
        await eventually(cloud, third.id, HostHealth.OK)
        await eventually(cloud, second.id, HostHealth.UNREACHABLE)
    assert (await health(cloud, second.id))[1] == "The simulated host does not answer."
    assert any("does not answer" in line for line in said)


def has_no_driver(address: Address) -> Hypervisor:
    raise Misconfigured("no driver can use that address")


async def test_what_another_process_has_by_now_is_left_to_it(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)
    # Without a driver there are no loops, which would have the time pass.
    cloud.runtime = msgspec.structs.replace(cloud.runtime, hypervisors=Hypervisors(has_no_driver))
    said: list[str] = []
    async with keeping(cloud, said) as keeper:
        await keeper.keep()
        assert keeper.looks_after == {cloud.runtime.host_id}
        assert said == ["host simulator cannot be used: no driver can use that address"]
        assert (await health(cloud, cloud.runtime.host_id))[0] == HostHealth.UNREACHABLE
        cloud.clock.advance(leases.LEASE_SECONDS + 1)
        async with cloud.writing() as ctx:
            await leases.keep(ctx, "another")
        await keeper.keep()
        assert keeper.looks_after == set()


async def test_health_speaks_for_all_hosts(cloud: Cloud) -> None:
    second = await add_host(cloud, "second")
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, second.id, "gone")
    found = (await cloud.get("/health", who=None)).json()
    assert (found["status"], found["hypervisor"]["status"]) == ("degraded", "degraded")
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, cloud.runtime.host_id, "gone as well")
    answer = await cloud.get("/health", who=None)
    assert (answer.status_code, answer.json()["hypervisor"]["status"]) == (503, "unavailable")
    assert "gone" not in answer.text


async def test_a_host_that_nobody_looks_after_is_not_called_well(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)
    assert (await cloud.get("/health", who=None)).json()["hypervisor"]["status"] == "unavailable"


async def test_a_server_on_another_machine_claims_no_address_that_leads_nowhere(cloud: Cloud) -> None:
    second = await add_host(cloud, "second")
    server = await cloud.create()
    await move(cloud, server, second)
    cloud.runtime.hypervisors.at(second)
    cloud.others["second"].is_here = False
    await cloud.work()
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert (detail["status"], detail["ip_address"], detail["ssh"]) == ("active", None, None)
    assert detail["status_detail"].startswith("It runs, and has no address that it can be reached at")
    assert await Audit(cloud.runtime).run() == []


async def test_a_machine_that_was_added_twice_keeps_its_servers_power(cloud: Cloud, tmp_path: Path) -> None:
    for name in ("second", "again"):
        cloud.others[name] = Simulator(tmp_path / "one-machine.journal", cloud.clock)
    second, again = await add_host(cloud, "second"), await add_host(cloud, "again")
    server = await cloud.create()
    await move(cloud, server, second)
    await cloud.work()
    assert cloud.guest(server) in await cloud.others["again"].guests()
    await cloud.reconciler(again).reconcile()
    assert (await cloud.others["second"].guests())[cloud.guest(server)].power is PowerState.RUNNING


async def all_known(keeper: HostKeeper) -> None:
    """Wait until the process has heard from every host that it looks after, and has put that down."""
    async with asyncio.timeout(30):
        while any(kept.status.status is not HostHealth.OK for kept in keeper._kept.values()):
            await asyncio.sleep(0)


async def test_what_a_former_keeper_writes_late_is_put_right(cloud: Cloud) -> None:
    host_id = cloud.runtime.host_id
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)
    async with keeping(cloud, []) as keeper:
        await keeper.keep()
        await all_known(keeper)
        async with cloud.writing() as ctx:
            await hosts.record_unreachable(ctx, host_id, "it was cut off")
        await keeper.keep()
        assert await health(cloud, host_id) == ("ok", None)


async def test_a_host_that_answers_is_put_down_once_a_minute_with_all_others(cloud: Cloud) -> None:
    second = await add_host(cloud, "second")
    both = (cloud.runtime.host_id, second.id)
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)
    async with keeping(cloud, []) as keeper:
        await keeper.keep()
        await all_known(keeper)
        for task in [task for kept in keeper._kept.values() for task in kept.tasks]:
            task.cancel()  # nothing has the time pass any more
        async with cloud.writing() as ctx:
            for host_id in both:
                await change(ctx.tx, hosts_table, host_id, seen_at_ms=cloud.clock.now_ms())
        for passed, is_put_down in ((59, False), (1, True)):
            cloud.clock.advance(passed)
            async with cloud.writing() as ctx:  # time went by while it was renewed every 5 s
                for host_id in both:
                    await change(ctx.tx, hosts_table, host_id, lease_until_ms=cloud.clock.now_ms())
            await keeper.keep()
            async with cloud.reading() as ctx:
                seen = {(await hosts.row(ctx, host_id)).seen_at_ms == cloud.clock.now_ms() for host_id in both}
            assert seen == {is_put_down}
