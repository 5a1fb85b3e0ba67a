"""A guest moves between two hosts that see the same folder: nothing is copied, what is left behind touches nothing."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.hypervisor.rigs import DISK_BYTES, INSTANCE, NAME, silent, until
from tests.hypervisor.test_moving import Pair, RealPair, SimulatedPair
from tests.hypervisor.test_moving import _boot as boot
from tests.hypervisor.test_moving import _ends as ends
from tests.hypervisor.test_moving import _where as where
from tests.hypervisor.two_hosts import Lab
from vpsd.core.clock import FakeClock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.moving import DiskLayout, leave_behind, share_pool
from vpsd.hypervisor.protocol import Hypervisor, Image, PowerState
from vpsd.hypervisor.simulator import SharedPool, Simulator
from vpsd.hypervisor.simulator.journal import MemoryStore
from vpsd.images.seed import seed_iso

MARK = "0011aabb"


class SharedPair(Pair, Protocol):
    """Two hosts of one pool."""

    def elsewhere(self) -> Hypervisor:
        """The second host, where the pool of that name is another folder."""


class SimulatedShared(SimulatedPair):
    """Simulators with a pool in common."""

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        pool = MemoryStore()
        self.simulators = [_simulator(pool, name) for name in ("one", "two")]
        self.hosts: list[Hypervisor] = [*self.simulators]

    def elsewhere(self) -> Hypervisor:
        return _simulator(MemoryStore(), "two")


def _simulator(pool: MemoryStore, name: str) -> Simulator:
    return Simulator(clock=FakeClock(1_000_000), boot_seconds=0.0, pool=SharedPool("fast", pool, name))


class RealShared(RealPair):
    """Two libvirtd that see one folder."""

    def __init__(self, lab: Lab, image: Image, seed: bytes, key: Path) -> None:
        super().__init__(lab, image, seed, key)
        self.hosts: list[Hypervisor] = [self._connect(at, "shared") for at in (0, 1)]

    def _connect(self, at: int, folder: str) -> LibvirtHypervisor:
        return LibvirtHypervisor(
            INSTANCE,
            self.lab.folder / "data",
            uri=self.lab.hosts[at].uri,
            pool_path=self.lab.folder / folder,
            virt_type="qemu",
            shared_pool="fast",
        )

    def elsewhere(self) -> Hypervisor:
        return self._connect(1, "another")


@pytest.fixture
async def pair(tmp_path: Path) -> SimulatedShared:
    """Simulated hosts."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    return SimulatedShared(Image("tiny-1", file, 1 << 20, file, file))


@pytest.fixture
async def real_pair(lab: Lab, tiny: Image, key: Path) -> AsyncIterator[RealShared]:
    """Real guests."""
    seed = seed_iso(instance_id="i-1", hostname="web", ssh_keys=[key.with_suffix(".pub").read_text()])
    pair = RealShared(lab, tiny, seed, key)
    yield pair
    for host in pair.hosts:
        with contextlib.suppress(Unavailable, Unusable):
            await host.remove(NAME)
        await host.close()


async def what_one_writes_the_other_sees(pair: SharedPair) -> None:
    one, two = pair.hosts
    await one.put_mark(MARK)
    assert (await two.volumes()).marks == {MARK}
    for _ in range(2):
        await two.put_mark(MARK, present=False)
    assert not (await one.volumes()).marks
    assert await two.has_base(pair.image.key)
    assert (await two.volumes()).disks == {NAME}


async def _prepare(pair: SharedPair, source: int) -> None:
    """The calls of a move; the disk is there, with what was written to it."""
    target = pair.hosts[1 - source]
    layout = await pair.hosts[source].disk_layout(NAME)
    assert layout is not None
    for _ in range(2):
        await target.ensure_base(pair.image, silent)
        await target.prepare_disk(NAME, layout)
        await target.write_seed(NAME, pair.seed)


async def _only_at(pair: SharedPair, at: int) -> None:
    """The guest runs there alone, on the one disk that both see."""
    for _ in range(2):
        await leave_behind(pair.hosts[1 - at], pair.hosts[at], NAME, [NAME])
    assert await where(pair) == at
    assert await pair.hosts[1 - at].guest(NAME) is None
    for host in pair.hosts:
        found = await host.volumes()
        assert found.disks == found.seeds == {NAME}


async def live(pair: SharedPair) -> None:
    pair.write_note(0, "kept")
    before = pair.running(0)
    await pair.hosts[0].export_disk(NAME, "m-1", None)
    await _prepare(pair, 0)
    await pair.hosts[0].start_move(pair.spec, pair.hosts[1])
    await ends(pair.hosts[0])
    await _only_at(pair, 1)
    assert (pair.running(1), pair.read_note(1)) == (before, "kept")
    pair.write_note(1, "again")
    assert (await pair.hosts[1].export_disk(NAME, "m-2", "m-1")).since_checkpoint is None
    await pair.hosts[1].drop_export(NAME)


async def never_two_on_one_disk(pair: SharedPair) -> None:
    """It runs at the second host; the first has one of its own, as one that was off does when it is back."""
    old, new = pair.hosts
    await old.define(pair.spec)
    with pytest.raises((Unavailable, Unusable)):
        await old.power_on(NAME)
    guest = await old.guest(NAME)
    assert guest is None or not guest.is_running
    await _only_at(pair, 1)
    assert pair.read_note(1) == "again"
    assert share_pool(old, new)


async def another_folder_is_refused(pair: SharedPair) -> None:
    layout = await pair.hosts[0].disk_layout(NAME)
    assert layout is not None
    assert layout.shared_pool == "fast"
    elsewhere = pair.elsewhere()
    with pytest.raises(Unusable):
        await elsewhere.prepare_disk(NAME, layout)
    await elsewhere.close()


async def cold(pair: SharedPair) -> None:
    source, target = pair.hosts[1], pair.hosts[0]
    with pytest.raises(Unusable):
        await target.copy_disk(NAME, source, silent)  # it is running
    await source.power_off(NAME)
    for _ in range(2):
        await target.copy_disk(NAME, source, silent)
    await target.write_seed(NAME, pair.seed)
    await target.define(pair.spec)
    await leave_behind(source, target, NAME, [NAME])
    await target.power_on(NAME)
    await until(lambda: target.is_up(NAME))
    assert pair.read_note(0) == "again"
    await _only_at(pair, 0)


async def aborted(pair: SharedPair) -> None:
    pair.set_slow(slow=True)
    await _prepare(pair, 0)
    await pair.hosts[0].start_move(pair.spec, pair.hosts[1], max_mb_per_second=pair.slow)
    await pair.hosts[0].abort_move(NAME)
    with pytest.raises(Unavailable):
        await ends(pair.hosts[0])
    pair.set_slow(slow=False)

    async def is_alone() -> bool:
        return await pair.hosts[1].guest(NAME) is None

    await until(is_alone)
    await _only_at(pair, 0)
    assert pair.read_note(0) == "again"


SCENES = (what_one_writes_the_other_sees, live, never_two_on_one_disk, cold)


async def test_a_simulated_guest_moves_within_a_pool_and_its_disk_stays_where_it_is(pair: SimulatedShared) -> None:
    await boot(pair, 0)
    for scene in (*SCENES, aborted):
        await scene(pair)
    await another_folder_is_refused(pair)
    assert pair.simulators[1].sent == []


async def test_a_disk_of_another_pool_is_prepared_anew(pair: SimulatedShared) -> None:
    await pair.hosts[0].ensure_base(pair.image, silent)
    await pair.hosts[0].prepare_disk(NAME, DiskLayout(DISK_BYTES, pair.image.key))
    pair.simulators[0].writes(NAME, 0, b"of an earlier try")
    await pair.hosts[0].prepare_disk(NAME, DiskLayout(DISK_BYTES, pair.image.key, shared_pool="slow"))
    assert pair.simulators[0].content(NAME, 0, 17) == bytes(17)


@pytest.mark.guest
async def test_a_real_guest_moves_within_a_pool_and_its_disk_stays_where_it_is(real_pair: RealShared) -> None:
    await boot(real_pair, 0)
    file = (real_pair.lab.folder / "shared" / f"{NAME}.qcow2").stat().st_ino
    for scene in SCENES:
        await scene(real_pair)
    assert (real_pair.lab.folder / "shared" / f"{NAME}.qcow2").stat().st_ino == file
    assert (await real_pair.hosts[0].guests())[NAME].power is PowerState.RUNNING
    await real_pair.hosts[0].remove(NAME)
    assert not list((real_pair.lab.folder / "shared").glob(f"{NAME}*"))
