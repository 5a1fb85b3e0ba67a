"""A server is moved to another host: whatever dies, refuses or is cut off on the way, one host has it, and runs it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.cloud import Cloud
from tests.killed import Killed
from tests.worker.told import NOTE, delete
from vpsd.audit import Audit
from vpsd.catalog.models import OperatingSystem
from vpsd.core.units import HOUR_MS
from vpsd.errors import Unavailable, Unusable
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostState
from vpsd.hypervisor.protocol import PowerState
from vpsd.hypervisor.simulator import Simulator
from vpsd.lifecycle import Status
from vpsd.operations import service as operations
from vpsd.operations.moves import open_moves
from vpsd.operations.service import LEASE_SECONDS, Lease
from vpsd.servers import moving, queries
from vpsd.servers.faults import NoOtherHost

SLOW_SECONDS = 0.3
sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def second(cloud: Cloud) -> Host:
    """Another host, which gets no servers by itself."""
    return await cloud.have_second_host(HostState.DISABLED)


class Hook:
    """Called at each call to any host, before it or behind it."""

    def __init__(self, cloud: Cloud, way: str = "live") -> None:
        self._way = way
        self.number = 0  # of calls so far
        self.names: list[str] = []
        self.act: Callable[[int, str], None] = lambda _number, _call: None
        cloud.hook("before_call", self._before)
        cloud.hook("after_call", self._after)
        self.acts_before = True

    def _before(self, call: str) -> None:
        self.number += 1
        self.names.append(call)
        if self.acts_before:
            self.act(self.number, call)
        if call == "start_move" and self._way == "cold":
            raise Unusable("These hosts are too different.")

    def _after(self, call: str) -> None:
        if not self.acts_before:
            self.act(self.number, call)


async def about_to_move(cloud: Cloud, way: str = "live") -> int:
    """A server on the first host that was just told to move."""
    await cloud.have_second_host(HostState.DISABLED)
    for host in cloud.simulators:
        host.move_seconds = SLOW_SECONDS if way == "slow" else 0.0
    server = await cloud.have_server(status=Status.STOPPED if way == "off" else Status.ACTIVE)
    cloud.hypervisor.writes(await cloud.disk(server), 5 << 20, NOTE)
    await cloud.have_second_host()
    await cloud.migrate(server, cold=way == "cold")
    return server


def running(cloud: Cloud, server: int) -> list[Simulator]:
    """The hosts that run the guest."""
    known = [(host, host.known(cloud.guest(server))) for host in cloud.simulators]
    return [host for host, guest in known if guest is not None and guest.power is PowerState.RUNNING]


async def assert_at(cloud: Cloud, server: int, host: Simulator, how: object = "") -> None:
    """The server is there with all that it has, runs if it should, and nothing is left or lost anywhere."""
    row, name, disk = await cloud.row(server), cloud.guest(server), await cloud.disk(server)
    (there,) = [one for one in await cloud.hosts() if cloud.runtime.hypervisors.at(one) is host]
    assert (row.host_id, row.previous_host_id) == (there.id, None), how
    assert running(cloud, server) == ([host] if row.status == "active" else []), how
    for one in cloud.simulators:
        volumes = await one.volumes()
        has = (set(await one.guests()), set(volumes.disks), set(volumes.seeds))
        assert has == (({name}, {disk}, {name}) if one is host else (set(), set(), set())), how
    assert host.content(disk, 5 << 20, len(NOTE)) == NOTE, how
    assert await Audit(cloud.runtime).run() == [], how
    assert row.status_detail is None, how


@sqlite_alone
@pytest.mark.parametrize("way", ["slow", "cold"])
@pytest.mark.parametrize("before", [True, False])
async def test_a_worker_killed_at_any_call_of_a_move_loses_and_doubles_nothing(
    cloud: Cloud, way: str, before: bool
) -> None:
    number, is_over = 0, False
    while not is_over:
        number += 1
        server = await about_to_move(cloud, way)
        hook = Hook(cloud, way)
        hook.acts_before = before

        def kill(seen: int, _: str, number: int = number) -> None:
            if seen == number:
                raise Killed

        hook.act = kill
        with suppress(Killed):
            await cloud.work("first")
        is_over = hook.number < number
        hook.act = lambda _number, _call: None
        assert len(running(cloud, server)) <= 1
        cloud.clock.advance(LEASE_SECONDS + 1)
        await cloud.settle()
        await assert_at(cloud, server, cloud.others["second"], f"{way}, killed at {number}, {hook.names}")
        assert await cloud.status(server) == ("stopped" if way == "off" else "active")
        cloud.hook("before_call", None)
        cloud.hook("after_call", None)
        await delete(cloud, server)
    assert number > 12


@sqlite_alone
@pytest.mark.parametrize("way", ["slow", "cold"])
async def test_a_move_that_is_refused_at_any_call_leaves_the_server_at_one_host(cloud: Cloud, way: str) -> None:
    ends, number, was_refused = set(), 0, True
    while was_refused:
        number, was_refused = number + 1, False
        server = await about_to_move(cloud, way)
        hook = Hook(cloud, way)

        def refuse(seen: int, call: str, number: int = number) -> None:
            nonlocal was_refused
            if seen == number and not was_refused:
                was_refused = True
                raise Unusable(f"No {call}.")

        hook.act = refuse
        await cloud.work("first")
        hook.act = lambda _number, _call: None
        await cloud.settle()
        (operation,) = [one for one in await cloud.operations(server) if one["command"] == "migrate"]
        where = cloud.simulators[0 if (await cloud.row(server)).host_id == cloud.runtime.host_id else 1]
        if operation["status"] == "failed" and where is cloud.simulators[1]:
            await Audit(cloud.runtime, fix=True).run()  # what could not be removed is found
            assert await Audit(cloud.runtime).run() == []
        else:
            await assert_at(cloud, server, where, f"{way}, refused {hook.names[number - 1 : number]}, call {number}")
        assert len(running(cloud, server)) == (0 if way == "off" else 1)
        assert await cloud.status(server) == ("stopped" if way == "off" else "active")
        ends.add((operation["status"], cloud.simulators.index(where)))
        cloud.hook("before_call", None)
        await delete(cloud, server)
    assert {("succeeded", 1), ("failed", 0)} <= ends


@sqlite_alone
@pytest.mark.parametrize("way", ["slow", "cold"])
async def test_a_delete_at_any_call_of_a_move_leaves_nothing_at_either_host(cloud: Cloud, way: str) -> None:
    number, was_deleted = 0, True
    while was_deleted:
        number, was_deleted = number + 1, False
        server = await about_to_move(cloud, way)
        hook, seen = Hook(cloud, way), 0

        async def delete_it(_: str, number: int = number, server: int = server) -> None:
            nonlocal seen, was_deleted
            seen += 1
            if seen == number:
                was_deleted = True
                assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204

        cloud.hook("in_call", delete_it)
        await cloud.runner("first", tick=_ticks).run_once()
        cloud.hook("in_call", None)
        if not was_deleted:
            await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
        await cloud.settle()
        for host in cloud.simulators:
            volumes = await host.volumes()
            assert not (volumes.disks | volumes.seeds | (await host.guests()).keys()), (number, hook.names)
        async with cloud.reading() as ctx:
            assert [room.used_vcpus for room in await hosts.rooms(ctx)] == [0, 0]
        assert await Audit(cloud.runtime).run() == []
    assert number > 12


async def _ticks(_seconds: float) -> None:
    """A heartbeat that beats whenever anything happens."""
    await asyncio.sleep(0)


@sqlite_alone
@pytest.mark.parametrize(("way", "cut"), [("slow", 0), ("slow", 1), ("cold", 0)])
async def test_a_host_that_is_cut_off_at_any_call_is_waited_for(cloud: Cloud, way: str, cut: int) -> None:
    number, was_cut = 0, True
    while was_cut:
        number, was_cut = number + 1, False
        server = await about_to_move(cloud, way)
        hook = Hook(cloud, way)

        def break_it(seen: int, _: str, number: int = number) -> None:
            nonlocal was_cut
            if seen == number:
                was_cut = True
                cloud.simulators[cut].broken = True

        hook.act = break_it
        await cloud.work("first")
        hook.act = lambda _number, _call: None
        for _ in range(3):
            cloud.clock.advance(3)
            await cloud.work("first")
            assert len(running(cloud, server)) <= 1
        cloud.simulators[cut].broken = False
        await cloud.settle()
        where = cloud.simulators[1]
        await assert_at(cloud, server, where, f"{way}, cut {cut} at {number}, {hook.names}")
        assert await cloud.status(server) == ("stopped" if way == "off" else "active")
        cloud.hook("before_call", None)
        cloud.hook("after_call", None)
        await delete(cloud, server)
    assert number > 12


async def test_an_operation_stays_open_as_long_as_its_move_may_still_end_at_the_other_host(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    cloud.hypervisor.move_seconds = 40 * 3600.0

    def hang(call: str) -> None:
        if call == "abort_move":
            raise Unavailable("cannot acquire state change lock")
        if call == "move_progress" and cloud.clock.now_ms() < began_ms + 25 * HOUR_MS:
            cloud.clock.advance(5 * 3600)  # longer than it may take

    began_ms, cloud.hypervisor.before_call = cloud.clock.now_ms(), hang
    await cloud.work()
    for _ in range(40):  # longer than what is cleaned up has time for
        cloud.clock.advance(40)
        await cloud.work()
    assert (await cloud.operations(server))[-1]["status"] == "queued"
    async with cloud.reading() as ctx:
        assert [room.used_vcpus for room in await hosts.rooms(ctx)] == [1, 1]
    assert await Audit(cloud.runtime).run() == []
    cloud.clock.advance(20 * 3600)  # it has arrived after all
    await cloud.settle()
    await assert_at(cloud, server, cloud.others["second"])
    assert (await cloud.operations(server))[-1]["status"] == "failed"


async def test_a_guest_that_arrived_counts_although_its_former_host_is_not_heard_of_again(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    cloud.hypervisor.move_seconds = 5.0
    hook = Hook(cloud)

    def cut(_: int, call: str) -> None:
        if call == "move_progress" and cloud.others["second"].known(cloud.guest(server)) is not None:
            cloud.clock.advance(10)
            cloud.others["second"].due[0]()  # it arrives
            cloud.hypervisor.broken = True
            hook.act = lambda _number, _call: None

    hook.act = cut
    await cloud.work()
    assert (await cloud.row(server)).host_id != cloud.runtime.host_id
    for _ in range(10):
        cloud.clock.advance(40)
        await cloud.work()
    assert (await cloud.operations(server))[-1]["status"] == "succeeded"
    assert (await cloud.row(server)).previous_host_id == cloud.runtime.host_id  # something may be left there
    cloud.hypervisor.broken = False
    (left,) = await Audit(cloud.runtime, fix=True).run()
    assert left.fixed == "removed from the host"
    assert running(cloud, server) == [cloud.others["second"]]


async def test_a_customer_sees_the_server_as_it_was_with_a_note_and_has_to_wait(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    path = f"/api/v1/servers/{server}/"
    shown = (await cloud.get(path)).json()
    assert (shown["status"], shown["status_detail"]) == ("active", moving.MOVING)
    for what, body in (("stop", None), ("reboot", None), ("resize", {"plan_id": 3}), ("rebuild", {"os_id": 1})):
        answer = await cloud.post(f"{path}{what}/", body)
        assert (answer.status_code, answer.json()["code"]) == (400, "busy"), answer.text
        assert "Another operation (migrate) on this server is under way" in answer.json()["detail"]
    await cloud.settle()
    assert (await cloud.get(path)).json()["status_detail"] is None
    assert (await cloud.post(f"{path}stop/")).status_code == 200


async def test_a_stopped_server_gets_no_other_plan_while_it_is_moved(cloud: Cloud) -> None:
    server = await about_to_move(cloud, "off")
    answer = await cloud.post(f"/api/v1/servers/{server}/resize/", {"plan_id": 3})
    assert (answer.status_code, answer.json()["code"]) == (400, "busy")
    await cloud.settle()
    await assert_at(cloud, server, cloud.others["second"])


async def test_what_cannot_move_while_it_runs_stays_unless_it_may_be_stopped(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    Hook(cloud, "cold")
    await cloud.settle()
    (*_, operation) = await cloud.operations(server)
    assert operation["error"].startswith("It cannot move while it runs, and it may not be stopped for that.")
    await assert_at(cloud, server, cloud.hypervisor)


async def test_a_guest_that_went_down_by_itself_is_not_started_by_its_move(cloud: Cloud) -> None:
    for cold in (True, False):
        server = await cloud.have_server()
        cloud.hypervisor.writes(await cloud.disk(server), 5 << 20, NOTE)
        await cloud.have_second_host()
        await cloud.migrate(server, cold=cold)
        cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
        await cloud.settle()
        assert await cloud.status(server) == "stopped"
        await assert_at(cloud, server, cloud.others["second"])
        await delete(cloud, server)
        await cloud.have_second_host(HostState.DISABLED)


async def test_servers_of_a_group_that_are_moved_at_once_go_to_different_hosts(cloud: Cloud, second: Host) -> None:
    group = (await cloud.post("/api/v1/placement-groups/", {"name": "database"})).json()["id"]
    first = await cloud.create("db-1", placement_group_id=group)
    await cloud.have_second_host()
    third = await _third_host(cloud)
    other = await cloud.create("db-2", placement_group_id=group)
    await cloud.work()
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.DISABLED)
    place = {(await cloud.row(first)).host_id, (await cloud.row(other)).host_id}
    (free,) = {second.id, third.id} - place
    await cloud.migrate(first)
    with pytest.raises(NoOtherHost, match="apart"):
        await cloud.migrate(other)
    async with cloud.reading() as ctx:
        assert [move.argument for move in await open_moves(ctx)] == [free]


async def _third_host(cloud: Cloud) -> Host:
    async with cloud.writing() as ctx:
        return await hosts.add_host(ctx, "third", "simulator", uri="simulator://third")


async def test_no_more_servers_leave_a_host_at_once_than_the_settings_say(cloud: Cloud) -> None:
    cloud.set(moves_per_host=2)
    servers = [await cloud.have_server(f"web-{number}") for number in range(4)]
    await cloud.have_second_host()
    for server in servers:
        await cloud.migrate(server)
    async with cloud.writing() as ctx:
        claimed = [await operations.claim(ctx, "worker") for _ in range(4)]
        assert [None if one is None else one.server_id for one in claimed] == [*servers[:2], None, None]
        ended = claimed[0]
        assert ended is not None
        await operations.finish(ctx, Lease.of(ended), None, None)
        following = await operations.claim(ctx, "worker")
    assert following is not None
    assert following.server_id == servers[2]


async def test_a_disk_that_an_earlier_stay_has_left_is_never_taken_for_the_servers(cloud: Cloud) -> None:
    server = await about_to_move(cloud)
    left, disk = cloud.hypervisor, await cloud.disk(server)

    def keep(call: str) -> None:
        if call == "remove":
            raise Unavailable("The host does not answer.")

    left.before_call = keep
    await cloud.settle()
    left.before_call = None
    assert (disk in (await left.volumes()).disks, (await cloud.status(server))) == (True, "active")
    there = cloud.others["second"]
    await cloud.post(f"/api/v1/servers/{server}/stop/")
    await cloud.settle()
    there.writes(disk, 5 << 20, NOTE[::-1])
    await cloud.migrate(server)
    await cloud.settle()
    assert left.content(disk, 5 << 20, len(NOTE)) == NOTE[::-1]
    assert await Audit(cloud.runtime).run() == []


async def test_what_a_host_has_that_nobody_knows_of_is_not_removed_for_a_move(cloud: Cloud) -> None:
    server = await about_to_move(cloud, "off")
    there = cloud.others["second"]
    disk = await cloud.disk(server)
    await there.ensure_base(await cloud.runtime.images.ensure(await _system(cloud, server), lambda *_: None), print)
    await there.ensure_disk(disk, (await cloud.row(server)).base or "", 1 << 30)  # as where the two are one machine
    await cloud.settle()
    assert disk in (await there.volumes()).disks
    assert (await cloud.row(server)).host_id == cloud.runtime.host_id
    assert (await cloud.causes(server))[-1] == "second has something of the server: look with vpsd check what that is."


async def _system(cloud: Cloud, server: int) -> OperatingSystem:
    async with cloud.reading() as ctx:
        return await queries.operating_system(ctx, server)
