"""A worker that is stopped in the middle of a call, loses its lease, and goes on when another has done all the work."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest

from tests.cloud import Cloud
from tests.worker.told import assert_arrived, calls_of, delete, told
from vpsd.core.db import Database, Tx
from vpsd.errors import Unusable
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import PowerState
from vpsd.hypervisor.simulator import Simulator
from vpsd.lifecycle import Command, Status
from vpsd.operations.service import LEASE_SECONDS, WORK_SECONDS
from vpsd.worker.runner import Runner


class Stopped:
    """A worker that is stopped at one of its calls until another one has brought everything to rest."""

    def __init__(self, cloud: Cloud, server: int, moment: str, number: int) -> None:
        self._cloud, self._server, self._moment, self._number = cloud, server, moment, number
        self._now = 0.0
        self.call: str | None = None  # in which it was stopped
        self.before: Any = None  # how the other one has left everything

    async def work(self) -> None:
        self._cloud.hook(self._moment, self._stop)
        assert await self._cloud.runner("first", monotonic=lambda: self._now).run_once()
        self._cloud.hook(self._moment, None)

    async def _stop(self, call: str) -> None:
        self._number -= 1
        if self._number:
            return
        self._cloud.hook(self._moment, None)
        if self._moment == "before_call":
            self._now += LEASE_SECONDS + 1
        self._cloud.clock.advance(LEASE_SECONDS + 1)
        await self._cloud.settle()
        disk = await self._cloud.disk(self._server)
        for host in self._cloud.simulators:
            if disk in (await host.volumes()).disks:
                host.writes(disk, 50, b"what the customer wrote since")
        self.call, self.before = call, await self.state()

    async def state(self) -> Any:
        """All that a late worker could do harm to."""
        return [await self._state_of(host) for host in self._cloud.simulators], await self._cloud.row(self._server)

    async def _state_of(self, host: Simulator) -> Any:
        disk, volumes = await self._cloud.disk(self._server), await host.volumes()
        content = host.content(disk, 0, 100) if disk in volumes.disks else None
        return await host.guests(), volumes, [host.seed(name) for name in sorted(volumes.seeds)], content


# With `before_call` the late worker's own clock holds it back. With `in_call` nothing on its side does: the call was
# under way already, and so it is for the whole rest of the step. What it may reach is only what it made itself.
_WORST = (Command.HARD_STOP, Command.REBUILD, Command.RESTORE, Command.DELETE)
_CASES = [
    *(("sqlite", "in_call", command) for command in Command),
    *(("sqlite", "before_call", command) for command in (*_WORST, Command.CREATE, Command.BACKUP)),
    *(("postgresql", "in_call", command) for command in (Command.HARD_STOP, Command.REBUILD, Command.DELETE)),
]


@pytest.mark.parametrize(("database_url", "moment", "command"), _CASES, indirect=["database_url"])
async def test_a_call_that_goes_on_when_another_worker_has_done_the_work_changes_nothing(
    cloud: Cloud, moment: str, command: Command
) -> None:
    for number in range(1, len(await calls_of(cloud, command)) + 1):
        server = await told(cloud, command)
        worker = Stopped(cloud, server, moment, number)
        await worker.work()
        if worker.call is not None:  # all calls of the host were tried, and these are the ones to the backups' target
            assert await worker.state() == worker.before, f"stopped in {worker.call}, call {number}"
        await cloud.settle()
        await assert_arrived(cloud, server, command, f"stopped in {worker.call}, call {number}")
        if command is not Command.DELETE:
            await delete(cloud, server)
        if worker.call is None:
            break
    assert number > 1


async def test_a_late_power_off_does_not_reach_a_guest_that_was_started_since(cloud: Cloud) -> None:
    server = await cloud.have_server()

    async def start_again(call: str) -> None:
        if call != "power_off":
            return
        cloud.hypervisor.in_call = None
        cloud.clock.advance(LEASE_SECONDS + 1)
        await cloud.settle()
        assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200
        await cloud.settle()

    await cloud.post(f"/api/v1/servers/{server}/power/", {"action": "hard_stop"})
    cloud.hypervisor.in_call = start_again
    assert await cloud.runner("first").run_once()
    assert await _power(cloud, server) is PowerState.RUNNING
    assert await cloud.status(server) == "active"


async def _power(cloud: Cloud, server: int) -> PowerState:
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    return guest.power


async def test_a_late_worker_makes_nothing_for_a_server_that_was_deleted_since(cloud: Cloud) -> None:
    for maker in ("ensure_disk", "write_seed", "define"):
        server = await cloud.create(maker.replace("_", "-"))
        now = [0.0]

        async def delete_it(call: str, *, maker: str = maker, server: int = server, now: list[float] = now) -> None:
            if call != maker:
                return
            cloud.hypervisor.before_call = None
            assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
            now[0] += LEASE_SECONDS + 1
            cloud.clock.advance(LEASE_SECONDS + 1)
            await cloud.settle()

        cloud.hypervisor.before_call = delete_it
        assert await cloud.runner("first", monotonic=lambda now=now: now[0]).run_once()
        volumes = await cloud.hypervisor.volumes()
        assert not volumes.disks | volumes.seeds | (await cloud.hypervisor.guests()).keys(), maker


async def test_no_two_disks_of_a_server_have_the_same_name(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    disks = [await cloud.disk(server)]
    for path, body in (("rebuild", {"os_id": 1}), ("rebuild", {"os_id": 1}), ("restore", {"backup_id": backup["id"]})):
        path = f"servers/{server}/rebuild" if path == "rebuild" else f"backups/{backup['id']}/restore"
        assert (await cloud.post(f"/api/v1/{path}/", body if "rebuild" in path else None)).status_code == 200
        await cloud.settle()
        disks.append(await cloud.disk(server))
        assert (await cloud.hypervisor.volumes()).disks == {disks[-1]}
    assert len(set(disks)) == 4


async def test_who_takes_over_a_cleaning_up_does_not_make_the_disk_again_that_may_still_be_deleted(
    cloud: Cloud,
) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    before = await cloud.disk(server)
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200

    def refuse(call: str) -> None:
        if call == "write_disk":
            raise Unusable.plain("The pool is full.")

    async def let_another_go_on(call: str) -> None:
        if call == "delete_disk":
            cloud.hypervisor.in_call = cloud.hypervisor.before_call = None
            cloud.clock.advance(LEASE_SECONDS + 1)
            await cloud.settle()

    cloud.hypervisor.before_call, cloud.hypervisor.in_call = refuse, let_another_go_on
    assert await cloud.runner("first").run_once()
    await cloud.settle()
    assert await cloud.disk(server) == before
    assert (await cloud.hypervisor.volumes()).disks == {before}
    restore = next(one for one in await cloud.operations(server) if one["command"] == "restore")
    assert (restore["status"], restore["error"].partition(".")[0]) == ("failed", "The pool is full")


@pytest.mark.parametrize(("mark", "attempts"), [("0.9", 1), ("99.1", 2), ("of nobody's", 2)])
async def test_a_mark_that_another_put_on_a_guest_costs_another_try_at_most(
    cloud: Cloud, mark: str, attempts: int
) -> None:
    server = await cloud.have_server(status=Status.STOPPED)

    async def take(call: str) -> None:
        if call == "power_on":
            cloud.hypervisor.before_call = None
            await cloud.hypervisor.held_by(Owner((await cloud.row(server)).uuid, mark)).take(cloud.guest(server))

    await cloud.post(f"/api/v1/servers/{server}/start/")
    cloud.hypervisor.before_call = take
    assert await cloud.work() == 1
    assert await _power(cloud, server) is (PowerState.RUNNING if attempts == 1 else PowerState.OFF)
    await cloud.settle()
    assert (await cloud.status(server), (await cloud.operations(server))[-1]["attempts"]) == ("active", attempts)


class Away:
    """A database that can be away, or slow: what its next transactions wait for is told to `passes`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_away = False
        self.waits: list[float] = []
        self.passes: Callable[[float], None] = lambda _seconds: None

    def write(self, wait_seconds: float, **options: bool) -> AbstractAsyncContextManager[Tx]:
        if self.is_away:
            raise ConnectionError("the database is away")
        if self.waits:
            self.passes(self.waits.pop(0))
        return self._database.write(wait_seconds, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def test_a_step_ends_before_its_lease_does_when_that_cannot_be_renewed(cloud: Cloud) -> None:
    await cloud.create()
    database, now, defining = Away(cloud.database), [0.0], asyncio.Event()

    async def hang(call: str) -> None:
        if call == "define":
            database.is_away = True
            defining.set()
            await asyncio.Event().wait()

    async def tick(seconds: float) -> None:
        await defining.wait()
        await asyncio.sleep(0)
        now[0] += seconds

    cloud.hypervisor.before_call = hang
    runtime = msgspec.structs.replace(cloud.runtime, database=database)
    async with asyncio.timeout(30):
        assert await Runner(runtime, "first", tick=tick, monotonic=lambda: now[0]).run_once()
    assert WORK_SECONDS <= now[0] < LEASE_SECONDS
    cloud.hypervisor.before_call = None
    assert await cloud.work("second") == 0  # the lease itself still lasts
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    assert await cloud.status(1) == "active"


class SlowStart:
    """A worker whose database is slow when it claims an operation; what it does first is to wait for its heart."""

    def __init__(self, cloud: Cloud, waits: list[float]) -> None:
        self._now = 0.0
        self._beat = asyncio.Event()
        self.beats: list[float] = []  # when
        database = Away(cloud.database)
        database.waits, database.passes = waits, self._pass
        cloud.hypervisor.before_call = self._wait
        runtime = msgspec.structs.replace(cloud.runtime, database=database)
        self.runner = Runner(runtime, "first", tick=self._tick, monotonic=lambda: self._now)

    def _pass(self, seconds: float) -> None:
        self._now += seconds

    async def _tick(self, seconds: float) -> None:
        if self.beats:
            await asyncio.Event().wait()
        self._pass(seconds)
        self.beats.append(self._now)
        self._beat.set()

    async def _wait(self, call: str) -> None:
        await self._beat.wait()


async def test_setting_right_what_is_stored_after_a_jump_costs_nothing_of_a_lease(cloud: Cloud) -> None:
    await cloud.create()
    cloud.clock.jump(60)
    worker = SlowStart(cloud, [WORK_SECONDS])  # the first of the transactions that set right
    async with asyncio.timeout(30):
        assert await worker.runner.run_once()
    assert await cloud.status(1) == "active"
    assert [one["attempts"] for one in await cloud.operations(1)] == [1]


async def test_a_lease_that_was_long_in_coming_is_renewed_before_its_time_is_over(cloud: Cloud) -> None:
    await cloud.create()
    worker = SlowStart(cloud, [WORK_SECONDS - 2])
    async with asyncio.timeout(30):
        assert await worker.runner.run_once()
    assert WORK_SECONDS - 2 < worker.beats[0] < WORK_SECONDS
    assert await cloud.status(1) == "active"


async def test_a_step_ends_before_its_lease_does_when_the_heart_does_not_beat(cloud: Cloud) -> None:
    await cloud.create()

    async def hang(call: str) -> None:
        await asyncio.Event().wait()

    cloud.hypervisor.before_call = hang
    runner = cloud.runner("first", monotonic=time.monotonic)
    claimed = await runner._claim()
    assert claimed is not None
    async with asyncio.timeout(30):  # without a limit of its own it would hang for ever
        await runner.work(claimed[0], since=time.monotonic() - WORK_SECONDS + 0.01)
    assert cloud.hypervisor.calls == ["take"]
