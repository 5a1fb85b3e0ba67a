"""What a driver can do to move a guest from one host to another, which both have to be of the same driver.

A move in the order of its calls, each of which may be repeated; `source` and `target` are held by the same owner:

    live: target.ensure_base, target.prepare_disk, target.write_seed, source.start_move, source.move_progress until
          None, `runs_at` on what both say of the guest, source.remove (or, if it stayed, target.remove)
    cold: target.ensure_base, target.copy_disk, target.write_seed, target.define, source.remove

Between two hosts of one pool (`share_pool`) the same calls copy nothing. But what is left behind is never removed there
(`remove` deletes files, and they are the other's): it is undefined. `leave_behind` does whichever is right.

A live move goes on when its caller dies. Whoever takes over asks `move_progress` first, and then both hosts.
What a guest's disk has recorded for incremental exports does not move: the next export holds everything.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from vpsd.hypervisor.protocol import Guest, GuestSpec, Hypervisor, Progress


class DiskLayout(msgspec.Struct, frozen=True):
    """What a disk is made of."""

    size_bytes: int
    base: str | None  # key of the image whose base volume backs it; None: it stands alone, as a restored one does
    used_bytes: int = 0  # of the host's storage
    shared_pool: str | None = None  # where it lies, if that is a pool that hosts share


class MoveProgress(msgspec.Struct, frozen=True):
    """How far a live move is that is on its way."""

    fraction: float  # of what is known to be copied by now; the guest goes on writing
    seconds: float  # since it began


class Side(StrEnum):
    """One end of a move."""

    SOURCE = "source"
    TARGET = "target"


def runs_at(source: "Guest | None", target: "Guest | None") -> Side | None:
    """On which of the two hosts a guest is, as both say; None if neither knows it.

    One that runs wins. Otherwise it is the target's as soon as that knows it as one that has arrived, or that was
    defined on a disk that is whole: what the source has then is what was left behind.
    """
    if target is not None and not target.moving and (source is None or not source.is_running):
        return Side.TARGET
    return None if source is None else Side.SOURCE


def is_like(layout: DiskLayout, other: DiskLayout | None) -> bool:
    """Whether what is in the one disk fits the other."""
    return other is not None and (layout.size_bytes, layout.base) == (other.size_bytes, other.base)


class Pooled(Protocol):
    """A host, as far as it says where its disks lie."""

    @property
    def shared_pool(self) -> str | None:
        """What the pool is called that it shares with other hosts; None: its own."""


def is_there(layout: DiskLayout, host: Pooled) -> bool:
    """Whether a disk lies in the pool of a host because another one has it there."""
    return layout.shared_pool is not None and layout.shared_pool == host.shared_pool


def share_pool(one: Pooled, other: Pooled) -> bool:
    """Whether two hosts see the same files."""
    return one.shared_pool is not None and one.shared_pool == other.shared_pool


async def leave_behind(at: "Hypervisor", other: "Hypervisor", name: str, disks: Collection[str] | None) -> None:
    """Have nothing of a guest at one host that is at the other by now; of what both see, everything stays."""
    if share_pool(at, other):
        await at.undefine(name)
    else:
        await at.remove(name, disks)


class SharesPool(Protocol):
    """The part of a hypervisor whose pool other hosts may see."""

    @property
    def shared_pool(self) -> str | None:
        """What the pool is called that it shares with other hosts: what lies there is theirs as well. None: its own."""

    async def put_mark(self, mark: str, *, present: bool = True) -> None:
        """Have an empty volume in the pool, named after eight hex digits, or not: another host of the pool sees it."""


class Movable(Protocol):
    """The part of a hypervisor that moves guests."""

    async def disk_layout(self, disk: str) -> DiskLayout | None:
        """What a disk is made of; None if there is none that is complete."""

    async def prepare_disk(self, disk: str, layout: DiskLayout) -> None:
        """At the target: have an empty disk like that for a guest to arrive in, instead of what an earlier try left.

        One in a pool that the target shares is the guest's own: it has to be seen there, and stays as it is. Changes
        nothing as soon as the host knows a guest of that name, which may be the one that has arrived.
        """

    async def start_move(
        self, spec: "GuestSpec", target: "Hypervisor", *, max_mb_per_second: int | None = None
    ) -> None:
        """At the source: start moving the running guest to another host, to be defined there by `spec`.

        Returns once the move is on its way or over; one that is on its way already is left alone. Ends an export, and
        deletes the checkpoints. Raises `Unusable` where it cannot move live: it is not running, the target lacks its
        disk or its seed, or the two hosts are too different.
        """

    async def move_progress(self, name: str) -> MoveProgress | None:
        """At the source: how far the guest's move is; None if none is on its way.

        Raises `Unavailable`, once, if a move failed that this process has started.
        """

    async def abort_move(self, name: str) -> None:
        """At the source: end the guest's move, if one is on its way. Look afterwards where it is: it may be over."""

    async def copy_disk(self, disk: str, source: "Hypervisor", progress: "Progress") -> None:
        """At the target: copy the disk of a guest that is off from another host; a complete one is left as it is.

        Its base has to be here. Raises `Unusable` if the guest is running, and copies nothing then. In a pool that
        both share nothing is copied: the disk has to be seen here.
        """
