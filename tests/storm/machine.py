"""A process of vpsd in a storm: an API or a worker, with connections of its own, that can be killed or stopped."""

import asyncio
import contextvars
import math
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from tests.storm.database import StormyDatabase, away
from tests.storm.hosts import Connection
from tests.storm.loop import PROCESS, Process
from tests.storm.requests import Answer, Lost, ask
from vpsd.api.app import make_app
from vpsd.backups.repository import Repository
from vpsd.backups.targets import Directory
from vpsd.core.jumps import ClockJumps
from vpsd.core.sqlite import SqliteDatabase
from vpsd.errors import DatabaseUnavailable
from vpsd.hosts.models import Address
from vpsd.hypervisor.protocol import Hypervisor
from vpsd.images.simulated import SimulatedImages
from vpsd.runtime import Hypervisors, Runtime
from vpsd.worker import clock_jumps
from vpsd.worker.backup_scheduler import BackupScheduler
from vpsd.worker.biller import Biller
from vpsd.worker.event_pruner import EventPruner
from vpsd.worker.host_keeper import HostKeeper
from vpsd.worker.runner import Runner
from vpsd.worker.sum_keeper import SumKeeper

if TYPE_CHECKING:
    from tests.storm.world import World


class Doom(NamedTuple):
    """What happens to a process after so many effects more."""

    left: float
    strike: Callable[[str], None]  # given the name of the effect
    at_commit: bool = True  # whether it may happen while a transaction is open
    at_rest: bool = True  # whether it may happen anywhere but in a call of a job


class _Target(Directory):
    """The backups' folder, each access of which may be the last thing that a process does."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__(machine.world.settings.backup_folder)
        self._machine = machine

    async def put(self, key: str, data: bytes) -> None:
        await self._machine.point("target.put")
        await super().put(key, data)

    async def delete(self, keys: Any) -> None:
        await self._machine.point("target.delete")
        await super().delete(keys)


class Machine(Process):
    """One process."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(name)
        self.world = world
        self.chance: random.Random = world.chance
        self.doom: Doom | None = None
        self.transactions = 0  # that are open
        self._asked: set[asyncio.Future[Answer]] = set()
        self._context = contextvars.copy_context()
        self._context.run(PROCESS.set, self)
        self._sqlite = SqliteDatabase(str(world.path), pause=asyncio.sleep, monotonic=world.loop.time)
        self.database = StormyDatabase(self._sqlite, self)
        self.runtime = Runtime(
            database=self.database,
            clock=world.clock,
            ids=world.ids,
            settings=world.settings,
            hypervisors=Hypervisors(self._connect),
            images=SimulatedImages(),
            repository=Repository(_Target(self), world.instance, None),
            instance=world.instance,
            jumps=ClockJumps(world.clock),
        )
        self._app: Any = None

    def _connect(self, address: Address) -> Hypervisor:
        name = urlsplit(address.uri or "").netloc
        return Connection(self.world.hosts[name], name, self)

    # What it does.

    def begin(self, work: Coroutine[Any, Any, Any], name: str) -> Any:
        """Have the process do something."""
        return self.world.loop.create_task(work, name=f"{self.name} {name}", context=self._context.copy())

    def work(self) -> None:
        """Be a worker, as `vpsd worker` is one."""
        self.begin(self._work(), "start")

    async def _work(self) -> None:
        while True:  # a supervisor starts it again where there is no database
            try:
                await clock_jumps.look_at_start(self.runtime)
                break
            except DatabaseUnavailable:
                await asyncio.sleep(1)
        loops: Any = (
            HostKeeper(self.runtime, self.name, lambda _: None, lambda _: None),
            Runner(self.runtime, self.name),
            Biller(self.runtime),
            EventPruner(self.runtime),
            SumKeeper(self.runtime),
            BackupScheduler(self.runtime),
        )
        for one in loops:
            self.begin(one.run(), type(one).__name__)

    async def ask(self, method: str, path: str, token: str, body: Any = None, key: str | None = None) -> Answer:
        """Send a request; raises `Lost` when the process dies before it has answered."""
        if self._app is None:
            self._app = make_app(self.runtime)
        if self.is_dead:
            raise Lost
        answered = self.world.loop.create_future()
        self._asked.add(answered)

        async def carry_out() -> None:
            answer = await ask(self._app, method, path, token, body, key)
            if not answered.done():
                answered.set_result(answer)

        self.begin(carry_out(), f"{method} {path}")
        try:
            return await asyncio.wait_for(answered, 60)
        except TimeoutError:
            raise Lost from None
        finally:
            self._asked.discard(answered)

    # What happens to it.

    def kill(self) -> None:
        """End it as SIGKILL does: nothing of it runs any more, and what was not committed is undone."""
        self.is_dead = True
        self.left_over = []
        self._sqlite._reader.close()
        self._sqlite._writer.close()
        for answered in sorted(self._asked, key=hash):
            if not answered.done():
                answered.set_exception(Lost())

    def stop(self, seconds: float) -> None:
        """Stop it, as SIGSTOP does, and let it go on."""
        self.is_stopped = True
        self.world.loop.call_later(seconds, self._go_on, context=self.world.context)

    def _go_on(self) -> None:
        if not self.is_dead:
            self.world.tell(self.name, "goes on")
            self.world.loop.let_go_on(self)

    # Where something may happen.

    async def breathe(self) -> None:
        """Let others go on, for no time or a few milliseconds."""
        await asyncio.sleep(0 if self.chance.random() < 0.7 else self.chance.random() * 0.02)

    async def call(self, name: str, *, is_quiet: bool, is_of_job: bool) -> None:
        """A call to a host is on its way."""
        if not is_quiet:
            self.world.tell(self.name, name)
            await self.point(name)
        elif is_of_job:  # it may wait for long, and asks many times
            await self.point(name, 0.2)
        await asyncio.sleep(self.world.latency())

    async def point(self, name: str, weight: float = 1.0) -> None:
        """Between two effects: what was meant for the process may happen here."""
        if self.doom is not None and (self.doom.at_rest or "." in name):
            left = self.doom.left - weight
            if left > 0 or (self.transactions and not self.doom.at_commit):
                self.doom = self.doom._replace(left=left)
            else:
                doom, self.doom = self.doom, None
                doom.strike(name)
        await self.breathe()

    def require_database(self) -> None:
        """Raise `DatabaseUnavailable` while there is none."""
        if self.world.is_database_away:
            raise away()

    def commit_fault(self) -> tuple[bool, bool]:
        """Whether a commit comes to nothing, and whether its end is told."""
        if self.chance.random() >= self.world.commit_faults:
            return False, True
        is_lost = self.chance.random() < 0.5
        self.world.tell(self.name, f"a COMMIT breaks off, {'undone' if is_lost else 'done'}")
        return is_lost, False

    def deliver(self, host: str, callback: Callable[[str], None], guest: str) -> None:
        """An event of a host: on time, late, twice, or never."""
        if self.is_dead or self.world.is_cut(host):
            return
        for _ in range(self.world.copies_of_an_event()):
            delay = self.world.latency() * self.chance.choice((0, 1, 20))
            context = self._context.copy()
            self.world.loop.call_later(math.ceil(delay * 1000) / 1000, callback, guest, context=context)
