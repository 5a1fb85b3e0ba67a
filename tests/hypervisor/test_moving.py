"""A guest moves from host to host, and whatever goes wrong, one of the two runs it, with one disk."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from tests.hypervisor.rigs import DISK_BYTES, INSTANCE, NAME, make_spec, silent, until
from tests.hypervisor.two_hosts import Lab
from vpsd.core.clock import FakeClock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.moving import DiskLayout, Side, runs_at
from vpsd.hypervisor.owner import Owner, TakenOver
from vpsd.hypervisor.protocol import Guest, GuestSpec, Hypervisor, Image, PowerState
from vpsd.hypervisor.simulator import Simulator
from vpsd.images.seed import seed_iso


class Pair(Protocol):
    """Two hosts, with the hands that reach behind vpsd's back."""

    hosts: list[Hypervisor]
    image: Image
    spec: GuestSpec
    seed: bytes
    slow: int | None  # megabytes a second, at which a move can be watched

    def write_note(self, at: int, text: str) -> None:
        """The guest on that host writes a note."""

    def read_note(self, at: int) -> str:
        """The guest on that host reads it."""

    def running(self, at: int) -> str:
        """What a guest has as long as it is not booted anew, as the guest itself says."""

    def kill(self, at: int) -> None:
        """The guest's QEMU on that host dies."""

    def set_slow(self, *, slow: bool) -> None:
        """Moves take long, or not."""


class SimulatedPair:
    """Two simulators."""

    slow: int | None = None

    def __init__(self, image: Image) -> None:
        self.simulators = [Simulator(clock=FakeClock(1_000_000), boot_seconds=0.0) for _ in range(2)]
        self.hosts: list[Hypervisor] = [*self.simulators]
        self.image, self.seed = image, b"seed"
        self.spec = make_spec(image, "127.93.0.1")

    def write_note(self, at: int, text: str) -> None:
        self.simulators[at].writes(NAME, 5 << 20, text.encode().ljust(100))

    def read_note(self, at: int) -> str:
        return self.simulators[at].content(NAME, 5 << 20, 100).decode().strip("\0 ")

    def running(self, at: int) -> str:
        return self.simulators[at].content(NAME, 0, 64).decode().strip("\0 ")  # when it was started

    def kill(self, at: int) -> None:
        self.simulators[at].vanishes(NAME)

    def set_slow(self, *, slow: bool) -> None:
        for one in self.simulators:
            one.move_seconds = 3600.0 if slow else 0.0


class RealPair:
    """Two libvirtd."""

    slow: int | None = 4

    def __init__(self, lab: Lab, image: Image, seed: bytes, key: Path) -> None:
        self.lab, self.key = lab, key
        self.hosts: list[Hypervisor] = [host.connect(lab.folder / "data") for host in lab.hosts]
        self.image, self.seed = image, seed
        self.spec = make_spec(image, "127.93.0.1")

    def write_note(self, at: int, text: str) -> None:
        self._ssh(at, f"echo {text} > /root/note; sync")

    def read_note(self, at: int) -> str:
        return self._ssh(at, "cat /root/note")

    def running(self, at: int) -> str:
        return self._ssh(at, "cat /proc/sys/kernel/random/boot_id")

    def kill(self, at: int) -> None:
        os.kill(self.lab.hosts[at].qemu_pid(), signal.SIGKILL)

    def set_slow(self, *, slow: bool) -> None:
        pass  # the rate says it

    def _ssh(self, at: int, command: str) -> str:
        options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        flags = [part for option in options for part in ("-o", option)]
        address = f"root@{self.spec.address}"
        done = self.lab.hosts[at].run("ssh", "-i", str(self.key), *flags, address, command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
async def pair(tmp_path: Path) -> SimulatedPair:
    """Simulated hosts."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    return SimulatedPair(Image("tiny-1", file, 1 << 20, file, file))


async def _boot(pair: Pair, at: int) -> None:
    host = pair.hosts[at]
    await host.ensure_base(pair.image, silent)
    await host.ensure_disk(NAME, pair.image.key, DISK_BYTES)
    await host.write_seed(NAME, pair.seed)
    await host.define(pair.spec)
    await host.power_on(NAME)
    await until(lambda: host.is_up(NAME))


async def _prepare(pair: Pair, source: int) -> None:
    target = pair.hosts[1 - source]
    layout = await pair.hosts[source].disk_layout(NAME)
    assert layout is not None
    assert (layout.size_bytes, layout.base) == (DISK_BYTES, pair.image.key)
    for _ in range(2):
        await target.ensure_base(pair.image, silent)
        await target.prepare_disk(NAME, layout)
        await target.write_seed(NAME, pair.seed)


async def _ends(host: Hypervisor) -> None:
    async def is_over() -> bool:
        return await host.move_progress(NAME) is None

    await until(is_over)


async def _where(pair: Pair) -> int | None:
    """Which host has the guest; at most one of them runs it."""
    found = [await host.guest(NAME) for host in pair.hosts]
    assert sum(one is not None and one.power is PowerState.RUNNING for one in found) <= 1
    side = runs_at(*found)
    return None if side is None else [Side.SOURCE, Side.TARGET].index(side)


async def _assert_only_at(pair: Pair, at: int) -> None:
    """The guest runs there, and the other host has nothing of it."""
    guest = await pair.hosts[at].guest(NAME)
    assert guest is not None
    assert (guest.power, guest.moving, guest.uuid) == (PowerState.RUNNING, False, pair.spec.uuid)
    assert await pair.hosts[1 - at].guest(NAME) is None
    here, there = [await pair.hosts[one].volumes() for one in (at, 1 - at)]
    assert here.disks == here.seeds == {NAME}
    assert not there.disks | there.seeds


async def _move(pair: Pair, source: int) -> None:
    await _prepare(pair, source)
    await pair.hosts[source].start_move(pair.spec, pair.hosts[1 - source])
    await _ends(pair.hosts[source])
    assert await _where(pair) == 1 - source
    await pair.hosts[source].remove(NAME, [NAME])


async def there_and_back(pair: Pair) -> None:
    pair.write_note(0, "kept")
    before = pair.running(0)
    await pair.hosts[0].export_disk(NAME, "m-1", None)
    await _move(pair, 0)
    await _assert_only_at(pair, 1)
    assert (pair.running(1), pair.read_note(1)) == (before, "kept")
    pair.write_note(1, "again")
    await pair.hosts[1].define(pair.spec)  # as it is defined already
    copied = await pair.hosts[1].export_disk(NAME, "m-2", "m-1")
    assert copied.since_checkpoint is None
    await _move(pair, 1)
    await _assert_only_at(pair, 0)
    assert (pair.running(0), pair.read_note(0)) == (before, "again")


async def _start_slowly(pair: Pair) -> None:
    pair.set_slow(slow=True)
    await _prepare(pair, 0)
    for _ in range(2):
        await pair.hosts[0].start_move(pair.spec, pair.hosts[1], max_mb_per_second=pair.slow)
    progress = await pair.hosts[0].move_progress(NAME)
    assert progress is not None
    assert 0 <= progress.fraction < 1

    async def arrives() -> bool:
        guest = await pair.hosts[1].guest(NAME)
        return guest is not None and guest.moving

    await until(arrives)
    assert await _where(pair) == 0


async def _stays(pair: Pair) -> None:
    """A move that failed has left the guest where it was; another one goes well after it."""
    pair.set_slow(slow=False)

    async def is_alone() -> bool:
        return await pair.hosts[1].guest(NAME) is None

    await until(is_alone)
    assert await _where(pair) == 0
    assert pair.read_note(0) == "again"
    await pair.hosts[1].remove(NAME, [NAME])
    await _assert_only_at(pair, 0)


async def aborted(pair: Pair) -> None:
    await _start_slowly(pair)
    layout = await pair.hosts[1].disk_layout(NAME)
    assert layout is not None
    await pair.hosts[1].prepare_disk(NAME, DiskLayout(2 * DISK_BYTES, pair.image.key))
    arriving = await pair.hosts[1].disk_layout(NAME)
    assert arriving is not None
    assert arriving.size_bytes == DISK_BYTES
    for _ in range(2):
        await pair.hosts[0].abort_move(NAME)
    with pytest.raises(Unavailable):
        await _ends(pair.hosts[0])
    assert await pair.hosts[0].move_progress(NAME) is None
    await _stays(pair)


async def target_dies(pair: Pair) -> None:
    await _start_slowly(pair)
    pair.kill(1)
    with pytest.raises(Unavailable):
        await _ends(pair.hosts[0])
    await _stays(pair)


async def refused(pair: Pair) -> None:
    """What cannot be done is said before anything moves."""
    source, target = pair.hosts
    over = source.held_by(Owner(pair.spec.uuid, check=_over))
    for ask in _late_calls(pair, over):
        with pytest.raises(TakenOver):
            await ask()
    with pytest.raises(Unusable):
        await source.start_move(pair.spec, target)  # nothing is prepared
    with pytest.raises(Unusable):
        await target.copy_disk(NAME, source, silent)  # it is running
    await target.ensure_base(pair.image, silent)
    await target.prepare_disk(NAME, DiskLayout(2 * DISK_BYTES, pair.image.key))
    await target.write_seed(NAME, pair.seed)
    with pytest.raises(Unusable):
        await source.start_move(pair.spec, target)  # it is another disk
    layout = await source.disk_layout(NAME)
    assert layout is not None
    await target.prepare_disk(NAME, layout)
    await target.remove(NAME, [])
    with pytest.raises(Unusable):
        await source.start_move(pair.spec, target)  # it has no seed
    await target.prepare_disk(NAME, DiskLayout(DISK_BYTES, None))
    assert (await target.disk_layout(NAME) or layout).base is None
    await target.remove(NAME, [NAME])
    await _assert_only_at(pair, 0)


def _over() -> None:
    raise TakenOver


def _late_calls(pair: Pair, late: Hypervisor) -> list[Callable[[], Awaitable[None]]]:
    layout = DiskLayout(DISK_BYTES, pair.image.key)
    return [
        lambda: late.start_move(pair.spec, pair.hosts[1]),
        lambda: late.abort_move(NAME),
        lambda: late.prepare_disk(NAME, layout),
    ]


async def earlier_owner(pair: Pair) -> None:
    first, second = (pair.hosts[0].held_by(Owner(pair.spec.uuid, term)) for term in ("7.1", "7.2"))
    await second.take(NAME)
    await _prepare(pair, 0)
    for ask in _late_calls(pair, first)[::2]:
        with pytest.raises(TakenOver):
            await ask()
    target = pair.hosts[1].held_by(Owner(pair.spec.uuid, "7.3"))
    await second.start_move(pair.spec, target)
    await _ends(pair.hosts[0])
    with pytest.raises(TakenOver):  # the mark has moved along, as the target's owner has it
        await pair.hosts[1].held_by(Owner(pair.spec.uuid, "7.2")).power_off(NAME)
    await pair.hosts[0].remove(NAME, [NAME])
    await _move(pair, 1)
    await _assert_only_at(pair, 0)


async def cold(pair: Pair) -> None:
    source, target = pair.hosts
    await source.power_off(NAME)
    await _prepare(pair, 0)
    with pytest.raises(Unusable):
        await source.start_move(pair.spec, target)
    await target.remove(NAME, [NAME])
    for _ in range(2):
        await target.copy_disk(NAME, source, silent)
    await target.write_seed(NAME, pair.seed)
    await target.define(pair.spec)
    assert await source.disk_layout(NAME) is not None
    await source.remove(NAME, [NAME])
    assert await _where(pair) == 1
    await target.power_on(NAME)
    await until(lambda: target.is_up(NAME))
    assert pair.read_note(1) == "again"
    await _assert_only_at(pair, 1)


SCENES = (there_and_back, aborted, target_dies, refused, earlier_owner, cold)


async def test_a_simulated_guest_moves_and_is_never_on_two_hosts(pair: SimulatedPair) -> None:
    await _boot(pair, 0)
    for scene in SCENES:
        await scene(pair)


async def test_a_simulated_guest_that_ends_on_its_way_is_off_where_it_was(pair: SimulatedPair) -> None:
    await _boot(pair, 0)
    await _start_slowly(pair)
    assert [len(one.due) for one in pair.simulators] == [1, 1]
    pair.simulators[0].happens(NAME, PowerState.OFF)
    with pytest.raises(Unavailable):
        await _ends(pair.hosts[0])
    assert await _where(pair) == 0
    assert await pair.hosts[1].guest(NAME) is None


def test_a_guest_is_where_it_runs() -> None:
    def guest(power: PowerState, *, moving: bool = False) -> Guest:
        return Guest("vpsd-1", "uuid", power, moving=moving)

    running, off = guest(PowerState.RUNNING), guest(PowerState.OFF)
    arriving = guest(PowerState.PAUSED, moving=True)
    assert runs_at(running, arriving) is runs_at(running, None) is runs_at(off, None) is Side.SOURCE
    assert runs_at(running, off) is runs_at(off, arriving) is Side.SOURCE
    assert runs_at(arriving, running) is runs_at(off, running) is runs_at(None, running) is Side.TARGET
    assert runs_at(None, off) is runs_at(off, off) is Side.TARGET
    assert runs_at(None, None) is runs_at(None, arriving) is None


@pytest.fixture
async def real_pair(lab: Lab, tiny: Image, key: Path) -> AsyncIterator[RealPair]:
    """Real guests."""
    seed = seed_iso(instance_id="i-1", hostname="web", ssh_keys=[key.with_suffix(".pub").read_text()])
    pair = RealPair(lab, tiny, seed, key)
    yield pair
    for host in pair.hosts:
        with contextlib.suppress(Unavailable, Unusable):
            await host.remove(NAME)
        await host.close()


_WORKER = """
import asyncio, sys
from pathlib import Path
import msgspec
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.protocol import GuestSpec

async def main(instance, data, spec, *places):
    source, target = (
        LibvirtHypervisor(instance, Path(data), uri=uri, pool_path=Path(pool), virt_type="qemu")
        for uri, pool in zip(places[::2], places[1::2])
    )
    await source.start_move(msgspec.json.decode(spec, type=GuestSpec), target, max_mb_per_second=8)
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def worker_killed(pair: RealPair) -> None:
    """A move goes on, and ends at the target, when who has started it dies; another can see it."""
    before = pair.running(0)
    await _prepare(pair, 0)
    places = [text for host in pair.lab.hosts for text in (host.uri, str(host.folder / "pool"))]
    spec = msgspec.json.encode(pair.spec).decode()
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WORKER,
        INSTANCE,
        str(pair.lab.folder / "data"),
        spec,
        *places,
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"started\n"
    worker.kill()
    await worker.wait()
    assert await pair.hosts[0].move_progress(NAME) is not None
    await _ends(pair.hosts[0])
    assert await _where(pair) == 1
    await pair.hosts[0].remove(NAME, [NAME])
    await _assert_only_at(pair, 1)
    assert pair.running(1) == before
    await _move(pair, 1)


@pytest.mark.guest
async def test_a_real_guest_moves_and_is_never_on_two_hosts(real_pair: RealPair) -> None:
    await _boot(real_pair, 0)
    for scene in (there_and_back, aborted, target_dies, refused, earlier_owner):
        await scene(real_pair)
    await worker_killed(real_pair)
    await cold(real_pair)
    assert [host.qemus() for host in real_pair.lab.hosts] == [0, 1]
