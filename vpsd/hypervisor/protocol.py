"""What vpsd asks of a hypervisor, and the values that cross that line.

Two drivers keep it: `vpsd.hypervisor.libvirt` (real guests) and `vpsd.hypervisor.simulator` (the same rules, no
guests). One suite of contract tests runs on both.

Rules for every driver:
- Every call may be repeated. Asking for what already holds is a success and changes nothing.
- A call returns when its effect is on the host, and raises `Unavailable` (worth another try) or `Unusable` (final).
- Every call has a time limit of the driver's own.
- Names are given by the caller and belong to one vpsd (`guest_name`); a driver never touches what others named.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from vpsd.errors import Unavailable


class PortsTaken(Unavailable):
    """A forwarded port of the guest cannot be opened: privileged for the host's QEMU, or in use."""


class Power(StrEnum):
    """What the host says of a guest."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"  # it powered itself off, or somebody pulled its plug on purpose
    CRASHED = "crashed"  # its QEMU died, or the host went down under it: nobody asked for that


class Forward(msgspec.Struct, frozen=True):
    """A TCP port of the server's address that leads to a port of the guest."""

    host_port: int
    guest_port: int


class Image(msgspec.Struct, frozen=True):
    """Files of an operating system on the machine where vpsd runs, ready to be sent to a host.

    `key` names these very bytes (slug and digest): another build has another key. `kernel` and `initrd` are booted
    directly, with `cmdline`; without a kernel the disk boots by itself (BIOS).
    """

    key: str
    disk: Path  # qcow2
    virtual_size_bytes: int
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""


class GuestSpec(msgspec.Struct, frozen=True):
    """A guest as it shall be."""

    name: str
    disk: str  # which of the guest's disks it runs from (`disk_name`)
    uuid: str
    vcpus: int
    memory_mb: int
    base: str  # key of the image whose base volume the disk stands on
    direct_kernel: bool  # the base brings a kernel; else the disk boots by itself
    cmdline: str
    mac: str
    address: str  # of the host, where the forwarded ports listen
    forwards: Sequence[Forward]


class Guest(msgspec.Struct, frozen=True):
    """A guest as the host knows it."""

    name: str
    uuid: str
    power: Power
    forwards: Sequence[Forward] = ()


class Volumes(msgspec.Struct, frozen=True):
    """What lies in the pool of this vpsd."""

    disks: frozenset[str]  # disk names
    seeds: frozenset[str]  # guest names
    bases: frozenset[str]  # image keys
    strangers: frozenset[str] = frozenset()  # volumes in our pool that carry no name of ours
    unfinished: frozenset[str] = frozenset()  # image keys of bases whose upload was cut off; delete_base takes them
    copies: frozenset[str] = frozenset()  # names of guests beside whose disk a copy of it lies


class Copying(msgspec.Struct, frozen=True):
    """How a copy of a disk began."""

    since: str | None  # the mark of the copy that it holds the changes since; None: it holds everything
    frozen: bool  # the file systems were at rest at that moment: by the guest's agent, or because the guest is off
    frozen_ms: int  # for how long the guest could not write
    off: bool  # the guest was off; it has been started without running, and has to be powered off when the copy is done


class Run(msgspec.Struct, frozen=True):
    """A stretch of a disk that a copy knows, in bytes from its start."""

    offset: int
    length: int
    zero: bool = False  # there is nothing but zeros


class Copied(msgspec.Struct, frozen=True):
    """What a finished copy holds: runs in order. What is in no run is as in the copy before; zeros if it is whole."""

    size_bytes: int  # of the disk
    runs: tuple[Run, ...]


class Usage(msgspec.Struct, frozen=True):
    """Measured figures of a running guest; None where the host or the guest's agent does not tell."""

    cpu_seconds: float | None = None  # since the guest was powered on, all vCPUs together
    memory_used_mb: int | None = None
    disk_used_bytes: int | None = None  # file systems of the guest, by its agent
    received_bytes: int | None = None  # since the guest booted
    sent_bytes: int | None = None


class HostFacts(msgspec.Struct, frozen=True):
    """What runs the guests, for people: said at the start, by `vpsd doctor` and by /health."""

    driver: str  # libvirt | simulator
    uri: str
    virt_type: str  # kvm | qemu (emulation) | none
    virt_reason: str  # why that one
    version: str
    name: str  # what the host calls itself
    cpus: int
    memory_mb: int
    storage_gb: int | None  # of the pool that the disks lie in, used and free; None while there is none
    low_ports: bool = True  # whether guests can have ports below 1024 of their addresses, as far as is known


Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and what is being done."""


class Hypervisor(Protocol):
    """One host that runs guests. Guest names are `vpsd-<instance>-<server id>`."""

    async def facts(self) -> HostFacts:
        """Say what the host is. Connects when needed."""

    async def guests(self) -> Mapping[str, Guest]:
        """All guests of this vpsd by name, in one round trip."""

    async def guest(self, name: str) -> Guest | None:
        """One guest, or None when the host does not know it."""

    async def volumes(self) -> Volumes:
        """What lies in the pool of this vpsd."""

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        """Have the image's files on the host, whole, as base volume `image.key`; never rewrites one that is there."""

    async def delete_base(self, key: str) -> None:
        """Take a base volume off the host; refuses (`Unusable`) while a disk stands on it."""

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        """Have a disk of that size on top of the base volume; a disk that is there is left as it is."""

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        """Have a disk that stands on nothing, with that content; a disk that is there, whole, is left as it is.

        `chunks` are the numbers of the chunks that are not all zeros, in order, and `content` gives their bytes (the
        last chunk of the disk may be shorter). A disk that was not written to its end counts as none.
        """

    async def delete_disk(self, disk: str) -> None:
        """Take a disk that no guest runs from off the host; a success where there is none."""

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        """Have the guest's disk at least that large, also while it runs; a larger one stays as it is.

        The next copy of a disk that grew holds everything.
        """

    async def copy_disk(self, name: str, mark: str, since: str | None) -> Copying:
        """Begin to copy the guest's disk, as it is at this moment, to beside it; what was copied before is dropped.

        The copy is marked: a later one can hold what has changed since that mark. Where the host cannot tell the
        changes since `since`, it copies everything and says so. A guest that is off is started for it without running.
        """

    async def copy_progress(self, name: str) -> float:
        """How far the copy is; 1.0 when it is whole. Raises `Unavailable` for one that broke off."""

    async def copied(self, name: str) -> Copied:
        """What the whole copy holds; raises `Unusable` where there is none."""

    async def read_copy(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of the disk out of the whole copy; what is in no run reads as zeros."""

    async def drop_copy(self, name: str) -> None:
        """Have no copy of the guest's disk, and none under way; a guest whose file systems are frozen is thawed."""

    async def keep_mark(self, name: str, mark: str | None) -> None:
        """Let go of every mark of the guest's disk but that one."""

    async def write_seed(self, name: str, content: bytes) -> None:
        """Put the guest's cloud-init seed (an ISO 9660 image) on the host instead of the old; also while it runs."""

    async def define(self, spec: GuestSpec) -> None:
        """Have the guest defined as given; a running one keeps its hardware until it is powered on again."""

    async def power_on(self, name: str) -> None:
        """Start the guest; resumes a paused one. Raises `PortsTaken` where a forwarded port cannot be opened."""

    async def request_shutdown(self, name: str) -> None:
        """Press the ACPI power button; returns at once, and is a success for a guest that is off."""

    async def power_off(self, name: str) -> None:
        """Pull the plug; a success for a guest that is off or unknown."""

    async def is_up(self, name: str) -> bool:
        """Whether the guest's SSH or its agent answers now; no waiting beyond a second."""

    async def remove(self, name: str) -> None:
        """Power off, undefine, and delete disks, copy and seed: nothing of that name is left on the host."""

    async def usage(self, name: str) -> Usage:
        """Measured figures of a guest; all None for one that is not running."""

    def watch(self, changed: Callable[[str], None]) -> None:
        """Call `changed(guest name)` from any thread when the host reports a change; a hint, never a promise."""

    async def close(self) -> None:
        """Let go of the host; guests go on running."""


def guest_name(instance: str, server_id: int) -> str:
    """The name on the host of a server of this vpsd: `instance` is the eight hex digits of the database's own id."""
    return f"vpsd-{instance}-{server_id}"


def disk_name(guest: str, writing: int) -> str:
    """The name of a guest's disk: the first one has the guest's own, one that a restore wrote has its number behind."""
    return guest if writing == 0 else f"{guest}.{writing}"
