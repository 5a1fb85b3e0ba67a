"""The simulator's state outlives the process, is shared between processes, and is carried along by new versions."""

import asyncio
import multiprocessing
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from tests.hypervisor.rigs import make_spec, silent
from vpsd.core.clock import FakeClock
from vpsd.errors import Misconfigured, Unavailable, Unusable
from vpsd.hypervisor.protocol import BlockMap, Extent, GuestSpec, Image, PowerState
from vpsd.hypervisor.simulator import Simulator, journal
from vpsd.hypervisor.simulator.state import BLOCK_BYTES, Write

BASE = Image("tiny-1", Path("/dev/null"), 1 << 20)
DISK_BYTES = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "simulator.journal"


def _name(number: int) -> str:
    return f"vpsd-c0ffee00-{number}"


def _spec(number: int) -> GuestSpec:
    spec = make_spec(BASE, f"127.93.{number // 256}.{number % 256}")
    return msgspec.structs.replace(spec, name=_name(number), disk=_name(number))


async def _create(simulator: Simulator, number: int) -> None:
    await simulator.ensure_base(BASE, silent)
    await simulator.ensure_disk(_name(number), BASE.key, DISK_BYTES)
    await simulator.write_seed(_name(number), b"seed")
    await simulator.define(_spec(number))


async def _fill(simulator: Simulator) -> None:
    """Have something of everything."""
    await _create(simulator, 1)
    await _create(simulator, 2)
    await simulator.power_on(_name(1))
    simulator.writes(_name(1), 5, b"one")
    simulator.writes(_name(1), 3 * BLOCK_BYTES - 2, b"across")
    await simulator.export_disk(_name(1), "m-1", None)
    simulator.writes(_name(1), BLOCK_BYTES, b"two")
    await simulator.export_disk(_name(1), "m-2", "m-1")


async def _describe(simulator: Simulator) -> list[object]:
    """Everything that can be seen of it."""
    name = _name(1)
    extents = (await simulator.block_map(name)).extents
    return [
        await simulator.guests(),
        await simulator.volumes(),
        msgspec.json.encode(simulator.spec(name)),
        simulator.seed(name),
        simulator.disk_bytes(name),
        simulator.checkpoints(name),
        simulator.content(name, 0, 5 * BLOCK_BYTES),
        extents,
        [await simulator.read_export(name, extent.offset, extent.length) for extent in extents],
        await simulator.is_up(name),
    ]


async def _reopened(simulator: Simulator, path: Path) -> Simulator:
    await simulator.close()
    return Simulator(path)


async def test_everything_is_there_again_after_a_restart(path: Path) -> None:
    simulator = Simulator(path)
    await _fill(simulator)
    before = await _describe(simulator)
    assert before[-3] == (Extent(BLOCK_BYTES, BLOCK_BYTES),)
    simulator = await _reopened(simulator, path)
    assert await _describe(simulator) == before
    await simulator.remove(_name(1))
    simulator = await _reopened(simulator, path)
    assert await simulator.guest(_name(1)) is None
    assert simulator.content(_name(1), 0, 10) == bytes(10)
    await simulator.close()


async def test_two_at_once_see_each_others_changes_and_lose_none(path: Path) -> None:
    one, two = Simulator(path), Simulator(path)
    for number in range(0, 40, 2):
        await asyncio.gather(_create(one, number), _create(two, number + 1))
        await asyncio.gather(two.power_on(_name(number)), one.power_on(_name(number + 1)))
        one.happens(_name(number), PowerState.PAUSED)
        await two.power_off(_name(number))
    assert await one.guests() == await two.guests()
    assert {name: guest.power for name, guest in (await one.guests()).items()} == {
        _name(number): PowerState.RUNNING if number % 2 else PowerState.OFF for number in range(40)
    }
    await one.close()
    await two.close()


def _work(path: Path, first: int) -> None:
    """What a process does beside others: every call is both a read and a change."""

    async def work() -> None:
        simulator = Simulator(path)
        for number in range(first, first + 25):
            await _create(simulator, number)
            await simulator.power_on(_name(number))
            guest = await simulator.guest(_name(0))
            assert guest is not None
            await simulator.export_disk(_name(0), f"of-{number}", None)
        await simulator.close()

    asyncio.run(work())


async def test_processes_at_once_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_COMPACT_BYTES", 20_000)  # inherited: the journal is replaced while they work
    simulator = Simulator(path)
    await _create(simulator, 0)
    simulator.writes(_name(0), 0, random.Random(1).randbytes(3 * BLOCK_BYTES))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(path, first)) for first in (100, 200, 300)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    worked = [first + number for first in (100, 200, 300) for number in range(25)]
    assert set(await simulator.guests()) == {_name(0), *map(_name, worked)}
    assert all(simulator.content(_name(number), 0, 4) == b"vpsd" for number in worked)
    assert simulator.checkpoints(_name(0)) == {f"of-{number}" for number in worked}
    await simulator.close()


async def test_a_change_waits_for_the_one_of_another_and_builds_on_it(path: Path) -> None:
    """Not only the append: also what a change decides by is read while nobody else changes it."""
    one, two = Simulator(path), Simulator(path)
    await _create(one, 1)
    writing = threading.Thread(target=two.writes, args=(_name(1), 4, b"two"))
    with one._store.change() as transaction:
        writing.start()
        writing.join(0.2)
        assert writing.is_alive()
        transaction.apply(_one_written(b"one "))
    writing.join(10)
    assert one.content(_name(1), 0, 7) == two.content(_name(1), 0, 7) == b"one two"
    await one.close()
    await two.close()


def _one_written(content: bytes) -> Write:
    return Write(_name(1), 0, content)


@pytest.mark.parametrize("cut", [1, 2, 10])
async def test_a_torn_last_line_is_ignored_and_overwritten(path: Path, cut: int) -> None:
    simulator = Simulator(path)
    await _create(simulator, 1)
    whole = path.read_bytes()
    await simulator.power_on(_name(1))
    path.write_bytes(path.read_bytes()[:-cut])
    other = Simulator(path)
    guest = await other.guest(_name(1))
    assert guest is not None
    assert guest.power is PowerState.CRASHED
    await other.write_seed(_name(1), b"another")
    simulator = await _reopened(simulator, path)
    assert simulator.seed(_name(1)) == other.seed(_name(1)) == b"another"
    assert path.read_bytes().startswith(whole + b'[["seed"')
    await simulator.close()
    await other.close()


async def test_a_process_that_is_killed_while_it_works_leaves_a_state_that_can_be_used(path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from tests.hypervisor.test_simulator import _create
from vpsd.hypervisor.simulator import Simulator

async def work():
    simulator, number = Simulator(Path({str(path)!r})), 0
    while True:
        await _create(simulator, number := number + 1)
        print(number, flush=True)

asyncio.run(work())
"""
    done = await asyncio.to_thread(_lines_before_kill, program)
    simulator = Simulator(path)
    assert {_name(int(line)) for line in done} <= set(await simulator.guests())
    await _create(simulator, 0)
    await simulator.close()


def _lines_before_kill(program: str) -> list[str]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(50)]
    process.kill()
    process.communicate()
    return lines


async def test_a_journal_that_has_grown_is_replaced_by_a_shorter_one_that_others_notice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Simulator(path, boot_seconds=0.0), Simulator(path)  # so its state does not depend on when one looks
    await _fill(one)
    before = await _describe(two)
    inode = path.stat().st_ino
    monkeypatch.setattr(journal, "_COMPACT_BYTES", path.stat().st_size + 2000)
    largest = 0
    for number in range(1000):
        two.writes(_name(2), 7, b"%d" % number)
        largest = max(largest, path.stat().st_size)
    assert path.stat().st_ino != inode
    assert largest < 20_000
    assert await _describe(one) == await _describe(two) == before
    assert one.content(_name(2), 7, 3) == b"999"
    one.writes(_name(2), 7, b"end")
    assert two.content(_name(2), 7, 3) == b"end"
    one = await _reopened(one, path)
    assert await _describe(one) == before
    assert await one.export_disk(_name(2), "m-1", None)
    await one.close()
    await two.close()


async def test_disks_do_not_bloat_the_journal(path: Path) -> None:
    simulator = Simulator(path)
    await _create(simulator, 1)
    before = path.stat().st_size
    for number in range(100):
        simulator.writes(_name(1), number * BLOCK_BYTES, b"a little")
    assert path.stat().st_size - before < 10_000
    simulator.writes(_name(1), 0, bytes(8 << 20))
    assert path.stat().st_size - before < 100_000
    before = path.stat().st_size
    simulator.writes(_name(1), 0, random.Random(1).randbytes(1 << 20))
    assert path.stat().st_size - before < 1.4 * (1 << 20)
    before = path.stat().st_size
    await simulator.export_disk(_name(1), "m-1", None)
    assert path.stat().st_size - before < 1000
    await simulator.close()


async def test_the_state_of_an_earlier_version_is_carried_along_once(path: Path) -> None:
    old = path.with_suffix(".sqlite")
    _write_sqlite(old)
    before = old.read_bytes()
    simulator = Simulator(path, FakeClock())
    for _ in range(2):
        guest = await simulator.guest(_name(1))
        assert guest is not None
        assert (guest.power, tuple(guest.forwards)) == (PowerState.RUNNING, tuple(_spec(1).forwards))
        assert await simulator.is_up(_name(1))
        assert msgspec.json.encode(simulator.spec(_name(1))) == msgspec.json.encode(_spec(1))
        volumes = await simulator.volumes()
        assert volumes.disks == {_name(1), f"{_name(1)}.2"}
        assert volumes.seeds == {_name(1)}
        assert volumes.bases == {BASE.key}
        assert volumes.exports == {_name(1)}
        assert simulator.seed(_name(1)) == b"seed"
        assert simulator.disk_bytes(f"{_name(1)}.2") == 7
        assert simulator.content(_name(1), 0, 2 * BLOCK_BYTES) == b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES
        assert simulator.checkpoints(_name(1)) == {"m-1", "m-2"}
        assert await simulator.block_map(_name(1)) == BlockMap(9, (Extent(BLOCK_BYTES, BLOCK_BYTES),))
        assert await simulator.read_export(_name(1), BLOCK_BYTES, 1) == b"c"
        assert await simulator.export_progress(_name(1)) == 1.0
        await simulator.close()
        assert old.read_bytes() == before
        with sqlite3.connect(old) as database:
            database.execute("DELETE FROM guests")  # it is not read again
        before = old.read_bytes()
        simulator = Simulator(path, FakeClock())
    assert (await simulator.export_disk(_name(1), "m-3", "m-1")).since_checkpoint == "m-1"
    assert (await simulator.block_map(_name(1))).extents == (Extent(BLOCK_BYTES, BLOCK_BYTES),)  # written after m-1
    await simulator.close()


def _write_sqlite(path: Path) -> None:
    """What the simulator kept before it had a journal."""
    state = {
        "spec": msgspec.to_builtins(_spec(1)),
        "power": "running",
        "up_at_ms": 5,
        "forwards": msgspec.to_builtins(_spec(1).forwards),
    }
    a, b, c = (letter * BLOCK_BYTES for letter in (b"a", b"b", b"c"))
    with sqlite3.connect(path, isolation_level=None) as database:
        for table, columns, rows in (
            ("guests", "name TEXT PRIMARY KEY, state TEXT NOT NULL", [(_name(1), msgspec.json.encode(state).decode())]),
            (
                "disks",
                "name TEXT PRIMARY KEY, base TEXT NOT NULL, size_bytes INTEGER NOT NULL",
                [(_name(1), BASE.key, DISK_BYTES), (f"{_name(1)}.2", "", 7)],
            ),
            ("seeds", "name TEXT PRIMARY KEY, content BLOB NOT NULL", [(_name(1), b"seed")]),
            ("bases", "key TEXT PRIMARY KEY", [(BASE.key,)]),
            (
                "blocks",
                "disk TEXT, number INTEGER, content BLOB, written INTEGER, PRIMARY KEY (disk, number)",
                [(_name(1), 0, a, 1), (_name(1), 1, b, 2)],
            ),
            (
                "marks",
                "name TEXT, mark TEXT, written INTEGER, PRIMARY KEY (name, mark)",
                [(_name(1), "m-1", 1), (_name(1), "m-2", 2)],
            ),
            (
                "copies",
                "name TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, done_at_ms INTEGER NOT NULL",
                [(_name(1), 9, 5)],
            ),
            ("copied", "name TEXT, number INTEGER, content BLOB, PRIMARY KEY (name, number)", [(_name(1), 1, c)]),
        ):
            database.execute(f"CREATE TABLE {table} ({columns})")
            for row in rows:
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    database.close()


def test_a_file_of_an_earlier_version_that_cannot_be_read_is_told(path: Path) -> None:
    path.with_suffix(".sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(Misconfigured, match=r"simulator\.sqlite cannot be read"):
        Simulator(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"vpsd-simulator":2,"snapshot_bytes":0,"more":1}\n["new"]\n', r"later version of vpsd \(format 2"),
        (b"", "not a simulator's state"),
        (b"something else\n", "not a simulator's state"),
        (b'{"vpsd-simulator":1}\n[["disk","a",null]]\n[["nothing"]]\n', "damaged at byte 41"),
        (b'{"vpsd-simulator":1}\nzabc\n', "damaged at byte 21"),
    ],
)
async def test_a_journal_that_cannot_be_used_is_refused_and_left_as_it_is(
    path: Path, content: bytes, text: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=text):
        Simulator(path)
    assert path.read_bytes() == content


async def test_a_vpsd_that_runs_while_a_later_one_replaces_the_journal_does_not_touch_it(path: Path) -> None:
    simulator = Simulator(path)
    await _create(simulator, 1)
    later = path.with_suffix(".later")
    later.write_bytes(b'{"vpsd-simulator":2}\n')
    later.rename(path)
    for call in (simulator.guests(), simulator.remove(_name(1))):
        with pytest.raises(Misconfigured, match="later version"):
            await call
    assert path.read_bytes() == b'{"vpsd-simulator":2}\n'
    await simulator.close()


async def test_a_change_that_cannot_be_written_did_not_happen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(path)
    await _create(simulator, 1)
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(Unavailable, match="no space left"):
        await simulator.power_on(_name(1))
    monkeypatch.undo()
    guest = await simulator.guest(_name(1))
    assert guest is not None
    assert guest.power is PowerState.CRASHED
    assert path.read_bytes() == before
    await simulator.power_on(_name(1))
    await simulator.close()


async def test_a_call_that_fails_leaves_memory_and_file_alike(path: Path) -> None:
    simulator, other = Simulator(path), Simulator(path)
    await _create(simulator, 1)
    simulator.loses_disk(_name(1))
    for call in (simulator.power_on(_name(1)), simulator.export_disk(_name(1), "m-1", None)):
        with pytest.raises(Unusable):
            await call
    assert await simulator.guests() == await other.guests()
    await simulator.close()
    await other.close()


def test_a_program_that_is_started_does_not_inherit_the_lock(path: Path) -> None:
    simulator = Simulator(path)
    open_files = "import os; print(*[os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')])"
    command = [sys.executable, "-c", open_files]
    told = subprocess.run(command, capture_output=True, text=True, check=True, close_fds=False).stdout
    assert str(path.parent) not in told
    assert path.stat().st_mode & 0o777 == 0o600
    asyncio.run(simulator.close())


async def test_a_disk_that_is_written_in_part_is_begun_anew(path: Path) -> None:
    simulator = Simulator(path)
    await simulator.ensure_base(BASE, silent)

    def chunks(*contents: bytes) -> Callable[[], AsyncIterator[bytes]]:
        async def give() -> AsyncIterator[bytes]:
            for content in contents:
                yield content

        return give

    with pytest.raises(StopAsyncIteration):
        await simulator.write_disk("d", 3 * BLOCK_BYTES, BLOCK_BYTES, [0, 2], chunks(b"a" * 9)())
    simulator = await _reopened(simulator, path)
    assert not (await simulator.volumes()).disks
    await simulator.write_disk("d", 3 * BLOCK_BYTES, BLOCK_BYTES, [2], chunks(b"b" * 9)())
    assert simulator.content("d", 0, 9) == bytes(9)
    assert simulator.content("d", 2 * BLOCK_BYTES, 9) == b"b" * 9
    await simulator.close()


def test_without_a_file_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(_fill(Simulator()))
    assert list(tmp_path.iterdir()) == []


class _Disk:
    """What of a journal's folder is on the disk: what a power cut leaves."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path, self._fsync = path, os.fsync
        self.named, self.bytes, self.syncs = 0, 0, 0  # the inode that the folder knows, and what is there of it
        monkeypatch.setattr(os, "fsync", self.sync)
        monkeypatch.setattr(os, "fdatasync", self.sync)

    def sync(self, file: int) -> None:
        found = os.fstat(file)
        if stat.S_ISDIR(found.st_mode):
            self.named = self._path.stat().st_ino
        else:
            self.bytes, self.syncs = found.st_size, self.syncs + 1
        self._fsync(file)

    def cut(self) -> None:
        """Leave what was synced."""
        assert self._path.stat().st_ino == self.named, "the journal's name would be lost"
        os.truncate(self._path, self.bytes)


async def test_what_was_answered_survives_a_power_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _Disk(path, monkeypatch)
    empty = Simulator(path)
    disk.cut()
    await empty.close()
    simulator = Simulator(path, boot_seconds=0.0)
    await _fill(simulator)
    before = await _describe(simulator)
    disk.cut()
    simulator = await _reopened(simulator, path)
    assert await _describe(simulator) == before
    for _ in range(60):  # until it is replaced by a shorter one
        simulator.writes(_name(1), 0, os.urandom(1 << 16))
    assert path.stat().st_size < 3 << 20
    before, syncs = await _describe(simulator), disk.syncs
    await simulator.guests()
    await simulator.volumes()
    assert disk.syncs == syncs  # to read costs none
    disk.cut()
    simulator = await _reopened(simulator, path)
    assert await _describe(simulator) == before
    await simulator.close()
