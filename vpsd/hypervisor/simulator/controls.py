"""What tests and demonstrations do to a simulated host behind vpsd's back, and what they look at there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from vpsd.hypervisor.protocol import GuestSpec, PowerState
from vpsd.hypervisor.simulator.journal import JournalStore, MemoryStore, StateEdit
from vpsd.hypervisor.simulator.pools import PooledStore
from vpsd.hypervisor.simulator.state import PutDisk, PutGuest, Write
from vpsd.hypervisor.simulator.storage import Storage


class Controls:
    """The part of the simulator that no hypervisor has."""

    def __init__(self, store: JournalStore | MemoryStore | PooledStore, storage: Storage) -> None:
        self._store = store
        self._watchers: list[Callable[[str], None]] = []
        self._reboot_watchers: list[Callable[[str], None]] = []
        self._missed_watchers: list[Callable[[], None]] = []
        self.tells = True  # what happens; else its events are lost
        self.storage = storage

    @contextmanager
    def _change(self) -> Iterator[StateEdit]:
        with self._store.change() as transaction:
            yield transaction
        for change in transaction.changes:
            if isinstance(change, PutGuest) and self.tells:
                for changed in self._watchers:
                    changed(change.name)

    def happens(self, name: str, power: PowerState) -> None:
        """Something happens to a guest that vpsd did not ask for."""
        with self._change() as transaction:
            transaction.apply(PutGuest(name, replace(transaction.state.guest(name), power=power, paused_by=None)))

    def meets_its_storage(self, name: str) -> None:
        """The guest writes, and is paused if its storage fails it."""
        with self._change() as transaction:
            transaction.apply(PutGuest(name, self.storage.written_by(transaction.state.guest(name))))

    def is_frozen(self, name: str) -> bool:
        """Whether the guest cannot write because its file systems are frozen."""
        return self._store.current().guest(name).frozen

    def reboots(self, name: str) -> None:
        """The guest reboots by itself."""
        self._store.current().guest(name)
        for rebooted in self._reboot_watchers:
            rebooted(name)

    def is_connected_to_anew(self) -> None:
        """The connection was lost, and with it perhaps events."""
        for missed in self._missed_watchers:
            missed()

    def vanishes(self, name: str) -> None:
        """Somebody undefines a guest; its volumes stay."""
        with self._change() as transaction:
            transaction.apply(PutGuest(name, None))

    def loses_disk(self, disk: str) -> None:
        """Somebody deletes a guest's disk."""
        with self._change() as transaction:
            transaction.apply(PutDisk(disk, None))

    def writes(self, disk: str, offset: int, content: bytes) -> None:
        """The guest writes to its disk."""
        with self._change() as transaction:
            transaction.apply(Write(disk, offset, content))

    def content(self, disk: str, offset: int, length: int) -> bytes:
        """What the guest reads from its disk."""
        return self._store.current().read(disk, offset, length)

    def checkpoints(self, name: str) -> set[str]:
        """The checkpoints of the guest's disk."""
        return set(self._store.current().checkpoints.get(name, {}))

    def spec(self, name: str) -> GuestSpec:
        """How the guest is defined."""
        return self._store.current().guest(name).spec

    def disk_bytes(self, disk: str) -> int:
        """The size of a disk."""
        return self._store.current().disk(disk).size_bytes

    def seed(self, name: str) -> bytes:
        """The guest's seed on the host."""
        return self._store.current().seeds[name]
