"""The state of the simulated host in memory, and the changes that it is made of.

`Change.apply` is the only way to modify a `HostState`, so replaying the same changes always gives the same state.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import Forward, GuestSpec, PauseReason, PowerState

T = TypeVar("T")

BLOCK_BYTES = 1 << 16


class GuestState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A defined guest."""

    spec: GuestSpec
    power: PowerState = PowerState.CRASHED  # as a real host reports a guest that was never on
    up_at_ms: int | None = None  # when it responds, if nothing happens to it before
    forwards: tuple[Forward, ...] = ()
    frozen: bool = False  # its file systems are
    paused_by: PauseReason | None = None
    term: str | None = None  # of the owner that took it last
    moving: bool = False  # it arrives from another host


class Disk(msgspec.Struct, frozen=True):
    """A disk; its content is kept in blocks."""

    base: str
    size_bytes: int


class Export(msgspec.Struct, frozen=True):
    """An export; its content is kept in blocks."""

    size_bytes: int
    done_at_ms: int


class Block(NamedTuple):
    """A block of a disk that was written to."""

    content: bytes
    written: int  # the number of the write that it is from, counted per disk


class HostState:
    """Everything on the simulated host, by name."""

    def __init__(self) -> None:
        self.guests: dict[str, GuestState] = {}
        self.disks: dict[str, Disk] = {}
        self.blocks: dict[str, dict[int, Block]] = {}  # by disk and number; also of disks that are only half written
        self.seeds: dict[str, bytes] = {}
        self.bases: dict[str, int] = {}  # sizes in bytes
        self.checkpoints: dict[str, dict[str, int]] = {}  # by guest and checkpoint: the last write it includes
        self.exports: dict[str, Export] = {}
        self.export_blocks: dict[str, dict[int, bytes]] = {}
        self.marks: dict[str, bool] = {}
        self.users: dict[str, str] = {}  # by disk: whose QEMU has it open, where hosts share it

    def guest(self, name: str) -> GuestState:
        """A guest that has to exist."""
        return _existing(self.guests, name, f"The host knows no guest {name}.")

    def disk(self, name: str) -> Disk:
        """A disk that has to exist."""
        return _existing(self.disks, name, f"There is no disk {name}.")

    def export(self, name: str) -> Export:
        """An export that has to exist."""
        return _existing(self.exports, name, f"There is no export of the disk of {name} on the host.")

    def has_taken_ports(self, guest: GuestState) -> bool:
        """Whether another guest that is on has a port of the same address."""
        ports = {forward.host_port for forward in guest.spec.forwards}
        return any(
            other.power in (PowerState.RUNNING, PowerState.PAUSED)
            and not ports.isdisjoint(forward.host_port for forward in other.forwards)
            for other in self.guests.values()
            if other.spec.address == guest.spec.address
        )

    def writes(self, disk: str) -> int:
        """How many times a disk was written to."""
        return max((block.written for block in self.blocks.get(disk, {}).values()), default=0)

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """Read bytes of a disk."""
        blocks = self.blocks.get(disk, {})
        return _read(lambda number: blocks[number].content if number in blocks else None, offset, length)

    def read_export(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of an export."""
        return _read(self.export_blocks.get(name, {}).get, offset, length)

    def snapshot(self) -> Iterator["AnyChange"]:
        """The changes that lead from an empty state to this one."""
        yield from (PutBase(key, True, size_bytes) for key, size_bytes in self.bases.items())
        yield from (PutDisk(name, disk) for name, disk in self.disks.items())
        yield from (PutSeed(name, content) for name, content in self.seeds.items())
        yield from (PutGuest(name, guest) for name, guest in self.guests.items())
        yield from (PutExport(name, export) for name, export in self.exports.items())
        for name, checkpoints in self.checkpoints.items():
            yield from (PutCheckpoint(name, checkpoint, written) for checkpoint, written in checkpoints.items())
        for disk, blocks in self.blocks.items():
            yield from (PutBlock(disk, number, block.content, block.written) for number, block in blocks.items())
        for name, contents in self.export_blocks.items():
            yield from (PutExportBlock(name, number, content) for number, content in contents.items())
        yield from (PutMark(name, True) for name in self.marks)
        yield from (PutUser(disk, host) for disk, host in self.users.items())


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A change of the state, as it is stored in the journal."""

    def apply(self, state: HostState) -> None:
        """Make the change."""
        raise NotImplementedError


class PutGuest(Change, frozen=True, array_like=True, tag="guest"):
    """Define or redefine a guest; None undefines it."""

    name: str
    guest: GuestState | None

    def apply(self, state: HostState) -> None:
        _put(state.guests, self.name, self.guest)


class PutDisk(Change, frozen=True, array_like=True, tag="disk"):
    """Create or resize a disk; None deletes it with its content."""

    name: str
    disk: Disk | None

    def apply(self, state: HostState) -> None:
        _put(state.disks, self.name, self.disk)
        if self.disk is None:
            state.blocks.pop(self.name, None)


class PutSeed(Change, frozen=True, array_like=True, tag="seed"):
    """Write a seed; None deletes it."""

    name: str
    content: bytes | None

    def apply(self, state: HostState) -> None:
        _put(state.seeds, self.name, self.content)


class PutBase(Change, frozen=True, array_like=True, tag="base"):
    """Have a base, or not."""

    key: str
    present: bool
    size_bytes: int = 0  # journals of older versions lack it

    def apply(self, state: HostState) -> None:
        _put(state.bases, self.key, self.size_bytes if self.present else None)


class PutCheckpoint(Change, frozen=True, array_like=True, tag="checkpoint"):
    """Create a checkpoint; None deletes it."""

    name: str
    checkpoint: str
    written: int | None

    def apply(self, state: HostState) -> None:
        _put(state.checkpoints.setdefault(self.name, {}), self.checkpoint, self.written)
        if not state.checkpoints[self.name]:
            del state.checkpoints[self.name]


class PutMark(Change, frozen=True, array_like=True, tag="mark"):
    """Have a mark in the pool, or not."""

    name: str
    present: bool

    def apply(self, state: HostState) -> None:
        _put(state.marks, self.name, self.present or None)


class PutUser(Change, frozen=True, array_like=True, tag="user"):
    """A guest of that host has the disk open; None: no guest has."""

    disk: str
    host: str | None

    def apply(self, state: HostState) -> None:
        _put(state.users, self.disk, self.host)


class Write(Change, frozen=True, array_like=True, tag="write"):
    """Write to a disk."""

    disk: str
    offset: int
    content: bytes

    def apply(self, state: HostState) -> None:
        written = state.writes(self.disk) + 1
        blocks = state.blocks.setdefault(self.disk, {})
        offset, content = self.offset, memoryview(self.content)
        while content:
            number, start = divmod(offset, BLOCK_BYTES)
            part = content[: BLOCK_BYTES - start]
            block = bytearray(blocks[number].content if number in blocks else BLOCK_BYTES)
            block[start : start + len(part)] = part
            blocks[number] = Block(bytes(block), written)
            offset, content = offset + len(part), content[len(part) :]


class PutExport(Change, frozen=True, array_like=True, tag="export"):
    """Create an empty export; None deletes it."""

    name: str
    export: Export | None

    def apply(self, state: HostState) -> None:
        _put(state.exports, self.name, self.export)
        state.export_blocks.pop(self.name, None)


class FillExport(Change, frozen=True, array_like=True, tag="fill"):
    """Export the blocks of a disk that are newer than a write."""

    name: str
    disk: str
    after: int

    def apply(self, state: HostState) -> None:
        blocks = state.blocks.get(self.disk, {}).items()
        state.export_blocks[self.name] = {n: block.content for n, block in blocks if block.written > self.after}


class PutBlock(Change, frozen=True, array_like=True, tag="block"):
    """A block of a disk, in a snapshot."""

    disk: str
    number: int
    content: bytes
    written: int

    def apply(self, state: HostState) -> None:
        state.blocks.setdefault(self.disk, {})[self.number] = Block(self.content, self.written)


class PutExportBlock(Change, frozen=True, array_like=True, tag="export-block"):
    """A block of an export, in a snapshot."""

    name: str
    number: int
    content: bytes

    def apply(self, state: HostState) -> None:
        state.export_blocks.setdefault(self.name, {})[self.number] = self.content


AnyChange = (
    PutGuest
    | PutDisk
    | PutSeed
    | PutBase
    | PutCheckpoint
    | Write
    | PutExport
    | FillExport
    | PutBlock
    | PutExportBlock
    | PutMark
    | PutUser
)


def _existing(entries: dict[str, T], name: str, message: str) -> T:
    entry = entries.get(name)
    if entry is None:
        raise Unusable(message)
    return entry


def _put(entries: dict[str, T], key: str, value: T | None) -> None:
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value


def _read(block: Callable[[int], bytes | None], offset: int, length: int) -> bytes:
    first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
    content = b"".join(block(number) or bytes(BLOCK_BYTES) for number in range(first, last + 1))
    start = offset - first * BLOCK_BYTES
    return content[start : start + length]
