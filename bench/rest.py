"""What it costs to look after many hosts on which nothing happens: CPU of all workers together, without figures.

`python -m bench.rest [--hosts N] [--servers N] [--workers N] [--seconds N] [--postgres] [--profile]` fills a database,
has real workers look after simulated hosts in this process, and measures once they have seen everything. Figures are
what the sampler reads of each guest; it is left out.
"""

import argparse
import asyncio
import cProfile
import pstats
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, text, update

from bench import http
from tests.postgres import running_postgres
from vpsd.accounts import service as accounts
from vpsd.backups.repository import Repository
from vpsd.backups.targets import Directory
from vpsd.billing import credit
from vpsd.billing.models import rentals
from vpsd.core import db, money
from vpsd.core.clock import SystemClock
from vpsd.core.context import OPERATOR, Transactions
from vpsd.core.db import Statement
from vpsd.core.ending import end_all
from vpsd.core.ids import Ids
from vpsd.core.jumps import ClockJumps
from vpsd.core.units import HOUR_MS
from vpsd.hosts.models import Address, HostHealth, hosts
from vpsd.hypervisor.protocol import GuestSpec, PowerState, guest_name
from vpsd.hypervisor.simulator import Simulator
from vpsd.hypervisor.simulator.state import GuestState
from vpsd.images.simulated import SimulatedImages
from vpsd.metrics.models import traffic
from vpsd.operations.models import operations
from vpsd.runtime import Hypervisors, Runtime
from vpsd.servers.models import servers
from vpsd.settings import Settings
from vpsd.worker.backup_scheduler import BackupScheduler
from vpsd.worker.biller import Biller
from vpsd.worker.event_pruner import EventPruner
from vpsd.worker.host_keeper import HostKeeper, Loop
from vpsd.worker.runner import Runner
from vpsd.worker.sampler import Sampler

AIM_CORES = 0.25
_ACCOUNT_SERVERS = 100
_BATCH = 1000
_HOST = Statement(
    insert(hosts),
    ("id", "name", "driver", "uri", "location", "created_at_ms", "used_servers"),
)
_SERVER = Statement(
    insert(servers),
    (
        *("id", "uuid", "account_id", "name", "hostname", "seed_hostname", "status", "plan_id", "os_id", "location"),
        *("backups_enabled", "ip_address", "created_at_ms", "updated_at_ms", "provisioned_at_ms", "host_id"),
        *("next_backup_at_ms", "base", "disk", "user_data_status"),
    ),
)
_RENTAL = Statement(
    insert(rentals),
    (
        *("server_id", "account_id", "plan_id", "price_monthly_micros", "bandwidth_gb", "from_ms", "confirmed_at_ms"),
        "charged_until_ms",
    ),
)
_TRAFFIC = Statement(insert(traffic), ("server_id", "month", "received_bytes", "sent_bytes"))
_OPERATION = Statement(
    insert(operations),
    (
        *("uuid", "server_id", "account_id", "command", "status", "progress", "attempts", "fence", "run_at_ms"),
        *("created_at_ms", "started_at_ms", "finished_at_ms"),
    ),
)
_UNSEEN = Statement(select(func.count()).select_from(hosts).where(hosts.c.health != HostHealth.OK), into=int)
_CHARGED = Statement(update(rentals), ("charged_until_ms",))


class RestFigures(msgspec.Struct, frozen=True):
    """Cores that all workers together take while nothing happens, and that seeing everything took at first."""

    database: str
    hosts: int
    servers: int
    workers: int
    start_cpu_seconds: float
    cpu_seconds: float
    seconds: float
    memory_mb: float

    @property
    def cores(self) -> float:
        """Seconds of CPU for each second."""
        return self.cpu_seconds / self.seconds


class _KeeperWithoutFigures(HostKeeper):
    def _loops(self, *loops: Loop) -> list[Loop]:
        return [loop for loop in loops if not isinstance(loop, Sampler)]


class _Cloud:
    """Hosts, and what is on them."""

    def __init__(self, number_of_hosts: int, number_of_servers: int, now_ms: int) -> None:
        self.now_ms = now_ms
        self.host_ids = range(1, number_of_hosts + 1)
        self.server_ids = range(1, number_of_servers + 1)
        self.hosts = {f"host-{number}": Simulator(boot_seconds=0) for number in self.host_ids}

    def connect(self, address: Address) -> Simulator:
        assert address.uri is not None
        return self.hosts[address.uri.removeprefix("simulator://")]

    def run_guests(self, instance: str) -> None:
        """Have every server's guest run on its host."""
        for server_id in self.server_ids:
            name = guest_name(instance, server_id)
            spec = GuestSpec(name, name, _uuid(server_id), 1, 1024, "tiny", True, "", "52:54:00:00:00:00", "", ())
            state = self.hosts[f"host-{self._host_of(server_id)}"]._store.current()
            state.guests[name] = GuestState(spec, PowerState.RUNNING, 0)

    def _host_of(self, server_id: int) -> int:
        return self.host_ids[server_id % len(self.host_ids)]

    async def fill(self, transactions: Transactions) -> None:
        """Put the rows of all that into a database."""
        hour_ms, old_ms = self.now_ms // HOUR_MS * HOUR_MS, self.now_ms - 48 * HOUR_MS
        owners = []
        for number in range(-(-len(self.server_ids) // _ACCOUNT_SERVERS)):
            async with transactions.write(OPERATOR) as ctx:
                account_id = (await accounts.add_account(ctx, f"customer-{number}")).id
                await credit.add_credit(ctx.in_account(account_id), 10**9 * money.MICROS, "for the measurement")
                owners.append(account_id)
        used = len(self.server_ids) // len(self.host_ids)
        month = time.strftime("%Y-%m", time.gmtime(self.now_ms / 1000))
        await _insert(
            transactions,
            _HOST,
            (
                {
                    "id": number,
                    "name": f"host-{number}",
                    "driver": "simulator",
                    "created_at_ms": old_ms,
                    "uri": f"simulator://host-{number}",
                    "location": "us-west",
                    "used_servers": used,
                }
                for number in self.host_ids
            ),
        )
        whose = {server_id: owners[(server_id - 1) // _ACCOUNT_SERVERS] for server_id in self.server_ids}
        await _insert(transactions, _SERVER, (self._row(one, whose[one], old_ms) for one in self.server_ids))
        await _insert(
            transactions,
            _RENTAL,
            (
                {
                    "server_id": one,
                    "account_id": whose[one],
                    "plan_id": 4,
                    "price_monthly_micros": 2_000_000,
                    "bandwidth_gb": 256,
                    "from_ms": old_ms,
                    "confirmed_at_ms": old_ms,
                    "charged_until_ms": hour_ms,
                }
                for one in self.server_ids
            ),
        )
        counters = {"month": month, "received_bytes": 10**9, "sent_bytes": 10**9}
        await _insert(transactions, _TRAFFIC, ({"server_id": one, **counters} for one in self.server_ids))
        times = dict.fromkeys(("run_at_ms", "created_at_ms", "started_at_ms", "finished_at_ms"), old_ms)
        done = {"command": "create", "status": "succeeded", "progress": 1.0, "attempts": 1, "fence": 1, **times}
        await _insert(
            transactions,
            _OPERATION,
            ({"uuid": _uuid(one), "server_id": one, "account_id": whose[one], **done} for one in self.server_ids),
        )
        async with transactions.write() as ctx:
            await ctx.tx.all(Statement(text("ANALYZE")))

    def _row(self, server_id: int, account_id: int, old_ms: int) -> dict[str, Any]:
        name = f"server-{server_id}.example.com"
        return {
            "id": server_id,
            "uuid": _uuid(server_id),
            "account_id": account_id,
            "name": name,
            "hostname": name,
            "seed_hostname": name,
            "status": "active",
            "plan_id": 4,
            "os_id": 1,
            "location": "us-west",
            "backups_enabled": True,
            "ip_address": f"10.{server_id >> 16}.{server_id >> 8 & 255}.{server_id & 255}",
            "created_at_ms": old_ms,
            "updated_at_ms": old_ms,
            "provisioned_at_ms": old_ms,
            "host_id": self._host_of(server_id),
            "next_backup_at_ms": self.now_ms + 6 * HOUR_MS,
            "base": "tiny",
            "disk": server_id,
            "user_data_status": None,
        }


def _uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


async def _insert(transactions: Transactions, statement: Statement[Any], rows: Iterator[dict[str, Any]]) -> None:
    while batch := list(islice(rows, _BATCH)):
        async with transactions.write() as ctx:
            await ctx.tx.many(statement, batch)


def measure(
    name: str, database_url: str, hosts: int, servers: int, workers: int, seconds: float, profile: bool
) -> RestFigures:
    """Fill a database, begin, wait until everything was seen, and measure."""
    return asyncio.run(_measure(name, database_url, hosts, servers, workers, seconds, profile))


async def _measure(
    name: str, database_url: str, hosts: int, servers: int, workers: int, seconds: float, profile: bool
) -> RestFigures:
    await http.seed(database_url, 0)
    cloud, clock = _Cloud(hosts, servers, time.time_ns() // 1_000_000), SystemClock()
    async with AsyncExitStack() as stack:
        settings = Settings(data_dir=Path(stack.enter_context(tempfile.TemporaryDirectory())), hypervisor="simulator")
        (settings.data_dir / "backups").mkdir()

        async def connect() -> Transactions:
            database = await db.connect(database_url)
            stack.push_async_callback(database.close)
            return Transactions(database=database, clock=clock, ids=Ids(), settings=settings)

        transactions = await connect()
        async with transactions.write() as ctx:
            instance = await accounts.instance(ctx)
            await ctx.tx.run(Statement(text("DELETE FROM hosts")))
        await cloud.fill(transactions)
        cloud.run_guests(instance)
        began = time.process_time()
        tasks: list[asyncio.Task[None]] = []
        for number in range(workers):
            own = await connect()
            runtime = Runtime(
                database=own.database,
                clock=clock,
                ids=own.ids,
                settings=settings,
                hypervisors=Hypervisors(cloud.connect),
                images=SimulatedImages(),
                repository=Repository(Directory(settings.data_dir / "backups"), instance, None),
                instance=instance,
                jumps=ClockJumps(clock),
            )
            owner = f"worker-{number}"
            loops = (
                _KeeperWithoutFigures(runtime, owner, lambda _: None, lambda _: None),
                Runner(runtime, owner),
                *(Biller(runtime), EventPruner(runtime), BackupScheduler(runtime)),
            )
            tasks += [asyncio.create_task(loop.run()) for loop in loops]
        try:
            while True:
                await asyncio.sleep(1)
                async with transactions.read() as ctx:
                    if not await ctx.tx.first(_UNSEEN):
                        break
            await asyncio.sleep(15)  # processes share the hosts, and look at what they got
            start, profiler = time.process_time() - began, cProfile.Profile() if profile else None
            if profiler is not None:
                profiler.enable()
            spent, began = time.process_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            spent, took = time.process_time() - spent, time.perf_counter() - began
            if profiler is not None:
                profiler.disable()
                for order in ("tottime", "cumulative"):
                    pstats.Stats(profiler).sort_stats(order).print_stats(35)
        finally:
            await end_all(tasks)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return RestFigures(name, hosts, servers, workers, start, spent, took, memory_mb)


def measure_both(hosts: int = 1000, servers: int = 100_000, workers: int = 3, seconds: float = 60) -> list[RestFigures]:
    """Both databases."""
    size = (hosts, servers, workers, seconds, False)
    with tempfile.TemporaryDirectory() as folder:
        found = [measure("SQLite", f"sqlite:///{folder}/vpsd.sqlite", *size)]
    with running_postgres(syncs=True) as url:
        return [*found, measure("PostgreSQL", url.format("postgres"), *size)]


def main() -> None:
    """Measure one cloud, and print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.rest")
    for option, default in (("hosts", 1000), ("servers", 100_000), ("workers", 3), ("seconds", 60)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    size = (options.hosts, options.servers, options.workers, options.seconds, options.profile)
    if options.postgres:
        with running_postgres(syncs=True) as url:
            figures = measure("PostgreSQL", url.format("postgres"), *size)
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure("SQLite", f"sqlite:///{folder}/vpsd.sqlite", *size)
    print(
        f"{figures.hosts:,} hosts with {figures.servers:,} servers at rest, {figures.workers} workers on "
        f"{figures.database}: {figures.cores:.3f} cores (at most {AIM_CORES}), over {figures.seconds:.0f} s; "
        f"{figures.start_cpu_seconds:.0f} s of CPU to begin; {figures.memory_mb:.0f} MB"
    )


if __name__ == "__main__":
    main()
