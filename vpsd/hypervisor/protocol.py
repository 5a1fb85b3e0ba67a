"""The interface between vpsd and a hypervisor, and the values that cross it.

There are two drivers: `vpsd.hypervisor.libvirt` (real guests) and `vpsd.hypervisor.simulator` (the same rules, no
guests). One suite of contract tests runs against both.

Rules for every driver:
- Calls are idempotent: asking for what already holds succeeds and changes nothing.
- A call returns once its effect is on the host; it raises `Unavailable` (retry) or `Unusable` (permanent).
- The driver limits the time of every call.
- The caller chooses names, which belong to one vpsd (`guest_name`); a driver never touches anything else.
- On behalf of an `Owner` (`held_by`), a guest with another uuid is not there for what asks, stops or removes, and is
  refused with `NameTaken` by what makes; one that was taken since raises `TakenOver`, whatever shall change.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from vpsd.core.units import GIB
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.clock import HasClock
from vpsd.hypervisor.moving import Movable, SharesPool
from vpsd.hypervisor.names import disk_name as disk_name
from vpsd.hypervisor.names import guest_name as guest_name
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.owner import Owner


class PortsTaken(Unavailable):
    """A forwarded port of the guest cannot be opened: it is privileged or in use."""

    public = "The host cannot open a port of the server, which is in use or privileged."


class NoSpace(Unusable):
    """What is asked for would fill the pool: guests have to be able to write."""

    public = "There is not enough space on the host."


class PowerState(StrEnum):
    """The state of a guest, as the host reports it."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"  # it shut itself down, or somebody powered it off on purpose
    CRASHED = "crashed"  # its QEMU died, or the host went down: nobody asked for that


class PauseReason(StrEnum):
    """Why the host itself has paused a guest; what that wanted to write is not lost, and written when it goes on."""

    STORAGE_FULL = "storage_full"
    IO_ERROR = "io_error"

    @property
    def text(self) -> str:
        """What customers and operators are told."""
        return _PAUSED[self]


_PAUSED = {
    PauseReason.STORAGE_FULL: "The host's storage is full; the server is paused until there is room.",
    PauseReason.IO_ERROR: "The host's storage fails; the server is paused until it works again.",
}


class GuestPaused(Unavailable):
    """The host has paused the guest: whatever needs it to run has to wait."""

    waits_for = None  # the pause itself is told, to whoever looks at the server

    def __init__(self, reason: PauseReason) -> None:
        super().__init__(reason.text, reason.text)
        self.reason = reason


def storage_reserve_mb(wanted_mb: int | None, storage_gb: int | None) -> int:
    """The space of a pool that is left for guests that run; by default 5 % of it, at most 10 GB."""
    return min(10240, max(storage_gb or 0, 1) * 1024 // 20) if wanted_mb is None else wanted_mb


class Forward(msgspec.Struct, frozen=True):
    """A TCP port of the server's address that is forwarded to a port of the guest."""

    host_port: int
    guest_port: int


class Image(msgspec.Struct, frozen=True):
    """Files of an operating system on the machine where vpsd runs, ready for upload to a host.

    `key` identifies the content (slug and digest): another build has another key. `kernel` and `initrd` are booted
    directly, with `cmdline`; without a kernel the disk's own boot loader runs, under the `firmware` that it needs.
    """

    key: str
    disk: Path  # qcow2
    virtual_size_bytes: int
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    firmware: str | None = None  # uefi; None: BIOS

    @property
    def disk_gb(self) -> int:
        """The smallest disk that holds it, in GB."""
        return -(-self.virtual_size_bytes // GIB)


class GuestSpec(msgspec.Struct, frozen=True):
    """The desired definition of a guest."""

    name: str
    disk: str  # which of the guest's disks it boots (`disk_name`)
    uuid: str
    vcpus: int
    memory_mb: int
    base: str  # key of the image whose base volume backs the disk
    direct_kernel: bool  # boot the kernel of the base; otherwise the disk's own boot loader
    cmdline: str
    mac: str
    address: str  # on the host, where the forwarded ports listen
    forwards: Sequence[Forward]
    firmware: str | None = None  # uefi; None: BIOS


class Guest(msgspec.Struct, frozen=True):
    """A guest, as the host reports it."""

    name: str
    uuid: str
    power: PowerState
    forwards: Sequence[Forward] = ()
    paused_by: PauseReason | None = None  # of one that is paused: the host did it, and `resume` lets it go on
    moving: bool = False  # it arrives here from another host, or is about to leave: paused for that, and to be left so
    address: str = ""  # whose ports lead to it; none: ""

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self.power is PowerState.RUNNING


class Volumes(msgspec.Struct, frozen=True):
    """What this vpsd has in its storage pool."""

    disks: frozenset[str]  # disk names
    seeds: frozenset[str]  # guest names
    bases: frozenset[str]  # image keys
    unknown: frozenset[str] = frozenset()  # volumes in our pool with names that vpsd does not use
    unfinished: frozenset[str] = (
        frozenset()
    )  # image keys of bases whose upload was interrupted; delete_base removes them
    exports: frozenset[str] = frozenset()  # names of guests whose disk has an export next to it
    logs: frozenset[str] = frozenset()  # names of guests whose serial console is recorded
    marks: frozenset[str] = frozenset()  # what `put_mark` has put there

    @property
    def guests(self) -> frozenset[str]:
        """The names of all guests that something here is named after."""
        return self.seeds | self.exports | self.logs | {guest_of(disk) for disk in self.disks}


class DiskExport(msgspec.Struct, frozen=True):
    """How the export of a disk started."""

    since_checkpoint: str | None  # the export holds the changes since that checkpoint; None: it holds everything
    frozen: bool  # the file systems were quiescent: frozen by the guest's agent, or the guest is off
    frozen_ms: int | None  # for how long the guest could not write; None: its agent did not answer any more
    started_paused: bool  # the guest was off and was started paused; power it off when the export is complete
    freeze_asked: bool = False  # its agent was told to freeze them: `ensure_thawed` sees what became of that
    detail: str = ""  # for people: what was frozen, or why nothing was


class Extent(msgspec.Struct, frozen=True):
    """A contiguous range of a disk, in bytes from its start."""

    offset: int
    length: int
    zero: bool = False  # it contains only zeros


class BlockMap(msgspec.Struct, frozen=True):
    """The extents of a complete export, in order. The rest is as in the export before, or zeros if it is a full one."""

    size_bytes: int  # of the disk
    extents: tuple[Extent, ...]


class GuestStats(msgspec.Struct, frozen=True):
    """Statistics of a running guest; None where neither the host nor the guest's agent provides the value."""

    cpu_seconds: float | None = None  # since the guest was powered on, all vCPUs together
    memory_used_mb: int | None = None
    disk_used_bytes: int | None = None  # file systems of the guest, as reported by its agent
    received_bytes: int | None = None  # since the guest booted
    sent_bytes: int | None = None


class GuestRun(msgspec.Struct, frozen=True):
    """How a program ended that the guest's agent ran."""

    exit_code: int  # -1: it was killed
    stdout: str = ""
    stderr: str = ""


class BootSigns(msgspec.Struct, frozen=True):
    """What can be seen from outside of how far a running guest's boot is, besides its ports."""

    is_up: bool = False  # its agent answers, or a login prompt is on its serial console
    stuck: str | None = None  # why it gets nowhere, as its serial console says: "its kernel panicked"
    is_idle: bool = False  # since it was powered on it has not read its disk, nor written to its serial console
    last_lines: str = ""  # the end of what it wrote to its serial console, printable and short; the guest controls it


class HostFacts(msgspec.Struct, frozen=True):
    """What runs the guests, for people: said at the start, by `vpsd doctor` and by /health."""

    driver: str  # libvirt | simulator
    uri: str
    virt_type: str  # kvm | qemu (emulation) | none
    virt_reason: str  # why
    version: str
    name: str  # the host name
    cpus: int
    memory_mb: int
    storage_gb: int | None  # capacity of the storage pool; None before there is one
    low_ports: bool = True  # guests can use ports below 1024, as far as is known
    storage_free_mb: int | None = None  # in the storage pool; None before there is one


Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and a description of the current step."""


class Hypervisor(Movable, SharesPool, HasClock, Protocol):
    """One host that runs guests. Guest names are `vpsd-<instance>-<server id>`."""

    @property
    def is_here(self) -> bool:
        """Whether the addresses on which forwarded ports listen are this machine's; elsewhere they mean nothing."""

    def held_by(self, owner: Owner) -> "Hypervisor":
        """The same host, as one owner may change it."""

    async def take(self, name: str) -> None:
        """Have the guest, if there is one, be the owner's from now on: what earlier owners ask comes too late."""

    async def facts(self) -> HostFacts:
        """Describe the host. Connects if needed."""

    async def guests(self) -> Mapping[str, Guest]:
        """All guests of this vpsd by name, in one round trip."""

    async def guest(self, name: str) -> Guest | None:
        """One guest, or None if the host does not know it."""

    async def volumes(self) -> Volumes:
        """The contents of the storage pool of this vpsd."""

    async def has_base(self, key: str) -> bool:
        """Whether a base volume is complete."""

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        """Upload the image's files to the host as base volume `image.key`, unless it is complete there already."""

    async def delete_base(self, key: str) -> None:
        """Delete a base volume; raises `Unusable` while a disk uses it."""

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        """Create a disk of that size on top of the base volume; an existing disk is left as it is.

        Raises `Unusable` where the base is larger: a disk cannot be smaller than what it stands on.
        """

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        """Create a disk without a base, with that content; an existing complete disk is left as it is.

        `chunks` are the numbers of the chunks that are not all zeros, in order, and `content` yields their bytes (the
        last chunk of the disk may be shorter). A disk that was written only in part does not count as existing.
        """

    async def delete_disk(self, disk: str) -> None:
        """Delete a disk that no guest uses; succeeds if there is none."""

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        """Grow the guest's disk to at least that size, also while the guest runs; a larger one stays as it is.

        The next export of a disk that grew holds everything.
        """

    async def export_disk(self, name: str, checkpoint: str, since: str | None, *, freeze: bool = True) -> DiskExport:
        """Start exporting the guest's disk, as it is now, to a file next to it; replaces an earlier export.

        Creates a checkpoint of that name: a later export can hold the changes since then. Exports everything, and says
        so, if the host cannot tell what changed since the checkpoint `since`. A guest that is off is started paused.

        With `freeze`, the agent of a running guest freezes its file systems for the moment in which the export begins,
        a few seconds at most; an agent that does not answer is not waited for.
        """

    async def ensure_thawed(self, name: str) -> bool | None:
        """Have the guest's file systems thawed, and have it write to each: whether it does so within seconds.

        None if the guest is not running or its agent does not answer.
        """

    async def export_progress(self, name: str) -> float:
        """Progress from 0 to 1.0 (complete). Raises `Unavailable` if the export failed."""

    async def block_map(self, name: str) -> BlockMap:
        """What the complete export holds; raises `Unusable` if there is no export."""

    async def read_export(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of the disk from the complete export; what is in no extent reads as zeros."""

    async def drop_export(self, name: str) -> None:
        """Abort and delete the export of the guest's disk, if any; thaws the guest's file systems if frozen."""

    async def keep_checkpoint(self, name: str, checkpoint: str | None) -> None:
        """Delete all checkpoints of the guest's disk but that one."""

    async def write_seed(self, name: str, content: bytes) -> None:
        """Put the guest's cloud-init seed (an ISO 9660 image) on the host instead of the old; also while it runs."""

    async def define(self, spec: GuestSpec) -> None:
        """Define or redefine the guest; a running one keeps its hardware until it is powered on again."""

    async def power_on(self, name: str) -> None:
        """Start or resume the guest. Raises `PortsTaken` if a forwarded port cannot be opened."""

    async def resume(self, name: str) -> None:
        """Let a guest go on that the host has paused (`Guest.paused_by`); any other guest is left as it is.

        One whose storage still fails it is paused again at once.
        """

    async def request_shutdown(self, name: str) -> None:
        """Press the ACPI power button without waiting; succeeds if the guest is off."""

    async def power_off(self, name: str) -> None:
        """Power off at once; succeeds if the guest is off or unknown."""

    async def is_up(self, name: str) -> bool:
        """Whether a forwarded port of the guest sends anything, or on a remote host its agent answers.

        Waits for a second at most. A port that only accepts connections says nothing: QEMU accepts all.
        """

    async def end_probe(self, name: str) -> None:
        """Close the connections that `is_up` keeps to a silent guest: they count among its pending logins."""

    async def boot_signs(self, name: str) -> BootSigns:
        """How far the guest's boot is, for one that no port speaks for; nothing if it is not running."""

    async def remove(self, name: str, disks: Collection[str] | None = None) -> None:
        """Power off and undefine the guest, and delete its export, seed, log and these disks; None: all of that name.

        Where the guest is another's, only the disks go that are named.
        """

    async def undefine(self, name: str) -> None:
        """Power off and undefine the guest, and delete no file: in a pool that hosts share it has them elsewhere."""

    async def stats(self, name: str) -> GuestStats:
        """Statistics of a guest; all None if it is not running."""

    async def run_in_guest(
        self, name: str, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 10
    ) -> GuestRun | None:
        """Run a program through the guest's agent, with an absolute path; nothing that it says is to be believed.

        None where the guest is not running, its agent does not answer or may not run programs, or the program has not
        ended in time.
        """

    def watch(
        self,
        changed: Callable[[str], None],
        rebooted: Callable[[str], None] | None = None,
        missed: Callable[[], None] | None = None,
    ) -> None:
        """Call `changed(guest name)` from any thread when the host reports a change; events may be missed.

        `rebooted` is called in the same way when a guest was reset without being powered off: nothing here does that.
        `missed` is called where it is known that events may have been: the host was connected to anew.
        """

    async def close(self) -> None:
        """Disconnect from the host; guests keep running."""
