"""How fast one worker process drains a queue of operations, and at what cost, when the host answers at once.

`python -m bench.drain` prints it for both databases: a third creates, a third stops, a third starts. SQLite has its
file on the disk of the temporary folder, and both sync what they commit.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvloop

from bench import http
from tests.postgres import running_postgres
from vpsd.accounts import service as accounts
from vpsd.backups.repository import Repository
from vpsd.backups.targets import Directory
from vpsd.billing import credit
from vpsd.core import db, money
from vpsd.core.clock import SystemClock
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.core.ending import end_all
from vpsd.core.faults import Faults
from vpsd.core.ids import Ids
from vpsd.core.jumps import ClockJumps
from vpsd.hypervisor.simulator import Simulator
from vpsd.images.simulated import SimulatedImages
from vpsd.lifecycle import Command
from vpsd.operations import service as operations
from vpsd.runtime import Hypervisors, Runtime
from vpsd.servers.commands import run_command
from vpsd.servers.creation import NewServer, create
from vpsd.settings import Settings
from vpsd.worker.runner import Runner

SERVERS = 600
SLOTS = 16
_ENOUGH_SECONDS = 600


class DrainFigures(msgspec.Struct, frozen=True):
    """Operations a second, and milliseconds of the worker's CPU for each, by command and for all together."""

    database: str
    command: str
    operations: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU of one operation."""
        return self.cpu_seconds * 1000 / self.operations


def measure(servers: int = SERVERS) -> list[DrainFigures]:
    """Both databases."""
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(_measure("SQLite", f"sqlite:///{folder}/vpsd.sqlite", servers))
    with running_postgres(syncs=True) as url:
        found += uvloop.run(_measure("PostgreSQL", url.format("postgres"), servers))
    return found


async def _measure(name: str, database_url: str, servers: int) -> list[DrainFigures]:
    await http.seed(database_url, 0)
    async with _runtime(database_url) as runtime:
        async with runtime.write(OPERATOR) as ctx:
            account_id = (await accounts.add_account(ctx, "drain")).id
            await credit.add_credit(ctx.in_account(account_id), 10**9 * money.MICROS, "for the measurement")

        made: list[int] = []

        async def add(ctx: Ctx, number: int) -> None:
            new = NewServer(name=f"bench-{number}", plan_id=4, os_id=1, location="us-west", backups_enabled=False)
            made.append((await create(ctx, new, None, Faults())).id)

        def tell(command: Command) -> Callable[[Ctx, int], Awaitable[object]]:
            return lambda ctx, number: run_command(ctx, made[number], command)

        asked = ((Command.CREATE, add), (Command.STOP, tell(Command.STOP)), (Command.START, tell(Command.START)))
        found = []
        for command, ask in asked:
            for begin in range(0, servers, 50):
                async with runtime.write(OPERATOR) as ctx:
                    for number in range(begin, min(begin + 50, servers)):
                        await ask(ctx.in_account(account_id), number)
            found.append(await _drain(runtime, name, command, servers))
    together = (sum(getattr(one, part) for one in found) for part in ("operations", "seconds", "cpu_seconds"))
    return [*found, DrainFigures(name, "all", *together)]


async def _drain(runtime: Runtime, name: str, command: Command, servers: int) -> DrainFigures:
    began, spent = time.perf_counter(), time.process_time()
    worker = asyncio.create_task(Runner(runtime, "worker").run())
    try:
        while True:
            await asyncio.sleep(0.05)
            async with runtime.read() as ctx:
                if not await operations.busy_servers(ctx):
                    break
            if time.perf_counter() - began > _ENOUGH_SECONDS:
                raise RuntimeError(f"the queue is not empty after {_ENOUGH_SECONDS} s")
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
    finally:
        await end_all({worker})
    return DrainFigures(name, command, servers, seconds, spent)


@asynccontextmanager
async def _runtime(database_url: str) -> AsyncIterator[Runtime]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), hypervisor="simulator", workers=SLOTS)
        clock, ids = SystemClock(), Ids()
        database = await db.connect(database_url)
        transactions = Transactions(database=database, clock=clock, ids=ids, settings=settings)
        async with transactions.write() as ctx:
            instance = await accounts.instance(ctx)
        simulator = Simulator(clock=clock, boot_seconds=0)
        try:
            yield Runtime(
                database=database,
                clock=clock,
                ids=ids,
                settings=settings,
                hypervisors=Hypervisors(lambda _: simulator),
                images=SimulatedImages(),
                repository=Repository(Directory(settings.backup_folder), instance, None),
                instance=instance,
                jumps=ClockJumps(clock),
            )
        finally:
            await database.close()


def main() -> None:
    """Measure and print."""
    print(f"{SLOTS} slots, {os.cpu_count()} cores")
    for one in measure():
        print(f"{one.database:10} {one.command:6} {one.per_second:6.0f} a second, {one.cpu_ms:6.2f} ms of CPU each")


if __name__ == "__main__":
    main()
