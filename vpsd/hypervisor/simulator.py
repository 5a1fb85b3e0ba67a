"""A host that only plays: the same rules as a real one, no guests. For trying vpsd out, for tools' tests and its own.

What it holds lies in an SQLite file, so that it outlives the process like a real host does, and other processes see it.
Delays and faults are set by whoever holds the object.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from vpsd.core.clock import Clock, SystemClock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import (
    Copied,
    Copying,
    Forward,
    Guest,
    GuestSpec,
    HostFacts,
    Image,
    PortsTaken,
    Power,
    Progress,
    Run,
    Usage,
    Volumes,
)

_BLOCK_BYTES = 1 << 16


class _State(msgspec.Struct):
    spec: GuestSpec
    power: Power = Power.CRASHED  # like a real host's word for a guest that was never on
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
        self.copy_seconds = 0.0  # how long a copy of a disk takes
        self.low_ports = True  # ports below 1024 can be opened
        self.calls: list[str] = []  # every call, in order
        self.before_call: Callable[[str], None] | None = None  # may raise: that is what happens at this call
        self.after_call: Callable[[str], None] | None = None  # the same, when its effect is on the host

    @contextmanager
    def _call(self, call: str) -> Iterator[None]:
        self.calls.append(call)
        if self.before_call is not None:
            self.before_call(call)
        if self.broken:
            raise Unavailable("The simulated host does not answer.")
        yield
        if self.after_call is not None:
            self.after_call(call)

    async def _delay(self) -> None:
        if self.delay_seconds:
            await self._clock.sleep(self.delay_seconds)

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
        with self._call("facts"):
            await self._delay()
            reason = "nothing runs: guests are simulated"
            return HostFacts("simulator", "simulator:", "none", reason, "1", "simulator", 1024, 1 << 20, 1 << 17)

    async def guests(self) -> Mapping[str, Guest]:
        with self._call("guests"):
            await self._delay()
            states = {name: self._known(name) for name in self._column("guests", "name")}
            return {name: _guest(name, state) for name, state in states.items()}

    async def guest(self, name: str) -> Guest | None:
        with self._call("guest"):
            await self._delay()
            state = self._load(name)
            return None if state is None else _guest(name, state)

    async def volumes(self) -> Volumes:
        with self._call("volumes"):
            await self._delay()
            return Volumes(
                disks=frozenset(self._column("disks", "name")),
                copies=frozenset(self._column("copies", "name")),
                seeds=frozenset(self._column("seeds", "name")),
                bases=frozenset(self._column("bases", "key")),
            )

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        with self._call("ensure_base"):
            await self._delay()
            self._db.execute("INSERT OR IGNORE INTO bases VALUES (?)", (image.key,))
            progress(1.0, "the image is on the host")

    async def delete_base(self, key: str) -> None:
        with self._call("delete_base"):
            await self._delay()
            if self._db.execute("SELECT 1 FROM disks WHERE base = ?", (key,)).fetchone():
                raise Unusable(f"Disks stand on the base image {key}.")
            self._db.execute("DELETE FROM bases WHERE key = ?", (key,))

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        with self._call("ensure_disk"):
            await self._delay()
            if base not in self._column("bases", "key"):
                raise Unusable(f"The base image {base} is not on the host.")
            self._db.execute("INSERT OR IGNORE INTO disks VALUES (?, ?, ?)", (disk, base, size_bytes))

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        with self._call("write_disk"):
            await self._delay()
            if disk in self._column("disks", "name"):
                return
            self._db.execute("DELETE FROM blocks WHERE disk = ?", (disk,))
            for number in chunks:
                self._write(disk, number * chunk_bytes, await anext(content))
            self._db.execute("INSERT INTO disks VALUES (?, '', ?)", (disk, size_bytes))

    async def delete_disk(self, disk: str) -> None:
        with self._call("delete_disk"):
            await self._delay()
            self._delete_disk(disk)

    def _delete_disk(self, disk: str) -> None:
        self._db.execute("DELETE FROM disks WHERE name = ?", (disk,))
        self._db.execute("DELETE FROM blocks WHERE disk = ?", (disk,))

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        with self._call("grow_disk"):
            await self._delay()
            if disk not in self._column("disks", "name"):
                raise Unusable(f"There is no disk {disk}.")
            if self.disk_bytes(disk) < size_bytes:
                self._db.execute("DELETE FROM marks WHERE name = ?", (name,))
                self._db.execute("UPDATE disks SET size_bytes = ? WHERE name = ?", (size_bytes, disk))

    async def copy_disk(self, name: str, mark: str, since: str | None) -> Copying:
        with self._call("copy_disk"):
            await self._delay()
            state = self._known(name)
            disk = state.spec.disk
            self._drop_copy(name)
            if state.power is not Power.RUNNING:
                state.power = Power.PAUSED
                self._store(name, state)
            self._db.execute("DELETE FROM marks WHERE name = ? AND mark = ?", (name, mark))
            known = self._db.execute("SELECT written FROM marks WHERE name = ? AND mark = ?", (name, since)).fetchone()
            after = 0 if known is None else known[0]
            done_at_ms = self._clock.now_ms() + round(self.copy_seconds * 1000)
            self._db.execute("INSERT INTO copies VALUES (?, ?, ?)", (name, self.disk_bytes(disk), done_at_ms))
            self._db.execute(
                "INSERT INTO copied SELECT ?, number, content FROM blocks WHERE disk = ? AND written > ?",
                (name, disk, after),
            )
            self._db.execute("INSERT INTO marks VALUES (?, ?, ?)", (name, mark, self._writes(disk)))
            off = state.power is not Power.RUNNING
            return Copying(since if known is not None else None, self.has_agent or off, 0, off)

    async def copy_progress(self, name: str) -> float:
        with self._call("copy_progress"):
            await self._delay()
            row = self._db.execute("SELECT done_at_ms FROM copies WHERE name = ?", (name,)).fetchone()
            state = self._load(name)
            if row is None or state is None or state.power not in (Power.RUNNING, Power.PAUSED):
                raise Unavailable(f"Copying the disk of {name} broke off.")
            return 1.0 if self._clock.now_ms() >= row[0] else 0.5

    async def copied(self, name: str) -> Copied:
        with self._call("copied"):
            await self._delay()
            row = self._db.execute("SELECT size_bytes FROM copies WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise Unusable(f"There is no copy of the disk of {name} on the host.")
            numbers = self._db.execute("SELECT number FROM copied WHERE name = ? ORDER BY number", (name,))
            return Copied(row[0], tuple(Run(number * _BLOCK_BYTES, _BLOCK_BYTES) for (number,) in numbers))

    async def read_copy(self, name: str, offset: int, length: int) -> bytes:
        with self._call("read_copy"):
            await self._delay()
            return self._read("copied WHERE name", name, offset, length)

    async def drop_copy(self, name: str) -> None:
        with self._call("drop_copy"):
            await self._delay()
            self._drop_copy(name)

    def _drop_copy(self, name: str) -> None:
        for table in ("copies", "copied"):
            self._db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608

    async def keep_mark(self, name: str, mark: str | None) -> None:
        with self._call("keep_mark"):
            await self._delay()
            self._db.execute("DELETE FROM marks WHERE name = ? AND mark IS NOT ?", (name, mark))

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
        with self._call("write_seed"):
            await self._delay()
            self._db.execute("INSERT OR REPLACE INTO seeds VALUES (?, ?)", (name, content))

    async def define(self, spec: GuestSpec) -> None:
        with self._call("define"):
            await self._delay()
            state = self._load(spec.name) or _State(spec)
            state.spec = spec
            self._store(spec.name, state)

    async def power_on(self, name: str) -> None:
        with self._call("power_on"):
            await self._delay()
            state = self._known(name)
            if state.power is Power.PAUSED:
                state.power = Power.RUNNING
            elif state.power is not Power.RUNNING:
                self._boot(name, state)
            self._store(name, state)

    def _boot(self, name: str, state: _State) -> None:
        if state.spec.disk not in self._column("disks", "name") or name not in self._column("seeds", "name"):
            raise Unusable(f"The guest {name} lacks its disk or its seed.")
        if not self.low_ports and any(forward.host_port < 1024 for forward in state.spec.forwards):
            raise PortsTaken(f"A port of {state.spec.address} cannot be opened.")
        state.power = Power.RUNNING
        state.forwards = tuple(state.spec.forwards)
        self._write(state.spec.disk, 0, f"{name} was started at {self._clock.now_ms()}".encode())
        state.up_at_ms = None if self.never_boots else self._clock.now_ms() + round(self.boot_seconds * 1000)

    async def request_shutdown(self, name: str) -> None:
        with self._call("request_shutdown"):
            await self._delay()
            state = self._known(name)
            if not self.ignores_acpi and state.power is Power.RUNNING:
                state.power = Power.OFF
                self._store(name, state)

    async def power_off(self, name: str) -> None:
        with self._call("power_off"):
            await self._delay()
            state = self._load(name)
            if state is not None and state.power in (Power.RUNNING, Power.PAUSED):
                state.power = Power.OFF
                self._store(name, state)

    async def is_up(self, name: str) -> bool:
        with self._call("is_up"):
            await self._delay()
            return self._is_up(name)

    def _is_up(self, name: str) -> bool:
        state = self._load(name)
        return (
            state is not None
            and state.power is Power.RUNNING
            and state.up_at_ms is not None
            and self._clock.now_ms() >= state.up_at_ms
        )

    async def remove(self, name: str) -> None:
        with self._call("remove"):
            await self._delay()
            for disk in self._column("disks", "name"):
                if disk == name or disk.startswith(f"{name}."):
                    self._delete_disk(disk)
            for table in ("guests", "seeds", "copies", "copied", "marks"):
                self._db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608
            for changed in self._watchers:
                changed(name)

    async def usage(self, name: str) -> Usage:  # noqa: ARG002
        """Nothing: there is no guest to measure, and figures are never invented."""
        with self._call("usage"):
            await self._delay()
            return Usage()

    def watch(self, changed: Callable[[str], None]) -> None:
        self._watchers.append(changed)

    async def close(self) -> None:
        self._db.close()

    def happens(self, name: str, power: Power) -> None:
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

    def marks(self, name: str) -> set[str]:
        """The marks of the guest's disk."""
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
