"""A host that only plays: the same rules as a real one, no guests. For trying vpsd out, for tools' tests and its own.

What it holds lies in an SQLite file, so that it outlives the process like a real host does, and other processes see it.
Delays and faults are set by whoever holds the object.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from vpsd.core.clock import Clock, SystemClock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import (
    BlockMap,
    DiskExport,
    Extent,
    Forward,
    Guest,
    GuestSpec,
    GuestStats,
    HostFacts,
    Image,
    PortsTaken,
    PowerState,
    Progress,
    Volumes,
)

_BLOCK_BYTES = 1 << 16


Hook = Callable[[str], Awaitable[None] | None]


class _State(msgspec.Struct):
    spec: GuestSpec
    power: PowerState = PowerState.CRASHED  # as a real host reports a guest that was never on
    up_at_ms: int | None = None  # when it answers, if nothing happens to it
    forwards: tuple[Forward, ...] = ()


class Simulator:
    """A simulated host. Public attributes are its knobs."""

    def __init__(self, path: str = ":memory:", clock: Clock | None = None, boot_seconds: float = 0.5) -> None:
        self._clock = clock or SystemClock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA busy_timeout = 10000")
        for table, columns in (
            ("guests", "name TEXT PRIMARY KEY, state TEXT NOT NULL"),
            ("disks", "name TEXT PRIMARY KEY, base TEXT NOT NULL, size_bytes INTEGER NOT NULL"),
            ("seeds", "name TEXT PRIMARY KEY, content BLOB NOT NULL"),
            ("bases", "key TEXT PRIMARY KEY"),
            ("blocks", "disk TEXT, number INTEGER, content BLOB, written INTEGER, PRIMARY KEY (disk, number)"),
            ("marks", "name TEXT, mark TEXT, written INTEGER, PRIMARY KEY (name, mark)"),
            ("copies", "name TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, done_at_ms INTEGER NOT NULL"),
            ("copied", "name TEXT, number INTEGER, content BLOB, PRIMARY KEY (name, number)"),
        ):
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        self._watchers: list[Callable[[str], None]] = []
        self.boot_seconds = boot_seconds
        self.delay_seconds = 0.0  # of every call
        self.broken = False  # the host does not answer
        self.ignores_acpi = False  # guests do not hear the power button
        self.never_boots = False  # guests start and never answer
        self.has_agent = True  # guests can put their file systems to rest
        self.export_seconds = 0.0  # how long an export of a disk takes
        self.low_ports = True  # ports below 1024 can be opened
        self.calls: list[str] = []  # every call, in order
        self.guest_stats = GuestStats()  # of every guest
        self.unfinished_bases: set[str] = set()  # bases whose upload was interrupted
        self.keeps_all_checkpoints = False  # keep_checkpoint deletes none
        self.before_call: Hook | None = None  # called with the name of each call; what it raises, the call raises
        self.after_call: Hook | None = None  # the same, once the effect is on the host

    @asynccontextmanager
    async def _call(self, call: str) -> AsyncIterator[None]:
        self.calls.append(call)
        await _run_hook(self.before_call, call)
        if self.broken:
            raise Unavailable("The simulated host does not answer.")
        if self.delay_seconds:
            await self._clock.sleep(self.delay_seconds)
        yield
        await _run_hook(self.after_call, call)

    def _load(self, name: str) -> _State | None:
        row = self._db.execute("SELECT state FROM guests WHERE name = ?", (name,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=_State)

    def _store(self, name: str, state: _State) -> None:
        text = msgspec.json.encode(state).decode()
        self._db.execute("INSERT OR REPLACE INTO guests VALUES (?, ?)", (name, text))
        for changed in self._watchers:
            changed(name)

    def _known(self, name: str) -> _State:
        state = self._load(name)
        if state is None:
            raise Unusable(f"The host knows no guest {name}.")
        return state

    def _column(self, table: str, column: str) -> list[Any]:
        return [row[0] for row in self._db.execute(f"SELECT {column} FROM {table} ORDER BY {column}")]  # noqa: S608

    async def facts(self) -> HostFacts:
        async with self._call("facts"):
            reason = "nothing runs: guests are simulated"
            return HostFacts("simulator", "simulator:", "none", reason, "1", "simulator", 1024, 1 << 20, 1 << 17)

    async def guests(self) -> Mapping[str, Guest]:
        async with self._call("guests"):
            states = {name: self._known(name) for name in self._column("guests", "name")}
            return {name: _guest(name, state) for name, state in states.items()}

    async def guest(self, name: str) -> Guest | None:
        async with self._call("guest"):
            state = self._load(name)
            return None if state is None else _guest(name, state)

    async def volumes(self) -> Volumes:
        async with self._call("volumes"):
            return Volumes(
                disks=frozenset(self._column("disks", "name")),
                exports=frozenset(self._column("copies", "name")),
                seeds=frozenset(self._column("seeds", "name")),
                bases=frozenset(self._column("bases", "key")),
                unfinished=frozenset(self.unfinished_bases),
            )

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        async with self._call("ensure_base"):
            self._db.execute("INSERT OR IGNORE INTO bases VALUES (?)", (image.key,))
            progress(1.0, "the image is on the host")

    async def delete_base(self, key: str) -> None:
        async with self._call("delete_base"):
            if self._db.execute("SELECT 1 FROM disks WHERE base = ?", (key,)).fetchone():
                raise Unusable(f"The base image {key} is in use by disks.")
            self._db.execute("DELETE FROM bases WHERE key = ?", (key,))
            self.unfinished_bases.discard(key)

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        async with self._call("ensure_disk"):
            if base not in self._column("bases", "key"):
                raise Unusable(f"The base image {base} is not on the host.")
            self._db.execute("INSERT OR IGNORE INTO disks VALUES (?, ?, ?)", (disk, base, size_bytes))

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        async with self._call("write_disk"):
            if disk in self._column("disks", "name"):
                return
            self._db.execute("DELETE FROM blocks WHERE disk = ?", (disk,))
            for number in chunks:
                self._write(disk, number * chunk_bytes, await anext(content))
            self._db.execute("INSERT INTO disks VALUES (?, '', ?)", (disk, size_bytes))

    async def delete_disk(self, disk: str) -> None:
        async with self._call("delete_disk"):
            self._delete_disk(disk)

    def _delete_disk(self, disk: str) -> None:
        self._db.execute("DELETE FROM disks WHERE name = ?", (disk,))
        self._db.execute("DELETE FROM blocks WHERE disk = ?", (disk,))

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        async with self._call("grow_disk"):
            if disk not in self._column("disks", "name"):
                raise Unusable(f"There is no disk {disk}.")
            if self.disk_bytes(disk) < size_bytes:
                self._db.execute("DELETE FROM marks WHERE name = ?", (name,))
                self._db.execute("UPDATE disks SET size_bytes = ? WHERE name = ?", (size_bytes, disk))

    async def export_disk(self, name: str, checkpoint: str, since: str | None) -> DiskExport:
        async with self._call("export_disk"):
            state = self._known(name)
            disk = state.spec.disk
            self._drop_export(name)
            if state.power is not PowerState.RUNNING:
                state.power = PowerState.PAUSED
                self._store(name, state)
            self._db.execute("DELETE FROM marks WHERE name = ? AND mark = ?", (name, checkpoint))
            known = self._db.execute("SELECT written FROM marks WHERE name = ? AND mark = ?", (name, since)).fetchone()
            after = 0 if known is None else known[0]
            done_at_ms = self._clock.now_ms() + round(self.export_seconds * 1000)
            self._db.execute("INSERT INTO copies VALUES (?, ?, ?)", (name, self.disk_bytes(disk), done_at_ms))
            self._db.execute(
                "INSERT INTO copied SELECT ?, number, content FROM blocks WHERE disk = ? AND written > ?",
                (name, disk, after),
            )
            self._db.execute("INSERT INTO marks VALUES (?, ?, ?)", (name, checkpoint, self._writes(disk)))
            off = state.power is not PowerState.RUNNING
            return DiskExport(since if known is not None else None, self.has_agent or off, 0, off)

    async def export_progress(self, name: str) -> float:
        async with self._call("export_progress"):
            row = self._db.execute("SELECT done_at_ms FROM copies WHERE name = ?", (name,)).fetchone()
            state = self._load(name)
            if row is None or state is None or state.power not in (PowerState.RUNNING, PowerState.PAUSED):
                raise Unavailable(f"The export of the disk of {name} failed.")
            return 1.0 if self._clock.now_ms() >= row[0] else 0.5

    async def block_map(self, name: str) -> BlockMap:
        async with self._call("block_map"):
            row = self._db.execute("SELECT size_bytes FROM copies WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise Unusable(f"There is no export of the disk of {name} on the host.")
            numbers = self._db.execute("SELECT number FROM copied WHERE name = ? ORDER BY number", (name,))
            return BlockMap(row[0], tuple(Extent(number * _BLOCK_BYTES, _BLOCK_BYTES) for (number,) in numbers))

    async def read_export(self, name: str, offset: int, length: int) -> bytes:
        async with self._call("read_export"):
            return self._read("copied WHERE name", name, offset, length)

    async def drop_export(self, name: str) -> None:
        async with self._call("drop_export"):
            self._drop_export(name)

    def _drop_export(self, name: str) -> None:
        for table in ("copies", "copied"):
            self._db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608

    async def keep_checkpoint(self, name: str, checkpoint: str | None) -> None:
        async with self._call("keep_checkpoint"):
            if self.keeps_all_checkpoints:
                return
            self._db.execute("DELETE FROM marks WHERE name = ? AND mark IS NOT ?", (name, checkpoint))

    def _writes(self, disk: str) -> int:
        """How often a disk was written to."""
        asked = self._db.execute("SELECT coalesce(max(written), 0) FROM blocks WHERE disk = ?", (disk,))
        count: int = asked.fetchone()[0]
        return count

    def _write(self, disk: str, offset: int, content: bytes) -> None:
        written = self._writes(disk) + 1
        while content:
            number, start = divmod(offset, _BLOCK_BYTES)
            part = content[: _BLOCK_BYTES - start]
            block = bytearray(self._read("blocks WHERE disk", disk, number * _BLOCK_BYTES, _BLOCK_BYTES))
            block[start : start + len(part)] = part
            self._db.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", (disk, number, bytes(block), written))
            offset, content = offset + len(part), content[len(part) :]

    def _read(self, where: str, key: str, offset: int, length: int) -> bytes:
        first, last = offset // _BLOCK_BYTES, (offset + length - 1) // _BLOCK_BYTES
        content = bytearray((last - first + 1) * _BLOCK_BYTES)
        for number, block in self._db.execute(
            f"SELECT number, content FROM {where} = ? AND number BETWEEN ? AND ?",  # noqa: S608
            (key, first, last),
        ):
            content[(number - first) * _BLOCK_BYTES : (number - first + 1) * _BLOCK_BYTES] = block
        start = offset - first * _BLOCK_BYTES
        return bytes(content[start : start + length])

    async def write_seed(self, name: str, content: bytes) -> None:
        async with self._call("write_seed"):
            self._db.execute("INSERT OR REPLACE INTO seeds VALUES (?, ?)", (name, content))

    async def define(self, spec: GuestSpec) -> None:
        async with self._call("define"):
            state = self._load(spec.name) or _State(spec)
            state.spec = spec
            self._store(spec.name, state)

    async def power_on(self, name: str) -> None:
        async with self._call("power_on"):
            state = self._known(name)
            if state.power is PowerState.PAUSED:
                state.power = PowerState.RUNNING
            elif state.power is not PowerState.RUNNING:
                self._boot(name, state)
            self._store(name, state)

    def _boot(self, name: str, state: _State) -> None:
        if state.spec.disk not in self._column("disks", "name") or name not in self._column("seeds", "name"):
            raise Unusable(f"The guest {name} lacks its disk or its seed.")
        if not self.low_ports and any(forward.host_port < 1024 for forward in state.spec.forwards):
            raise PortsTaken(f"A port of {state.spec.address} cannot be opened.")
        state.power = PowerState.RUNNING
        state.forwards = tuple(state.spec.forwards)
        self._write(state.spec.disk, 0, f"{name} was started at {self._clock.now_ms()}".encode())
        state.up_at_ms = None if self.never_boots else self._clock.now_ms() + round(self.boot_seconds * 1000)

    async def request_shutdown(self, name: str) -> None:
        async with self._call("request_shutdown"):
            state = self._known(name)
            if not self.ignores_acpi and state.power is PowerState.RUNNING:
                state.power = PowerState.OFF
                self._store(name, state)

    async def power_off(self, name: str) -> None:
        async with self._call("power_off"):
            state = self._load(name)
            if state is not None and state.power in (PowerState.RUNNING, PowerState.PAUSED):
                state.power = PowerState.OFF
                self._store(name, state)

    async def is_up(self, name: str) -> bool:
        async with self._call("is_up"):
            return self._is_up(name)

    def _is_up(self, name: str) -> bool:
        state = self._load(name)
        return (
            state is not None
            and state.power is PowerState.RUNNING
            and state.up_at_ms is not None
            and self._clock.now_ms() >= state.up_at_ms
        )

    async def remove(self, name: str) -> None:
        async with self._call("remove"):
            for disk in self._column("disks", "name"):
                if disk == name or disk.startswith(f"{name}."):
                    self._delete_disk(disk)
            for table in ("guests", "seeds", "copies", "copied", "marks"):
                self._db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608
            for changed in self._watchers:
                changed(name)

    async def stats(self, name: str) -> GuestStats:  # noqa: ARG002
        """`guest_stats`, by default all None: there is no guest to measure, and no value is made up."""
        async with self._call("stats"):
            return self.guest_stats

    def watch(self, changed: Callable[[str], None]) -> None:
        self._watchers.append(changed)

    async def close(self) -> None:
        self._db.close()

    def happens(self, name: str, power: PowerState) -> None:
        """Something befalls a guest that vpsd did not ask for."""
        state = self._known(name)
        state.power = power
        self._store(name, state)

    def vanishes(self, name: str) -> None:
        """Somebody undefines a guest; its volumes stay."""
        self._db.execute("DELETE FROM guests WHERE name = ?", (name,))

    def loses_disk(self, disk: str) -> None:
        """Somebody deletes a guest's disk."""
        self._delete_disk(disk)

    def writes(self, disk: str, offset: int, content: bytes) -> None:
        """The guest writes to its disk."""
        self._write(disk, offset, content)

    def content(self, disk: str, offset: int, length: int) -> bytes:
        """What the guest reads from its disk."""
        return self._read("blocks WHERE disk", disk, offset, length)

    def checkpoints(self, name: str) -> set[str]:
        """The checkpoints of the guest's disk."""
        return {mark for (mark,) in self._db.execute("SELECT mark FROM marks WHERE name = ?", (name,))}

    def spec(self, name: str) -> GuestSpec:
        """How the guest is defined."""
        return self._known(name).spec

    def disk_bytes(self, disk: str) -> int:
        """The size of a disk."""
        size: int = self._db.execute("SELECT size_bytes FROM disks WHERE name = ?", (disk,)).fetchone()[0]
        return size

    def seed(self, name: str) -> bytes:
        """The guest's seed, as it lies on the host."""
        content: bytes = self._db.execute("SELECT content FROM seeds WHERE name = ?", (name,)).fetchone()[0]
        return content


def _guest(name: str, state: _State) -> Guest:
    return Guest(name, state.spec.uuid, state.power, state.forwards)


async def _run_hook(hook: Hook | None, call: str) -> None:
    if hook is not None and (waiting := hook(call)) is not None:
        await waiting
