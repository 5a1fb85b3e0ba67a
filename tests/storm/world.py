"""Everything that a storm happens to: a database, hosts, processes, customers; one seed decides the rest."""

import asyncio
import contextvars
import gc
import logging
import math
import random
import shutil
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.storm.customers import Customer, Operator
from tests.storm.invariants import Findings
from tests.storm.loop import PROCESS, StormLoop, Stuck
from tests.storm.machine import Machine
from tests.storm.weather import Weather
from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.billing import credit
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.core.context import OPERATOR, Actor, Ctx
from vpsd.core.ids import Ids
from vpsd.core.money import MICROS
from vpsd.core.sqlite import SqliteDatabase
from vpsd.hosts import service as hosts
from vpsd.hypervisor.simulator import Simulator
from vpsd.lifecycle import AT_REST
from vpsd.operations import service as operations
from vpsd.servers import queries as servers
from vpsd.settings import Settings

_BEGAN = 1000.0
_LONGEST_CALM_SECONDS = 3 * 3600
_LOOK_SECONDS = 20


class Clock:
    """The time of the machines of a storm, which somebody may set."""

    def __init__(self, loop: StormLoop) -> None:
        self._loop = loop
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return 1_750_000_000_000 + round(self._loop.time() * 1000) + self.ahead_ms

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Size(NamedTuple):
    """How large a storm is."""

    workers: int = 3
    hosts: int = 3
    customers: int = 3
    seconds: float = 120


USUAL = Size()


class Report(NamedTuple):
    """What became of a storm."""

    seed: int
    story: list[str]
    findings: list[str]


class _StoryHandler(logging.Handler):
    """Puts what vpsd logs into the story; an error of vpsd's own is a finding."""

    def __init__(self, world: "World") -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "vpsd.access":  # it says how long a request took, of real time
            return
        process = PROCESS.get()
        text = record.getMessage()
        self._world.tell("-" if process is None else process.name, f"log: {text}")
        if record.levelno >= logging.ERROR and record.exc_info:
            self._world.findings.add(f"an error of vpsd's own: {text}: {record.exc_info[1]!r}")


class World:
    """One storm."""

    def __init__(self, seed: int, folder: Path, template: Path, offered: Catalog, size: Size = USUAL) -> None:
        self.seed = seed
        self.size = size
        self.chance = random.Random(seed)
        self.loop = StormLoop(random.Random(seed + 1_000_000_007))
        self.clock = Clock(self.loop)
        self.clock_set_at = -math.inf  # when, by the loop
        self.ids = Ids(random.Random(seed + 2_000_000_011))
        self.path = folder / "vpsd.sqlite"
        shutil.copy(template, self.path)
        self._offered = offered
        self.settings = Settings(
            data_dir=folder, hypervisor="simulator", rate_limit=0, address_rate_limit=0, login_failures=0
        )
        self.instance = ""
        self.hosts = {f"host-{number}": Simulator(clock=self.clock) for number in range(1, size.hosts + 1)}
        for host in self.hosts.values():
            host.boot_seconds, host.export_seconds = (
                self.chance.choice((0.5, 3.0, 12.0)),
                self.chance.choice((0.0, 6.0)),
            )
            host.move_seconds = self.chance.choice((0.0, 2.0, 15.0))
        self.machines: list[Machine] = []
        self.story: list[str] = []
        self.findings = Findings(self)
        self.context = contextvars.copy_context()  # of nobody's process
        self.customers: list[Customer] = []
        self.operator: Operator
        self.cut: set[str] = set()
        self.is_database_away = False
        self.commit_faults = 0.0  # the share of commits that break off
        self.event_faults = 0.0  # the share of events that are lost, late or told twice
        self.slowness = 1.0
        self._started = 0
        self._reader: sqlite3.Connection | None = None

    def tell(self, who: str, what: str) -> None:
        """Go on with the story."""
        self.story.append(f"{self.loop.time() - _BEGAN:10.3f}  {who:<12} {what}")

    def read(self, statement: str, *values: int) -> int:
        """A number that is committed, read past every process."""
        if self._reader is None:
            self._reader = sqlite3.connect(self.path, isolation_level=None)
        (number,) = self._reader.execute(statement, values).fetchone()
        return int(number)

    # What processes ask of the world around them.

    def is_cut(self, host: str) -> bool:
        """Whether a host cannot be reached."""
        return host in self.cut

    def latency(self) -> float:
        """Seconds that a call takes."""
        return round(self.slowness * self.chance.expovariate(1 / 0.03), 4)

    def copies_of_an_event(self) -> int:
        """How often an event is told."""
        return self.chance.choice((0, 0, 1, 2)) if self.chance.random() < self.event_faults else 1

    def notify(self) -> None:
        """Somebody has committed an operation."""
        for machine in self.alive:
            for wake in machine.database.wakers:
                machine.deliver("", lambda _, wake=wake: wake(), "")  # type: ignore[misc]

    @property
    def alive(self) -> list[Machine]:
        """The processes that are not dead."""
        return [machine for machine in self.machines if not machine.is_dead]

    def start(self, kind: str) -> Machine:
        """Start an API or a worker."""
        self._started += 1
        machine = Machine(self, f"{kind}-{self._started}")
        self.machines.append(machine)
        self.tell(machine.name, "starts")
        if kind == "worker":
            machine.work()
        return machine

    def living(self, kind: str) -> list[Machine]:
        """The processes of that kind."""
        return [machine for machine in self.alive if machine.name.startswith(kind)]

    # A storm.

    def run(self) -> Report:
        """Carry it out; the same seed gives the same story."""
        handler, logger = _StoryHandler(self), logging.getLogger("vpsd")
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        gc.disable()  # a collector that runs a `finally` of the dead when it likes would be chance
        try:
            self.loop.run_until_complete(self._run())
        except Stuck:
            self.findings.add("everybody waits for something that nobody will do")
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.CRITICAL + 1)
            self._bury()
            logger.level, logger.propagate = before
        return Report(self.seed, self.story, self.findings.texts)

    def _bury(self) -> None:
        """Let go of everything, without another word from those that were cut off in the middle."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for machine in self.alive:
            machine.kill()
        tasks = {*self.loop.kept, *asyncio.all_tasks(self.loop)}
        for task in sorted(tasks, key=hash):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with suppress(BaseException):
                task.get_coro().close()
        self.loop.forget()
        self.machines.clear()
        if self._reader is not None:
            self._reader.close()
        gc.enable()
        gc.collect()
        self.loop.close()
        sys.unraisablehook = hook

    async def _run(self) -> None:
        await self._prepare()
        for kind in ("api", "api", *["worker"] * self.size.workers):
            self.start(kind)
        weather = Weather(self)
        self.findings.watch()
        people = [*self.customers, self.operator]
        tasks = [self.loop.create_task(person.live(), name=person.name) for person in people]
        raging = self.loop.create_task(weather.rage())
        await asyncio.sleep(self.size.seconds)
        for person in people:
            person.has_enough = True
        raging.cancel()
        weather.calm()
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()
        await self._settle()
        await self.findings.look()

    async def _prepare(self) -> None:
        database = SqliteDatabase(str(self.path))
        async with database.write() as tx:
            ctx = Ctx(tx, OPERATOR, self.clock, self.ids, self.settings)
            self.instance = await accounts.instance(Ctx(tx, Actor(kind="vpsd"), self.clock, self.ids, self.settings))
            await catalog.apply(ctx, self._offered)
            for name in self.hosts:
                await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}")
            for number in range(1, self.size.customers + 1):
                account = await accounts.add_account(ctx, f"customer-{number}")
                own = ctx.in_account(account.id)
                await credit.add_credit(own, 1000 * MICROS, "to begin with")
                token = (await tokens.add(own, "storm")).value
                self.customers.append(Customer(self, f"customer-{number}", account.id, token))
            account = await accounts.add_account(ctx, "operator")
            token = (await tokens.add(ctx.in_account(account.id), "storm", ["operator:*"])).value
            self.operator = Operator(self, "operator", account.id, token)
        await database.close()

    async def _settle(self) -> None:
        """Let time pass until everything is at rest."""
        self.tell("-", "calm")
        runtime = Machine(self, "observer").runtime
        until = self.loop.time() + _LONGEST_CALM_SECONDS
        quiet, enough = 0, 1 + -(-self.settings.sweep_seconds // _LOOK_SECONDS)  # what nobody was told of is found, too
        while quiet < enough and self.loop.time() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            async with runtime.read() as ctx:
                rests = all(row.status in AT_REST for row in await servers.present(ctx))
                quiet = quiet + 1 if rests and not await operations.busy_servers(ctx) else 0
        self.tell("-", "quiet" if quiet else "no rest in three hours")
