"""A simulated host whose pool is one that others share: its guests are its own, and all files are everybody's.

As QEMU does, a guest that runs locks its disk: no other host starts one on it meanwhile.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from vpsd.errors import Unavailable
from vpsd.hypervisor.protocol import PowerState
from vpsd.hypervisor.simulator.journal import JournalStore, MemoryStore, StateEdit
from vpsd.hypervisor.simulator.state import AnyChange, GuestState, HostState, PutCheckpoint, PutGuest, PutUser

Store = JournalStore | MemoryStore


class SharedPool(msgspec.Struct, frozen=True):
    """What a host shares with others."""

    name: str
    store: Store
    host: str  # what this one is called among them


_OWN = ("guests", "checkpoints")
_SHARED = ("disks", "blocks", "seeds", "bases", "exports", "export_blocks", "marks", "users")


def shared_folder(data: Path, host: str, name: str | None, folder: str | None) -> SharedPool | None:
    """A pool whose files are kept beside those of the hosts, a folder each; None where the host shares none."""
    if name is None:
        return None
    digest = hashlib.sha256((folder or name).encode()).hexdigest()[:12]
    return SharedPool(name, JournalStore(data / f"simulator-pool-{digest}.journal"), host)


class PooledStore:
    """A host's own state, and that of the pool, as one."""

    def __init__(self, own: Store, pool: SharedPool) -> None:
        self._own, self._pool, self._host = own, pool.store, pool.host

    def current(self) -> HostState:
        """The state; not to be modified."""
        return _joined(self._own.current(), self._pool.current())

    @contextmanager
    def change(self) -> Iterator[StateEdit]:
        """Read and modify the state."""
        with self._own.change() as own, self._pool.change() as pool:
            yield _PooledEdit(own, pool, self._host)

    def close(self) -> None:
        """Close the files of both."""
        self._own.close()
        self._pool.close()


class _PooledEdit(StateEdit):
    def __init__(self, own: StateEdit, pool: StateEdit, host: str) -> None:
        super().__init__(_joined(own.state, pool.state))
        self._own, self._pool, self._host = own, pool, host

    def apply(self, *changes: AnyChange) -> None:
        """Make changes; raises `Unavailable` where a guest would run on a disk that another host's guest has open."""
        for change in changes:
            if isinstance(change, PutGuest):
                self._lock(self.state.guests.get(change.name), change.guest)
            (self._own if isinstance(change, PutGuest | PutCheckpoint) else self._pool).apply(change)
            self.changes.append(change)

    def _lock(self, before: GuestState | None, after: GuestState | None) -> None:
        old, new = _opened(before), _opened(after)
        if new is not None and self.state.users.get(new) not in (None, self._host):
            raise Unavailable(f"The disk {new} is locked: a guest on another host has it open.")
        if old != new and old is not None and self.state.users.get(old) == self._host:
            self._pool.apply(PutUser(old, None))
        if new is not None and self.state.users.get(new) is None:
            self._pool.apply(PutUser(new, self._host))


def _opened(guest: GuestState | None) -> str | None:
    """The disk that a guest has open; one that is arriving opens it when its other half has let go."""
    runs = guest is not None and guest.power in (PowerState.RUNNING, PowerState.PAUSED) and not guest.moving
    return guest.spec.disk if guest is not None and runs else None


def _joined(own: HostState, pool: HostState) -> HostState:
    state = HostState()
    for names, part in ((_OWN, own), (_SHARED, pool)):
        for name in names:
            setattr(state, name, getattr(part, name))
    return state
