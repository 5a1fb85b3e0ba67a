"""Two hosts that see the same folder: what the one has there is no leak at the other, and is counted and sent once."""

import asyncio

import pytest

from tests.cloud import Cloud
from vpsd.audit import Audit
from vpsd.core.context import Ctx
from vpsd.hosts import base_images
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostHealth, HostState
from vpsd.hypervisor.protocol import PowerState
from vpsd.operations import service as operations


@pytest.fixture
async def pair(cloud: Cloud) -> list[Host]:
    """Two hosts of the pool `fast`; the one that every cloud begins with gets no servers."""
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.DISABLED)
        made = []
        for name in ("one", "two"):
            host = await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}", shared_pool="fast")
            await hosts.change_host(ctx, host.id, health=HostHealth.OK, lease_until_ms=1 << 60)
            made.append(await hosts.row(ctx, host.id))
            cloud.runtime.hypervisors.at(made[-1])
    return made


async def only(cloud: Cloud, *names: str) -> None:
    """New servers go to these hosts."""
    async with cloud.writing() as ctx:
        for host in await hosts.list_hosts(ctx):
            state = HostState.ENABLED if host.name in names else HostState.DISABLED
            await hosts.change_host(ctx, host.id, state=state)


async def server_at(cloud: Cloud, name: str) -> int:
    """A server that runs on that host."""
    await only(cloud, name)
    server = await cloud.have_server(f"at-{name}")
    await only(cloud, "one", "two")
    return server


async def test_disks_of_the_one_host_are_no_leak_at_the_other(cloud: Cloud, pair: list[Host]) -> None:
    first, second = await server_at(cloud, "one"), await server_at(cloud, "two")
    assert (await cloud.row(first)).host_id != (await cloud.row(second)).host_id
    seen = [(await cloud.others[name].volumes()).disks for name in ("one", "two")]
    assert seen[0] == seen[1] == {await cloud.disk(first), await cloud.disk(second)}
    assert await Audit(cloud.runtime, fix=True).run() == []
    assert (await cloud.others["one"].volumes()).disks == seen[0]


async def test_disks_of_a_host_that_does_not_answer_are_no_leak_either(cloud: Cloud, pair: list[Host]) -> None:
    server = await server_at(cloud, "one")
    cloud.others["one"].broken = True
    findings = await Audit(cloud.runtime, fix=True).run()
    assert [(one.kind, one.name) for one in findings] == [("host", "one")]
    assert (await cloud.others["two"].volumes()).disks == {await cloud.disk(server)}


async def test_what_lies_in_a_shared_pool_and_is_nobodys_is_found_once(cloud: Cloud, pair: list[Host]) -> None:
    server = await server_at(cloud, "one")
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await cloud.work()
    row = await cloud.row(server)
    assert row.base is not None
    await cloud.others["one"].ensure_disk(await cloud.disk(server), row.base, 1 << 30)
    assert [(one.kind, one.fixed) for one in await Audit(cloud.runtime, fix=True).run()] == [
        ("volume", "removed from the host")
    ]
    assert not (await cloud.others["two"].volumes()).disks


async def test_a_guest_left_at_the_other_host_is_undefined_and_keeps_its_hands_off_the_disk(
    cloud: Cloud, pair: list[Host]
) -> None:
    server = await server_at(cloud, "one")
    name, other = cloud.guest(server), cloud.others["two"]
    await other.define(cloud.others["one"].spec(name))
    (found,) = await Audit(cloud.runtime, fix=True).run()
    assert (found.name, found.fixed) == (name, "undefined on the host")
    assert not await other.guests()
    volumes = await other.volumes()
    assert volumes.disks == {await cloud.disk(server)}
    assert volumes.seeds == {name}
    assert (await cloud.others["one"].guests())[name].power is PowerState.RUNNING


async def test_a_guest_does_not_run_on_a_disk_that_one_on_another_host_has_open(cloud: Cloud, pair: list[Host]) -> None:
    server = await server_at(cloud, "one")
    name, other = cloud.guest(server), cloud.others["two"]
    await other.define(cloud.others["one"].spec(name))
    with pytest.raises(Exception, match="has it open"):
        await other.power_on(name)
    await cloud.others["one"].power_off(name)
    await other.power_on(name)
    with pytest.raises(Exception, match="has it open"):
        await cloud.others["one"].power_on(name)


async def test_the_storage_of_a_shared_pool_is_handed_out_once_for_all_its_hosts(
    cloud: Cloud, pair: list[Host]
) -> None:
    async with cloud.writing() as ctx:
        for host in pair:
            await hosts.change_host(ctx, host.id, storage_gb=4, storage_ratio=1.0)  # of which a server takes 2
    await server_at(cloud, "one")
    async with cloud.reading() as ctx:
        assert [room.used_storage_gb for room in await hosts.rooms(ctx)][1:] == [2, 2]
        assert (await hosts.room(ctx, pair[1].id)).used_storage_gb == 2
        assert [(await hosts.row(ctx, host.id)).used_storage_gb for host in pair] == [2, 0]
    await server_at(cloud, "two")
    answer = await cloud.post("/api/v1/servers/", {"name": "third", "plan_id": 4, "os_id": 1, "location": "us-west"})
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_capacity")


async def test_two_at_once_on_both_hosts_of_a_pool_cannot_share_its_last_room(cloud: Cloud, pair: list[Host]) -> None:
    last = hosts.Resources(storage_gb=6)

    async def take(ctx: Ctx, host: Host) -> bool:
        limits = {"vcpus": None, "memory_mb": None, "storage_gb": 10}
        return await hosts.change_used(
            ctx, host.id, last, hosts.Resources(), servers=1, limits=limits, shared_pool=host.shared_pool
        )

    async def second() -> bool:
        async with cloud.writing() as ctx:
            return await take(ctx, pair[1])

    async with cloud.writing() as ctx:
        assert await take(ctx, pair[0])
        waiting = asyncio.create_task(second())
        await asyncio.wait({waiting}, timeout=0.3)  # real time: it has to wait for what this one does
        assert not waiting.done()
    assert not await waiting


async def test_an_image_is_sent_to_a_shared_pool_once_however_many_hosts_want_it(
    cloud: Cloud, pair: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second create comes while the first one sends the image, and looks again and again."""
    sending, go_on, looks = asyncio.Event(), asyncio.Event(), 0
    look = base_images.is_claimed

    async def hold(call: str) -> None:
        if call == "ensure_base":
            sending.set()
            await go_on.wait()

    async def count(ctx: Ctx, place: str, key: str) -> bool:
        nonlocal looks
        looks += 1
        return await look(ctx, place, key)

    def sends() -> int:
        return sum(simulator.calls.count("ensure_base") for simulator in cloud.others.values())

    for simulator in cloud.others.values():
        simulator.in_call = hold
    servers = []
    for name in ("one", "two"):
        await only(cloud, name)
        servers.append(await cloud.create(name))
    monkeypatch.setattr(base_images, "is_claimed", count)
    with monkeypatch.context() as patch:
        patch.setattr(cloud.clock, "advance", lambda _: None)  # nobody renews the leases here
        works = [asyncio.create_task(cloud.runner(owner).run_once()) for owner in ("a", "b")]
        await sending.wait()
        while looks < 6 and sends() == 1:
            await asyncio.sleep(0)
        assert sends() == 1
    go_on.set()
    await asyncio.gather(*works)
    await cloud.work()
    assert [await cloud.status(server) for server in servers] == ["active", "active"]
    assert len(cloud.others["one"].sent + cloud.others["two"].sent) == 1


async def test_the_claim_of_who_died_while_it_sent_an_image_ends_with_its_lease(cloud: Cloud) -> None:
    await cloud.create("web")
    async with cloud.writing() as ctx:
        first = await operations.claim(ctx, "dies")
    assert first is not None
    lease, transactions = operations.Lease.of(first), cloud.runtime
    async with base_images.claimed(transactions, "pool:fast", "tiny-1", lease=lease) as has_it:
        assert has_it
        async with base_images.claimed(transactions, "pool:fast", "tiny-1", seconds=60) as another:
            assert not another
        cloud.clock.advance(60)
        async with base_images.claimed(transactions, "pool:fast", "tiny-1", seconds=60) as another:
            assert another
            async with cloud.reading() as ctx:
                assert await base_images.is_claimed(ctx, "pool:fast", "tiny-1")
    async with cloud.reading() as ctx:
        assert not await base_images.is_claimed(ctx, "pool:fast", "tiny-1")
