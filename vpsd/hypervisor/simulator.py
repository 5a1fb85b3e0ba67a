"""A host that only plays: the same rules as a real one, no guests. For trying vpsd out, for tools' tests and its own.

What it holds lies in an SQLite file, so that it outlives the process like a real host does, and other processes see it.
Delays and faults are set by whoever holds the object.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from vpsd.core.clock import Clock, SystemClock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import (
    Forward,
    Guest,
    GuestSpec,
    HostFacts,
    Image,
    PortsTaken,
    Power,
    Progress,
    Usage,
    Volumes,
)


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
        ):
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        self._watchers: list[Callable[[str], None]] = []
        self.boot_seconds = boot_seconds
        self.delay_seconds = 0.0  # of every call
        self.broken = False  # the host does not answer
        self.ignores_acpi = False  # guests do not hear the power button
        self.never_boots = False  # guests start and never answer
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

    async def ensure_disk(self, name: str, base: str, size_bytes: int) -> None:
        with self._call("ensure_disk"):
            await self._delay()
            if base not in self._column("bases", "key"):
                raise Unusable(f"The base image {base} is not on the host.")
            self._db.execute("INSERT OR IGNORE INTO disks VALUES (?, ?, ?)", (name, base, size_bytes))

    async def grow_disk(self, name: str, size_bytes: int) -> None:
        with self._call("grow_disk"):
            await self._delay()
            if name not in self._column("disks", "name"):
                raise Unusable(f"The guest {name} has no disk.")
            self._db.execute("UPDATE disks SET size_bytes = max(size_bytes, ?) WHERE name = ?", (size_bytes, name))

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
        if name not in self._column("disks", "name") or name not in self._column("seeds", "name"):
            raise Unusable(f"The guest {name} lacks its disk or its seed.")
        if not self.low_ports and any(forward.host_port < 1024 for forward in state.spec.forwards):
            raise PortsTaken(f"A port of {state.spec.address} cannot be opened.")
        state.power = Power.RUNNING
        state.forwards = tuple(state.spec.forwards)
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
            for table in ("guests", "disks", "seeds"):
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

    def loses_disk(self, name: str) -> None:
        """Somebody deletes a guest's disk."""
        self._db.execute("DELETE FROM disks WHERE name = ?", (name,))

    def spec(self, name: str) -> GuestSpec:
        """How the guest is defined."""
        return self._known(name).spec

    def disk_bytes(self, name: str) -> int:
        """The size of the guest's disk."""
        size: int = self._db.execute("SELECT size_bytes FROM disks WHERE name = ?", (name,)).fetchone()[0]
        return size

    def seed(self, name: str) -> bytes:
        """The guest's seed, as it lies on the host."""
        content: bytes = self._db.execute("SELECT content FROM seeds WHERE name = ?", (name,)).fetchone()[0]
        return content


def _guest(name: str, state: _State) -> Guest:
    return Guest(name, state.spec.uuid, state.power, state.forwards)
