"""What keeps a move from losing a server, or running it twice, when something beside it goes wrong."""

from tests.cloud import Cloud
from tests.worker.test_moves import about_to_move, assert_at, running
from vpsd.audit import Audit
from vpsd.backups.evacuation import evacuate
from vpsd.errors import Unavailable
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostState
from vpsd.hypervisor.protocol import PowerState


async def test_nothing_is_removed_where_it_was_before_the_disk_is_seen_where_it_is(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    there, disk = cloud.others["second"], await cloud.disk(server)

    def lose_it(call: str) -> None:
        if call == "volumes" and cloud.hypervisor.known(cloud.guest(server)) is None:
            there.loses_disk(disk)

    cloud.hypervisor.before_call = lose_it
    await cloud.work()
    assert disk in (await cloud.hypervisor.volumes()).disks
    cause = (await cloud.causes(server))[-1]
    assert cause == ("second has not got the server's disk: what simulator has is kept.")
    assert (await cloud.row(server)).previous_host_id == cloud.runtime.host_id


async def test_a_guest_that_runs_is_never_removed(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    name = cloud.guest(server)

    async def run_it_again(call: str) -> None:
        if call == "volumes" and cloud.hypervisor.known(name) is None:
            cloud.hypervisor.before_call = None
            spec = cloud.others["second"].known(name)
            assert spec is not None
            await cloud.hypervisor.define(spec.spec)
            await cloud.hypervisor.power_on(name)

    async def run_it_first(call: str) -> None:
        if call == "guest" and cloud.hypervisor.known(name) is None:
            await run_it_again("volumes")

    cloud.others["second"].in_call = run_it_first
    await cloud.work()
    assert len(running(cloud, server)) == 2  # somebody has started it by hand: neither is vpsd's to end
    assert "runs on the other host as well" in str((await cloud.causes(server))[-1])


async def test_the_reconciler_leaves_a_guest_alone_that_is_on_its_way(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for _ in range(3):  # as often as vpsd brings one back within an hour; the next time it gives up
        cloud.hypervisor.vanishes(cloud.guest(server))
        await cloud.settle()
    await cloud.have_second_host()
    await cloud.migrate(server)

    async def look(call: str) -> None:
        if call == "volumes" and cloud.hypervisor.known(cloud.guest(server)) is None:
            cloud.hook("in_call", None)
            for host in await cloud.hosts():
                await cloud.reconciler(host).reconcile()

    async def look_early(call: str) -> None:
        if call == "guest" and cloud.hypervisor.known(cloud.guest(server)) is None:
            await look("volumes")

    cloud.hook("in_call", look_early)
    await cloud.work()
    assert cloud.hypervisor.in_call is None
    assert await cloud.status(server) == "active"
    assert running(cloud, server) == [cloud.others["second"]]
    assert not [one for one in await cloud.operations(server) if one["status"] == "failed"]


async def test_a_server_that_is_being_moved_is_not_evacuated(cloud: Cloud) -> None:
    server = await about_to_move(cloud, "off")
    await cloud.post(f"/api/v1/servers/{server}/start/")
    cloud.hypervisor.broken = True
    await cloud.work()
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.FENCED)
        told = await evacuate(ctx, server, await hosts.row(ctx, cloud.runtime.host_id))
    assert told.why == "it is being moved: evacuate the host again when that has come to its end"
    cloud.clock.advance(60)
    await cloud.work()  # nobody waits for a host that is off
    assert (await cloud.operations(server))[-1][
        "error"
    ] == "Its host was given up before it was moved. It is where it was."
    async with cloud.writing() as ctx:
        told = await evacuate(ctx, server, await hosts.row(ctx, cloud.runtime.host_id))
    assert told.why == "it has no backup"
    async with cloud.reading() as ctx:
        assert [room.used_vcpus for room in await hosts.rooms(ctx)] == [1, 0]


async def test_a_deleted_server_leaves_nothing_on_a_host_that_it_had_left(cloud: Cloud) -> None:
    server = await about_to_move(cloud)

    def keep(call: str) -> None:
        if call == "remove":
            raise Unavailable("The host does not answer.")

    cloud.hypervisor.before_call = keep
    await cloud.settle()
    assert (await cloud.row(server)).previous_host_id == cloud.runtime.host_id
    cloud.hypervisor.before_call = None
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await cloud.settle()
    for host in cloud.simulators:
        assert not (await host.volumes()).disks
    assert await Audit(cloud.runtime).run() == []


async def test_a_server_comes_back_to_a_host_that_it_was_brought_up_from_elsewhere(cloud: Cloud) -> None:
    """What the host still has of it is older, and off: it is not taken for the server."""
    server = await about_to_move(cloud, "off")
    await cloud.settle()
    there = cloud.others["second"]
    await assert_at(cloud, server, there)
    await cloud.have_copy(server)
    there.broken = True
    async with cloud.writing() as ctx:
        second = await hosts.find_host_named(ctx, "second")
        await hosts.change_host(ctx, second.id, state=HostState.FENCED)
        assert (await evacuate(ctx, server, second)).to == "simulator"
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    there.broken = False
    cloud.clock.advance(1)
    assert await cloud.status(server) == "active"
    await cloud.have_second_host()
    known = there.known(cloud.guest(server))
    assert known is not None
    assert known.power is not PowerState.RUNNING
    await cloud.migrate(server)
    await cloud.settle()
    await assert_at(cloud, server, there)
