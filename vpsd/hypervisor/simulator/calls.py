"""How the simulated host behaves, and whom it lets change a guest."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from vpsd.core.clock import Clock, SystemClock
from vpsd.errors import Unavailable
from vpsd.hypervisor.owner import ANYBODY, NameTaken, Owner
from vpsd.hypervisor.protocol import GuestRun, GuestStats
from vpsd.hypervisor.simulator.controls import Controls
from vpsd.hypervisor.simulator.journal import JournalStore, MemoryStore
from vpsd.hypervisor.simulator.migration import read_sqlite
from vpsd.hypervisor.simulator.pools import PooledStore, SharedPool
from vpsd.hypervisor.simulator.state import GuestState, HostState
from vpsd.hypervisor.simulator.storage import Storage

GuestRunner = Callable[[str, Sequence[str], bytes], GuestRun | None]
Hook = Callable[[str], Awaitable[None] | None]


class Calls(Controls):
    """What every call to the simulated host goes through; its public attributes control how the host behaves."""

    _owner: Owner = ANYBODY

    def __init__(
        self,
        path: Path | None = None,
        clock: Clock | None = None,
        boot_seconds: float = 0.5,
        storage_reserve_mb: int | None = None,
        pool: SharedPool | None = None,
    ) -> None:
        """`path` is the file with the state, which several processes may share; None: there is none.

        A `.sqlite` file next to it, of an earlier vpsd, is read when the file is created. Raises `Misconfigured` if the
        file cannot be used or is of a later version of vpsd.
        """
        self._clock = clock or SystemClock()
        own = MemoryStore() if path is None else JournalStore(path, lambda: read_sqlite(path.with_suffix(".sqlite")))
        super().__init__(own if pool is None else PooledStore(own, pool), Storage(storage_reserve_mb))
        self.shared_pool = None if pool is None else pool.name
        self.boot_seconds = boot_seconds
        self.delay_seconds = 0.0  # of every call
        self.clock_ahead_seconds = 0.0  # of ours
        self.is_here = True  # the host is this machine, as far as anybody can tell
        self.broken = False  # the host does not answer
        self.ignores_acpi = False  # guests do not react to the power button
        self.never_boots = False  # guests that are powered on get nowhere: they do not even read their disks
        self.ports_answer = True  # a forwarded port of a guest that has booted sends something
        self.has_agent = True  # guests that have booted have an agent, which can freeze their file systems
        self.boot_text = ""  # what each guest writes to its serial console
        self.agent_dies_frozen = False  # an agent that has frozen them is not heard of again
        self.never_writes = False  # guests that are not frozen do not write either
        self.export_seconds = 0.0  # how long the export of a disk takes
        self.low_ports = True  # ports below 1024 can be opened
        self.guest_stats = GuestStats()  # of every guest
        self.guest_run: GuestRunner = lambda _name, _argv, _stdin: None  # what a program in a guest does
        self.unfinished_bases: set[str] = set()  # bases whose upload was interrupted
        self.sent: list[str] = []  # the keys of the images that were sent here
        self.serial_logs: set[str] = set()  # names of guests whose serial console is recorded
        self.keeps_all_checkpoints = False  # keep_checkpoint deletes none
        self.move_seconds = 0.0  # how long a guest takes to move live from here
        self.due: list[Callable[[], None]] = []  # looked at before each call: what happens by itself, as a move ends
        self.probed: set[str] = set()  # guests that `is_up` keeps connections to
        self.calls: list[str] = []  # the names of all calls, in order
        self.before_call: Hook | None = None  # called with the name of each call; what it raises, the call raises
        self.in_call: Hook | None = None  # the same, when nothing that the caller looks at can stop it any more
        self.after_call: Hook | None = None  # the same, once the effect is on the host

    @asynccontextmanager
    async def _call(self, call: str) -> AsyncIterator[None]:
        self.calls.append(call)
        await _run_hook(self.before_call, call)
        if self.broken:
            raise Unavailable("The simulated host does not answer.")
        if self.delay_seconds:
            await self._clock.sleep(self.delay_seconds)
        for look in tuple(self.due):
            look()
        self._owner.check()
        await _run_hook(self.in_call, call)
        yield
        await _run_hook(self.after_call, call)

    def _find(self, state: HostState, name: str) -> GuestState | None:
        """A guest that this owner may change; None if there is none, or it is another's. Raises `TakenOver`."""
        guest = state.guests.get(name)
        if guest is None or self._owner.is_other(guest.spec.uuid):
            return None
        self._owner.check_term(guest.term)
        return guest

    def _require_name(self, state: HostState, name: str) -> None:
        """Raise `NameTaken` where a guest of that name is another's, or `TakenOver`."""
        if self._find(state, name) is None and name in state.guests:
            raise NameTaken

    def _existing(self, state: HostState, name: str) -> GuestState:
        """A guest that has to exist."""
        self._require_name(state, name)
        return state.guest(name)

    def _may_change(self, state: HostState, name: str) -> bool:
        """Whether what is named after a guest may be changed; not where the guest is another's. Raises `TakenOver`."""
        return self._find(state, name) is not None or name not in state.guests


async def _run_hook(hook: Hook | None, call: str) -> None:
    if hook is not None and (waiting := hook(call)) is not None:
        await waiting
