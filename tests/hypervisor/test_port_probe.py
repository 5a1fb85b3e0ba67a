"""The probe finds a server soon, and never opens more connections than sshd tolerates."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from vpsd.hypervisor.libvirt.port_probe import PortProbe, PortProbes


class Door:
    """A port behind which an SSH server may or may not greet."""

    def __init__(self) -> None:
        self.greets = asyncio.Event()
        self.open = 0
        self.most_open = 0
        self.connections = 0
        self.full_after: int | None = None  # so many are let in, and the others sent away
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.full_after is not None and self.connections > self.full_after:
            writer.close()
            return
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        hung_up = asyncio.create_task(reader.read())
        greeted = asyncio.create_task(self.greets.wait())
        await asyncio.wait({hung_up, greeted}, return_when=asyncio.FIRST_COMPLETED)
        if greeted.done():
            writer.write(b"SSH-2.0-test\r\n")
        for task in (hung_up, greeted):
            task.cancel()
        self.open -= 1
        writer.close()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


async def until_open(door: Door, connections: int) -> None:
    async with asyncio.timeout(30):
        while door.open != connections:
            await asyncio.sleep(0)


class Time:
    """Seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_server_that_greets_is_up(door: Door) -> None:
    door.greets.set()
    probe = PortProbe("127.0.0.1", door.port, Time(), wait_seconds=10)
    assert await probe.check()
    await probe.stop()


async def test_a_server_that_would_send_the_next_one_away_is_not_up_yet(door: Door) -> None:
    door.greets.set()
    door.full_after = 1
    time = Time()
    probe = PortProbe("127.0.0.1", door.port, time, wait_seconds=10)
    for _ in range(5):
        assert not await probe.check()
        time.now += 0.3
    door.full_after = None
    time.now += 0.3
    assert await probe.check()
    await probe.stop()


async def test_a_port_that_nobody_listens_on_is_not_up(door: Door) -> None:
    probe = PortProbe("127.0.0.2", door.port, Time(), wait_seconds=10)
    assert not await probe.check()
    await probe.stop()


async def test_a_slow_server_is_waited_for_on_the_connections_that_it_has(door: Door) -> None:
    time = Time()
    probe = PortProbe("127.0.0.1", door.port, time, wait_seconds=0.01)
    for _ in range(400):  # a minute and more of silence
        assert not await probe.check()
        time.now += 0.2
    assert door.most_open <= 3
    assert door.connections < 100
    before = door.connections
    door.greets.set()
    checks = 0
    while not await probe.check():
        checks += 1
        assert checks < 100
    assert door.connections <= before + 1
    await probe.stop()


async def test_a_connection_that_was_taken_too_early_does_not_keep_others_out(door: Door) -> None:
    time = Time()
    probe = PortProbe("127.0.0.1", door.port, time, wait_seconds=0.01)
    for _ in range(20):
        assert not await probe.check()
        time.now += 0.3
    assert door.connections > 8
    await probe.stop()


async def test_a_guest_that_was_not_looked_at_for_long_is_begun_anew(door: Door) -> None:
    time = Time()
    probe = PortProbe("127.0.0.1", door.port, time)
    assert probe.is_current("127.0.0.1", door.port)
    assert not probe.is_current("127.0.0.1", 1)
    time.now += 31
    assert not probe.is_current("127.0.0.1", door.port)


async def test_connections_to_a_guest_that_nobody_waits_for_any_more_are_closed(door: Door) -> None:
    time = Time()
    probes = PortProbes(time)
    assert not await probes.responds("given up", "127.0.0.1", [door.port])
    await until_open(door, 1)
    time.now += 31
    await probes.responds("another", "127.0.0.1", [1])
    await until_open(door, 0)
    await probes.close()


async def test_a_server_on_any_of_the_ports_counts_and_a_silent_one_does_not(door: Door) -> None:
    door.greets.set()
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    quiet = silent.sockets[0].getsockname()[1]
    probes = PortProbes()
    for _ in range(3):
        assert not await probes.responds("guest", "127.0.0.1", [quiet])
    async with asyncio.timeout(30):
        while not await probes.responds("guest", "127.0.0.1", [quiet, door.port]):
            pass
    await probes.close()
    silent.close()
