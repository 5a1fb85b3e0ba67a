"""Hosts on which nothing happens are hardly looked at; what happens there is seen to at once all the same."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.cloud import Cloud
from tests.worker.test_host_keeper import add_host, move
from vpsd.core.clock import FakeClock
from vpsd.core.db import SQLITE, WAIT_SECONDS, Database, Statement, Tx
from vpsd.core.ending import end_all
from vpsd.core.jumps import ClockJumps
from vpsd.hosts import leases
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import Command
from vpsd.operations import service as operations
from vpsd.servers import seen
from vpsd.worker.host_keeper import HostKeeper, Loop
from vpsd.worker.image_collector import ImageCollector
from vpsd.worker.sampler import Sampler

SWEEP_SECONDS = 60


class _Time(FakeClock):
    """Passes only when the test says so, and not before everybody sleeps again."""

    def __init__(self, now_ms: int) -> None:
        super().__init__(now_ms)
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.loops = 0  # how many tasks sleep when nothing happens

    async def sleep(self, seconds: float) -> None:
        sleeper = (self.monotonic() + seconds, asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    async def rest(self) -> None:
        """Let everything happen that happens now."""
        async with asyncio.timeout(30):
            for _ in range(20):  # what was set off a moment ago may not have woken anybody yet
                await asyncio.sleep(0)
                while sum(not future.done() for _, future in self._sleepers) < self.loops:
                    await asyncio.sleep(0)

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, and everything happen by it."""
        until = self.monotonic() + seconds
        await self.rest()
        while (due := min(at for at, _ in self._sleepers)) <= until:
            self.advance(max(0.0, due - self.monotonic()))
            for at, future in self._sleepers:
                if at <= due and not future.done():
                    future.set_result(None)
            await self.rest()
        self.advance(until - self.monotonic())


class _Counted:
    """A database that puts down the statements."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @asynccontextmanager
    async def read(self, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[Tx]:
        async with self._database.read(wait_seconds) as tx:
            yield _CountedTx(tx, self.asked)

    @asynccontextmanager
    async def write(self, wait_seconds: float = WAIT_SECONDS, *, together: bool = False) -> AsyncIterator[Tx]:
        async with self._database.write(wait_seconds, together=together) as tx:
            yield _CountedTx(tx, self.asked)

    def about(self, table: str) -> list[str]:
        """The statements that have to do with a table."""
        return [sql for sql in self.asked if f" {table} " in f"{sql} ".replace("\n", " ").replace(".", " ")]


class _CountedTx:
    def __init__(self, tx: Tx, asked: list[str]) -> None:
        self._tx = tx
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._tx, name)

        async def counted(statement: Statement[Any], *rows: Sequence[Any], **values: Any) -> Any:
            self._asked.append(statement.compiled(SQLITE).sql)
            return await call(statement, *rows, **values)

        return call if name == "notify" else counted


class _Keeper(HostKeeper):
    """Without figures, which are read of each guest, and images, which are looked at every ten minutes."""

    def _loops(self, *loops: Loop) -> list[Loop]:
        return [loop for loop in loops if not isinstance(loop, Sampler | ImageCollector)]


_LOOPS_OF_HOST, _LOOPS_OF_PROCESS = 6, 2
_UNPLACED = "servers.host_id IS NULL"  # whether a server waits for a host is asked of an index that has none


class _World:
    """Two hosts, with a server on each, that are looked after."""

    def __init__(self, cloud: Cloud, time: _Time) -> None:
        self.cloud = cloud
        self.time = time
        self.hosts = [cloud.hypervisor]
        self.servers: list[int] = []
        self.database = _Counted(cloud.database)
        self.keeper: HostKeeper

    async def start(self, stack: AsyncExitStack, owner: str = "keeper") -> HostKeeper:
        """A process that looks after hosts."""
        runtime = msgspec.structs.replace(self.cloud.runtime, database=self.database)
        keeper = _Keeper(runtime, owner, lambda _: None, lambda _: None)
        task = asyncio.create_task(keeper.run())
        stack.push_async_callback(end_all, {task})
        self.time.loops += _LOOPS_OF_PROCESS
        return keeper

    async def statuses(self) -> list[str]:
        return [await self.cloud.status(server) for server in self.servers]


@pytest.fixture
async def world(cloud: Cloud) -> AsyncIterator[_World]:
    """They have been looked at for the first time."""
    time = _Time(cloud.clock.now_ms())
    made = _World(cloud, time)
    second = await add_host(cloud, "second")
    made.servers = [await cloud.create("here"), await cloud.create("there")]
    await move(cloud, made.servers[1], second)
    await cloud.work()
    made.hosts.append(cloud.others["second"])
    cloud.clock = time
    cloud.runtime = msgspec.structs.replace(cloud.runtime, clock=time, jumps=ClockJumps(time))
    time.advance(7200)  # what the guests say of their boots was asked for long ago
    async with cloud.writing() as ctx:
        await leases.end_all(ctx)
    async with AsyncExitStack() as stack:
        made.keeper = await made.start(stack)
        time.loops += 2 * _LOOPS_OF_HOST
        await time.rest()
        await time.pass_by(2 * SWEEP_SECONDS)
        for host in made.hosts:
            host.calls.clear()
        made.database.asked.clear()
        yield made


async def test_at_rest_no_row_of_a_server_is_read_but_by_the_sweeps(world: _World) -> None:
    await world.time.pass_by(10 * SWEEP_SECONDS)
    assert [host.calls.count("guests") for host in world.hosts] == [10, 10]
    assert not any(set(host.calls) - {"guests", "facts"} for host in world.hosts)
    asked = [sql for sql in world.database.about("servers") if _UNPLACED not in sql]
    assert len([sql for sql in asked if sql.startswith("SELECT")]) == len(asked) == 2 * 10  # one a sweep
    assert await world.statuses() == ["active", "active"]


@pytest.mark.parametrize("host", [0, 1])
async def test_what_the_host_tells_is_acted_on_at_once_and_nobody_else_is_looked_at(world: _World, host: int) -> None:
    world.hosts[host].happens(world.cloud.guest(world.servers[host]), PowerState.OFF)
    await world.time.rest()
    expected = ["active", "active"]
    expected[host] = "stopped"
    assert await world.statuses() == expected
    assert world.hosts[host].calls == ["guest"]
    assert world.hosts[1 - host].calls == []


async def test_what_nobody_told_of_is_found_by_the_sweep(world: _World) -> None:
    for host, server in zip(world.hosts, world.servers, strict=True):
        host.tells = False
        host.happens(world.cloud.guest(server), PowerState.OFF)
    await world.time.rest()
    assert await world.statuses() == ["active", "active"]
    await world.time.pass_by(SWEEP_SECONDS)
    assert await world.statuses() == ["stopped", "stopped"]


async def test_all_is_looked_at_once_the_host_is_connected_to_anew(world: _World) -> None:
    host, server = world.hosts[0], world.servers[0]
    host.tells = False
    host.happens(world.cloud.guest(server), PowerState.OFF)
    host.is_connected_to_anew()
    await world.time.rest()
    assert await world.statuses() == ["stopped", "active"]


async def test_all_is_looked_at_once_a_host_that_was_away_is_back(world: _World) -> None:
    host, server = world.hosts[0], world.servers[0]
    host.broken, host.tells = True, False
    await world.time.pass_by(5)
    host.happens(world.cloud.guest(server), PowerState.OFF)
    host.broken = False
    await world.time.pass_by(5)
    assert await world.statuses() == ["stopped", "active"]


async def test_a_host_that_hangs_stalls_nobody(world: _World) -> None:
    hung = asyncio.Event()

    async def hangs(_: str) -> None:
        hung.set()
        await asyncio.Event().wait()

    world.hosts[1].before_call = hangs
    world.hosts[1].happens(world.cloud.guest(world.servers[1]), PowerState.OFF)
    await hung.wait()
    world.time.loops -= 1
    world.hosts[0].happens(world.cloud.guest(world.servers[0]), PowerState.OFF)
    await world.time.rest()
    assert await world.statuses() == ["stopped", "active"]


async def test_a_server_is_looked_at_when_its_operation_has_ended_in_whichever_process(world: _World) -> None:
    cloud, server = world.cloud, world.servers[1]
    async with cloud.writing() as ctx:
        await operations.add(ctx, server, Command.RECOVER)
        operation = await operations.claim(ctx, "another")
    assert operation is not None
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"hostname": "late.example.com"})
    await world.time.pass_by(2)
    async with cloud.writing() as ctx:
        await operations.finish(ctx, operations.Lease.of(operation), None, None)
    await world.time.pass_by(2)
    assert [one["command"] for one in await cloud.operations(server)][-1] == "configure"


async def test_an_operation_that_began_and_ended_between_two_looks_is_not_missed(world: _World) -> None:
    cloud, server = world.cloud, world.servers[0]
    async with cloud.writing() as ctx:
        await operations.add(ctx, server, Command.RECOVER)
        operation = await operations.claim(ctx, "another")
        assert operation is not None
        await operations.finish(ctx, operations.Lease.of(operation), None, None)
    await world.time.pass_by(2)
    assert [call for call in world.hosts[0].calls if call != "facts"] == ["guest"]


async def test_a_server_whose_guest_went_off_during_an_operation_is_looked_at_again_until_that_has_ended(
    world: _World,
) -> None:
    cloud, server = world.cloud, world.servers[0]
    async with cloud.writing() as ctx:
        await operations.add(ctx, server, Command.CONFIGURE)
        operation = await operations.claim(ctx, "another")
    assert operation is not None
    world.hosts[0].happens(cloud.guest(server), PowerState.OFF)
    await world.time.pass_by(4)
    assert await cloud.status(server) == "active"
    async with cloud.writing() as ctx:
        await operations.finish(ctx, operations.Lease.of(operation), None, None)
    await world.time.pass_by(2)
    assert await cloud.status(server) == "stopped"


async def test_what_an_operation_does_to_its_guest_is_looked_at_once_in_two_seconds(world: _World) -> None:
    host, server = world.hosts[0], world.servers[0]
    await world.cloud.post(f"/api/v1/servers/{server}/stop/")
    for _ in range(5):
        host.happens(world.cloud.guest(server), PowerState.RUNNING)
        await world.time.rest()
    assert host.calls == []
    await world.time.pass_by(2)
    assert [call for call in host.calls if call != "facts"] == ["guest"]


async def test_a_paused_guest_is_resumed_long_before_the_sweep(world: _World) -> None:
    host, name = world.hosts[0], world.cloud.guest(world.servers[0])
    host.storage.fails = True
    host.meets_its_storage(name)
    await world.time.rest()
    host.storage.fails = False
    await world.time.pass_by(12)
    guest = await host.guest(name)
    assert guest is not None
    assert guest.is_running
    assert "guests" not in host.calls  # nobody else was looked at


async def test_hosts_are_shared_anew_with_a_process_that_joins_and_when_it_goes(world: _World) -> None:
    async with AsyncExitStack() as stack:
        joined = await world.start(stack, "joined")
        async with asyncio.timeout(30):
            while not joined.looks_after:
                await asyncio.sleep(0)
        await world.keeper.keep()  # it renews, and ends with what the other one has now
        assert (len(world.keeper.looks_after), len(joined.looks_after)) == (1, 1)
        await world.time.rest()
        for host, server in zip(world.hosts, world.servers, strict=True):
            host.calls.clear()
            host.happens(world.cloud.guest(server), PowerState.OFF)
        await world.time.rest()
        assert await world.statuses() == ["stopped", "stopped"]
        assert [host.calls for host in world.hosts] == [["guest"], ["guest"]]  # each is one process's
    world.time.loops -= _LOOPS_OF_PROCESS
    await world.keeper.keep()
    assert len(world.keeper.looks_after) == 2
    for host in world.hosts:
        host.calls.clear()
    await world.time.pass_by(2 * SWEEP_SECONDS)
    assert all("guests" in host.calls for host in world.hosts)


async def test_a_host_with_more_servers_than_are_read_at_once_is_looked_at_whole(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "BATCH", 2)
    made = [await cloud.have_server(f"server-{number}") for number in range(5)]
    for server in made:
        cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    await cloud.reconciler().reconcile()
    assert {await cloud.status(server) for server in made} == {"stopped"}
    assert cloud.hypervisor.calls.count("guests") == 1
