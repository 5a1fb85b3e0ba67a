"""Moves of guests between simulated hosts: two `Simulator` objects of one process are two hosts that know each other.

A move ends by itself when its time has come, whoever is there to see it. One whose objects end, fails.
"""

from functools import cached_property

from msgspec.structs import replace

from vpsd.core.clock import Clock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.moving import DiskLayout, MoveProgress, is_like, is_there, share_pool
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.protocol import GuestSpec, Hypervisor, PowerState, Progress
from vpsd.hypervisor.simulator.calls import Calls
from vpsd.hypervisor.simulator.journal import StateEdit
from vpsd.hypervisor.simulator.state import (
    BLOCK_BYTES,
    Disk,
    GuestState,
    HostState,
    PutDisk,
    PutExport,
    PutGuest,
    PutMark,
    PutUser,
    Write,
)


class Departure:
    """A guest on its way from one host to another."""

    def __init__(self, source: "Moves", target: "Moves", spec: GuestSpec, clock: Clock, seconds: float) -> None:
        self._source, self._target, self._spec, self._clock = source, target, spec, clock
        self._seconds = seconds
        self._started_at = clock.monotonic()
        self.is_over = False
        self.failure: str | None = None
        for host in (source, target):
            host.due.append(self.look)

    @property
    def elapsed_seconds(self) -> float:
        """Since it began."""
        return self._clock.monotonic() - self._started_at

    @property
    def fraction(self) -> float:
        """How far it is."""
        return min(self.elapsed_seconds / self._seconds, 1.0) if self._seconds else 1.0

    def look(self) -> None:
        """End it if its time has come, or if one of the two guests has ended."""
        name = self._spec.name
        leaving, arriving = self._source.known(name), self._target.known(name)
        if leaving is None or leaving.power is not PowerState.RUNNING:
            self.end("The guest ended while it was moving.")
        elif arriving is None or not arriving.moving:
            self.end("The guest ended at the target while it was arriving.")
        elif self.elapsed_seconds >= self._seconds:
            self._source.hand_over(self._target, self._spec, leaving, arriving)
            self.end(None)

    def end(self, failure: str | None) -> None:
        """It is over; what has arrived of a guest whose move failed is gone."""
        if not self.is_over:
            self.is_over, self.failure = True, failure
            for host in (self._source, self._target):
                host.due.remove(self.look)
            if failure is not None:
                self._target.forget_arrival(self._spec.name)


class Moves(Calls):
    """The part of the simulator that moves guests; its public attribute `move_seconds` says how long that takes."""

    @cached_property
    def departures(self) -> dict[str, Departure]:
        """The moves from here by guest name, until somebody has asked how they ended."""
        return {}

    def known(self, name: str) -> GuestState | None:
        """A guest as it is, whoever looks."""
        return self._store.current().guests.get(name)

    async def put_mark(self, mark: str, *, present: bool = True) -> None:
        async with self._call("put_mark"):
            with self._change() as transaction:
                transaction.apply(PutMark(mark, present))

    async def disk_layout(self, disk: str) -> DiskLayout | None:
        async with self._call("disk_layout"):
            return self._layout(self._store.current(), disk)

    def _layout(self, state: HostState, disk: str) -> DiskLayout | None:
        found = state.disks.get(disk)
        if found is None:
            return None
        return DiskLayout(found.size_bytes, found.base or None, shared_pool=self.shared_pool)

    async def prepare_disk(self, disk: str, layout: DiskLayout) -> None:
        async with self._call("prepare_disk"):
            with self._change() as transaction:
                self._require_name(transaction.state, guest_of(disk))
                if is_there(layout, self):
                    transaction.state.disk(disk)
                elif guest_of(disk) not in transaction.state.guests:
                    _require_base(transaction.state, layout.base)
                    self.storage.require_space()
                    transaction.apply(PutDisk(disk, None), PutDisk(disk, Disk(layout.base or "", layout.size_bytes)))

    async def start_move(self, spec: GuestSpec, target: Hypervisor, *, max_mb_per_second: int | None = None) -> None:  # noqa: ARG002
        async with self._call("start_move"):
            if not isinstance(target, Moves):
                raise Unusable("A simulated guest can only move to a simulated host.")
            state = self._store.current()
            guest = self._existing(state, spec.name)
            if guest.power is not PowerState.RUNNING:
                raise Unusable("The guest is not running.")
            departure = self.departures.get(spec.name)
            if departure is not None and not departure.is_over:
                return
            target.expect(spec, self._layout(state, guest.spec.disk))
            with self._change() as transaction:
                transaction.delete_checkpoints(spec.name, None)
                transaction.apply(PutExport(spec.name, None))
            self.departures[spec.name] = Departure(self, target, spec, self._clock, self.move_seconds)

    def expect(self, spec: GuestSpec, layout: DiskLayout | None) -> None:
        """Have the guest here, as one that is arriving."""
        if self.broken:
            raise Unavailable("The other simulated host does not answer.")
        with self._change() as transaction:
            state = transaction.state
            self._require_name(state, spec.name)
            present = state.guests.get(spec.name)
            if present is not None and present.power in (PowerState.RUNNING, PowerState.PAUSED) and not present.moving:
                raise Unusable(f"The target already runs the guest {spec.name}.")
            is_same = layout is not None and is_like(layout, self._layout(state, spec.disk))
            if not is_same or spec.name not in state.seeds:
                raise Unusable(f"The target lacks the disk or the seed of {spec.name}.")
            term = self._owner.term
            transaction.apply(PutGuest(spec.name, GuestState(spec, PowerState.PAUSED, term=term, moving=True)))

    def hand_over(self, target: "Moves", spec: GuestSpec, leaving: GuestState, arriving: GuestState) -> None:
        """Have the guest there and not here any more; its old disk stays."""
        with target._change() as transaction:
            if share_pool(self, target):
                transaction.apply(PutUser(spec.disk, None))  # its lock goes over with it
            else:
                _copy_blocks(self._store.current(), leaving.spec.disk, transaction, spec.disk)
            arrived = replace(leaving, spec=spec, term=arriving.term, forwards=tuple(spec.forwards))
            transaction.apply(PutGuest(spec.name, arrived))
        with self._change() as transaction:
            transaction.apply(PutGuest(spec.name, None))

    def forget_arrival(self, name: str) -> None:
        """Have no guest here that was arriving."""
        with self._change() as transaction:
            guest = transaction.state.guests.get(name)
            if guest is not None and guest.moving:
                transaction.apply(PutGuest(name, None))

    async def move_progress(self, name: str) -> MoveProgress | None:
        async with self._call("move_progress"):
            departure = self.departures.get(name)
            if departure is None:
                return None
            if not departure.is_over:
                return MoveProgress(departure.fraction, departure.elapsed_seconds)
            del self.departures[name]
            if departure.failure is not None:
                raise Unavailable(departure.failure)
            return None

    async def abort_move(self, name: str) -> None:
        async with self._call("abort_move"):
            departure = self.departures.get(name)
            if departure is not None and self._find(self._store.current(), name) is not None:
                departure.end("The move was aborted.")

    async def copy_disk(self, disk: str, source: Hypervisor, progress: Progress) -> None:
        async with self._call("copy_disk"):
            if not isinstance(source, Moves):
                raise Unusable("The disk of a simulated guest can only be copied from a simulated host.")
            state = source._store.current()
            guest, found = state.guests.get(guest_of(disk)), state.disk(disk)
            if guest is not None and guest.power in (PowerState.RUNNING, PowerState.PAUSED):
                raise Unusable("The guest is running.")
            if share_pool(self, source):
                self._store.current().disk(disk)
                progress(1.0, "the disk is where it was")
                return
            with self._change() as transaction:
                self._require_name(transaction.state, guest_of(disk))
                if disk not in transaction.state.disks:
                    _require_base(transaction.state, found.base or None)
                    self.storage.require_space()
                    transaction.apply(PutDisk(disk, found))
                    _copy_blocks(state, disk, transaction, disk)
            progress(1.0, "the disk is on the host")


def _require_base(state: HostState, base: str | None) -> None:
    if base is not None and base not in state.bases:
        raise Unusable(f"The base image {base} is not on the host.")


def _copy_blocks(state: HostState, disk: str, transaction: StateEdit, name: str) -> None:
    blocks = sorted(state.blocks.get(disk, {}).items())
    transaction.apply(*(Write(name, number * BLOCK_BYTES, block.content) for number, block in blocks))
