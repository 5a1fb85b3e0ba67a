"""A simulated host, which keeps its state like a real one does: in a file that other processes see, or in memory."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from msgspec.structs import replace

from vpsd.core.clock import lies_ahead
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import (
    BlockMap,
    BootSigns,
    DiskExport,
    Extent,
    Guest,
    GuestRun,
    GuestSpec,
    GuestStats,
    HostFacts,
    Image,
    PortsTaken,
    PowerState,
    Progress,
    Volumes,
)
from vpsd.hypervisor.serial_text import last_lines, read_signs
from vpsd.hypervisor.simulator.journal import StateEdit
from vpsd.hypervisor.simulator.moves import Moves
from vpsd.hypervisor.simulator.state import (
    BLOCK_BYTES,
    Disk,
    Export,
    FillExport,
    GuestState,
    PutBase,
    PutCheckpoint,
    PutDisk,
    PutExport,
    PutGuest,
    PutSeed,
    Write,
)
from vpsd.hypervisor.simulator.storage import SIZE_GB

_OFF = "The guest was off: nothing was being written."
_FROZEN = "Frozen for 0 ms: /."
_DEAD = "Frozen: /. The guest's agent did not answer when it was told to thaw them."
_SILENT = "Not frozen: the guest's agent did not answer."


class Simulator(Moves):
    """A simulated host. Its public attributes control how it behaves; delays and faults are those of this object."""

    def held_by(self, owner: Owner) -> "Simulator":
        return _Held(self, owner)

    async def take(self, name: str) -> None:
        async with self._call("take"):
            with self._change() as transaction:
                guest = transaction.state.guests.get(name)
                if guest is not None and not self._owner.is_other(guest.spec.uuid):
                    transaction.apply(PutGuest(name, replace(guest, term=self._owner.term)))

    async def facts(self) -> HostFacts:
        async with self._call("facts"):
            reason = "nothing runs: guests are simulated"
            return HostFacts(
                *("simulator", "simulator:", "none", reason, "1", "simulator", 1024, 1 << 20, SIZE_GB),
                storage_free_mb=self.storage.free_mb,
            )

    async def clock_ms(self) -> int:
        async with self._call("clock_ms"):
            return self._clock.now_ms() + round(self.clock_ahead_seconds * 1000)

    async def guests(self) -> Mapping[str, Guest]:
        async with self._call("guests"):
            return {name: _guest(name, guest) for name, guest in sorted(self._store.current().guests.items())}

    async def guest(self, name: str) -> Guest | None:
        async with self._call("guest"):
            guest = self._store.current().guests.get(name)
            return None if guest is None or self._owner.is_other(guest.spec.uuid) else _guest(name, guest)

    async def volumes(self) -> Volumes:
        async with self._call("volumes"):
            state = self._store.current()
            return Volumes(
                disks=frozenset(state.disks),
                seeds=frozenset(state.seeds),
                bases=frozenset(state.bases),
                unfinished=frozenset(self.unfinished_bases),
                exports=frozenset(state.exports),
                logs=frozenset(self.serial_logs),
                marks=frozenset(state.marks),
            )

    async def has_base(self, key: str) -> bool:
        async with self._call("has_base"):
            return key in self._store.current().bases

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        async with self._call("ensure_base"):
            with self._change() as transaction:
                if image.key not in transaction.state.bases:
                    self.storage.require_space()
                    transaction.apply(PutBase(image.key, True, image.virtual_size_bytes))
                    self.sent.append(image.key)
            progress(1.0, "the image is on the host")

    async def delete_base(self, key: str) -> None:
        async with self._call("delete_base"):
            with self._change() as transaction:
                if any(disk.base == key for disk in transaction.state.disks.values()):
                    raise Unusable(f"The base image {key} is in use by disks.")
                transaction.apply(PutBase(key, False))
            self.unfinished_bases.discard(key)

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        async with self._call("ensure_disk"):
            with self._change() as transaction:
                if base not in transaction.state.bases:
                    raise Unusable(f"The base image {base} is not on the host.")
                if disk not in transaction.state.disks:
                    if size_bytes < (needed := transaction.state.bases[base]):
                        raise Unusable(
                            f"The base image {base} is larger than the disk: {needed} bytes, not {size_bytes}."
                        )
                    self.storage.require_space()
                    transaction.apply(PutDisk(disk, Disk(base, size_bytes)))

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        async with self._call("write_disk"):
            with self._change() as transaction:
                if disk in transaction.state.disks:
                    return
                self.storage.require_space()
                transaction.apply(PutDisk(disk, None))  # what an interrupted attempt has written
            for number in chunks:
                chunk = await anext(content)
                self._owner.check()
                with self._change() as transaction:
                    if disk in transaction.state.disks:
                        return  # another has written it meanwhile: what this one wrote was a file of its own
                    transaction.apply(Write(disk, number * chunk_bytes, chunk))
            self._owner.check()
            with self._change() as transaction:
                if disk not in transaction.state.disks:
                    transaction.apply(PutDisk(disk, Disk("", size_bytes)))

    async def delete_disk(self, disk: str) -> None:
        async with self._call("delete_disk"):
            self.loses_disk(disk)

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        async with self._call("grow_disk"):
            with self._change() as transaction:
                self._require_name(transaction.state, name)
                present = transaction.state.disk(disk)
                if present.size_bytes < size_bytes:
                    transaction.delete_checkpoints(name, None)
                    transaction.apply(PutDisk(disk, replace(present, size_bytes=size_bytes)))

    async def export_disk(self, name: str, checkpoint: str, since: str | None, *, freeze: bool = True) -> DiskExport:
        async with self._call("export_disk"):
            with self._change() as transaction:
                self.storage.require_space()
                state = transaction.state
                guest = self._existing(state, name)
                disk = guest.spec.disk
                size_bytes = state.disk(disk).size_bytes
                off = guest.power is not PowerState.RUNNING and guest.paused_by is None
                asked = freeze and guest.power is PowerState.RUNNING and self.has_agent and not guest.frozen
                if off:
                    transaction.apply(PutGuest(name, replace(guest, power=PowerState.PAUSED)))
                elif asked and self.agent_dies_frozen:
                    transaction.apply(PutGuest(name, replace(guest, frozen=True)))
                checkpoints = state.checkpoints.get(name, {})
                after = None if since in (None, checkpoint) else checkpoints.get(since or "")
                done_at_ms = self._clock.now_ms() + round(self.export_seconds * 1000)
                transaction.apply(
                    PutExport(name, Export(size_bytes, done_at_ms)),
                    FillExport(name, disk, after or 0),
                    PutCheckpoint(name, checkpoint, state.writes(disk)),
                )
            dies = asked and self.agent_dies_frozen
            detail = _OFF if off else (_DEAD if dies else _FROZEN) if asked else _SILENT
            return DiskExport(None if after is None else since, asked or off, None if dies else 0, off, asked, detail)

    async def ensure_thawed(self, name: str) -> bool | None:
        async with self._call("ensure_thawed"):
            with self._change() as transaction:
                guest = self._find(transaction.state, name)
                if guest is None or guest.power is not PowerState.RUNNING or not self._agent_answers(guest):
                    return None
                if guest.frozen:
                    transaction.apply(PutGuest(name, replace(guest, frozen=False)))
                return not self.never_writes

    def _agent_answers(self, guest: GuestState) -> bool:
        return self.has_agent and not (guest.frozen and self.agent_dies_frozen)

    async def export_progress(self, name: str) -> float:
        async with self._call("export_progress"):
            state = self._store.current()
            export, guest = state.exports.get(name), state.guests.get(name)
            if export is None or guest is None or guest.power not in (PowerState.RUNNING, PowerState.PAUSED):
                raise Unavailable(f"The export of the disk of {name} failed.")
            return 0.5 if self._lies_ahead(export.done_at_ms, self.export_seconds) else 1.0

    async def block_map(self, name: str) -> BlockMap:
        async with self._call("block_map"):
            state = self._store.current()
            numbers = sorted(state.export_blocks.get(name, {}))
            extents = tuple(Extent(number * BLOCK_BYTES, BLOCK_BYTES) for number in numbers)
            return BlockMap(state.export(name).size_bytes, extents)

    async def read_export(self, name: str, offset: int, length: int) -> bytes:
        async with self._call("read_export"):
            return self._store.current().read_export(name, offset, length)

    async def drop_export(self, name: str) -> None:
        async with self._call("drop_export"):
            with self._change() as transaction:
                guest = self._find(transaction.state, name)
                if guest is not None and guest.frozen and self._agent_answers(guest):
                    transaction.apply(PutGuest(name, replace(guest, frozen=False)))
                if name in transaction.state.exports and self._may_change(transaction.state, name):
                    transaction.apply(PutExport(name, None))

    async def keep_checkpoint(self, name: str, checkpoint: str | None) -> None:
        async with self._call("keep_checkpoint"):
            if not self.keeps_all_checkpoints:
                with self._change() as transaction:
                    if self._may_change(transaction.state, name):
                        transaction.delete_checkpoints(name, checkpoint)

    async def write_seed(self, name: str, content: bytes) -> None:
        async with self._call("write_seed"):
            with self._change() as transaction:
                self._require_name(transaction.state, name)
                if transaction.state.seeds.get(name) != content:
                    transaction.apply(PutSeed(name, content))

    async def define(self, spec: GuestSpec) -> None:
        async with self._call("define"):
            with self._change() as transaction:
                self._require_name(transaction.state, spec.name)
                guest = transaction.state.guests.get(spec.name) or GuestState(spec)
                new = replace(guest, spec=spec, term=self._owner.term or guest.term)
                transaction.apply(PutGuest(spec.name, new))

    async def power_on(self, name: str) -> None:
        async with self._call("power_on"):
            with self._change() as transaction:
                guest = self._existing(transaction.state, name)
                if guest.power is PowerState.PAUSED:
                    guest = self.storage.written_by(replace(guest, power=PowerState.RUNNING))
                elif guest.power is not PowerState.RUNNING:
                    guest = self._boot(transaction, name, guest)
                transaction.apply(PutGuest(name, guest))

    def _boot(self, transaction: StateEdit, name: str, guest: GuestState) -> GuestState:
        if guest.spec.disk not in transaction.state.disks or name not in transaction.state.seeds:
            raise Unusable(f"The guest {name} lacks its disk or its seed.")
        are_closed = not self.low_ports and any(forward.host_port < 1024 for forward in guest.spec.forwards)
        if are_closed or transaction.state.has_taken_ports(guest):
            raise PortsTaken(f"A port of {guest.spec.address} cannot be opened.")
        now_ms = self._clock.now_ms()
        transaction.apply(Write(guest.spec.disk, 0, f"{name} was started at {now_ms}".encode()))
        up_at_ms = None if self.never_boots else now_ms + round(self.boot_seconds * 1000)
        forwards = tuple(guest.spec.forwards)
        return self.storage.written_by(
            replace(guest, power=PowerState.RUNNING, up_at_ms=up_at_ms, forwards=forwards, frozen=False)
        )

    async def resume(self, name: str) -> None:
        async with self._call("resume"):
            with self._change() as transaction:
                guest = self._find(transaction.state, name)
                if guest is not None and guest.power is PowerState.PAUSED and guest.paused_by is not None:
                    transaction.apply(PutGuest(name, self.storage.written_by(guest)))

    async def request_shutdown(self, name: str) -> None:
        async with self._call("request_shutdown"):
            with self._change() as transaction:
                guest = self._existing(transaction.state, name)
                if not self.ignores_acpi and guest.power is PowerState.RUNNING:
                    transaction.apply(PutGuest(name, replace(guest, power=PowerState.OFF)))

    async def power_off(self, name: str) -> None:
        async with self._call("power_off"):
            with self._change() as transaction:
                guest = self._find(transaction.state, name)
                if guest is not None and guest.power in (PowerState.RUNNING, PowerState.PAUSED):
                    transaction.apply(PutGuest(name, replace(guest, power=PowerState.OFF, paused_by=None)))

    async def is_up(self, name: str) -> bool:
        async with self._call("is_up"):
            answers = self.ports_answer and self._has_booted(name)
            (self.probed.discard if answers else self.probed.add)(name)
            return answers

    async def end_probe(self, name: str) -> None:
        self.probed.discard(name)

    async def boot_signs(self, name: str) -> BootSigns:
        async with self._call("boot_signs"):
            guest = self._store.current().guests.get(name)
            if guest is None or guest.power is not PowerState.RUNNING:
                return BootSigns()
            text = self.boot_text.encode()
            shows_login, stuck = read_signs(text)
            is_up = shows_login or (self.has_agent and self._has_booted(name))
            is_idle = not text and guest.up_at_ms is None
            return BootSigns(is_up, None if is_up else stuck, is_idle, last_lines(text))

    def _has_booted(self, name: str) -> bool:
        guest = self._store.current().guests.get(name)
        if guest is None or guest.power is not PowerState.RUNNING or guest.up_at_ms is None:
            return False
        return not self._lies_ahead(guest.up_at_ms, self.boot_seconds)

    def _lies_ahead(self, at_ms: int, most_seconds: float) -> bool:
        return lies_ahead(at_ms, self._clock.now_ms(), round(most_seconds * 1000))

    async def remove(self, name: str, disks: Collection[str] | None = None) -> None:
        async with self._call("remove"):
            with self._change() as transaction:
                state = transaction.state
                may_change = self._may_change(state, name)
                if disks is None:
                    disks = [disk for disk in state.disks if guest_of(disk) == name]
                partial = {disk for disk in state.blocks.keys() - state.disks.keys() if guest_of(disk) == name}
                transaction.apply(*(PutDisk(disk, None) for disk in sorted({*disks, *partial})))
                if not may_change:
                    return
                transaction.delete_checkpoints(name, None)
                transaction.apply(PutGuest(name, None), PutSeed(name, None), PutExport(name, None))
            self.serial_logs.discard(name)

    async def undefine(self, name: str) -> None:
        async with self._call("undefine"):
            with self._change() as transaction:
                if self._find(transaction.state, name) is not None:
                    transaction.delete_checkpoints(name, None)
                    transaction.apply(PutGuest(name, None))

    async def stats(self, name: str) -> GuestStats:  # noqa: ARG002
        """`guest_stats`, by default all None: there is no guest to measure, and no value is made up."""
        async with self._call("stats"):
            return self.guest_stats

    async def run_in_guest(
        self,
        name: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_seconds: float = 10,  # noqa: ARG002
    ) -> GuestRun | None:
        """What `guest_run` says; by default that the agent may not run programs, for there is no guest to run one."""
        async with self._call("run_in_guest"):
            guest = self._find(self._store.current(), name)
            if guest is None or guest.power is not PowerState.RUNNING or not self._agent_answers(guest):
                return None
            return self.guest_run(name, argv, stdin)

    def watch(
        self,
        changed: Callable[[str], None],
        rebooted: Callable[[str], None] | None = None,
        missed: Callable[[], None] | None = None,
    ) -> None:
        self._watchers.append(changed)
        if rebooted is not None:
            self._reboot_watchers.append(rebooted)
        if missed is not None:
            self._missed_watchers.append(missed)

    async def close(self) -> None:
        self._store.close()


def _guest(name: str, guest: GuestState) -> Guest:
    return Guest(name, guest.spec.uuid, guest.power, guest.forwards, guest.paused_by, guest.moving, guest.spec.address)


class _Held(Simulator):
    """The same host, and not a copy: whatever is set on one of the two holds for both."""

    __slots__ = ("_owner",)

    def __init__(self, host: Simulator, owner: Owner) -> None:
        self.__dict__ = host.__dict__
        self._owner = owner
