"""What a request costs: CPU of the serving process and requests per second, over kept-alive connections.

`python -m bench.http` serves the API alone (SQLite, no worker) with 10,000 servers in it, and prints a line for each
kind of request.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvicorn
from sqlalchemy import insert

from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.api.app import make_app
from vpsd.api.http.server import Server
from vpsd.backups.repository import Repository
from vpsd.backups.targets import Directory
from vpsd.billing import credit, rentals
from vpsd.catalog import service as catalog
from vpsd.core import db, money
from vpsd.core.clock import SystemClock
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.core.ids import Ids
from vpsd.core.jumps import ClockJumps
from vpsd.core.sums import SUMS
from vpsd.hosts import service as hosts
from vpsd.hypervisor.protocol import HostFacts
from vpsd.hypervisor.simulator import Simulator
from vpsd.images.simulated import SimulatedImages
from vpsd.migrations import schema
from vpsd.runtime import Hypervisors, Runtime
from vpsd.servers.models import servers
from vpsd.settings import Settings

SERVERS = 10_000

SERVER_COLUMNS = (
    *("uuid", "account_id", "name", "hostname", "status", "plan_id", "os_id", "location", "backups_enabled"),
    *("ip_address", "created_at_ms", "updated_at_ms"),
)
_ADD = db.Statement(insert(servers), SERVER_COLUMNS)


class Figure(msgspec.Struct, frozen=True):
    """What one kind of request costs: CPU microseconds of the serving process, and how many it answers in a second."""

    name: str
    requests: int
    cpu_us: float
    per_second: float


class Load(msgspec.Struct, frozen=True):
    """A kind of request: how many, on how many connections, and the answer that it must get."""

    name: str
    method: str
    path: str  # {n} is the number of the request
    requests: int
    status: int
    body: str = ""
    connections: int = 4


LOADS = (
    Load("detail", "GET", "/api/v1/servers/{server}/", 4000, 200),
    Load("list of 50", "GET", "/api/v1/servers/?page={page}&page_size=50", 1500, 200),
    Load(
        "create",
        "POST",
        "/api/v1/servers/",
        1500,
        201,
        '{"name": "bench-{n}", "plan_id": 4, "os_id": 1, "location": "us-west", "backups_enabled": false}',
    ),
)


async def measure(
    url: str, token: str, pid: int, loads: tuple[Load, ...] = LOADS, known: int = SERVERS, first: int = 1
) -> list[Figure]:
    """Load a running vpsd, and read what process `pid` spent on it; the owner has `known` servers, ids from `first`."""
    return [await _measure(url, token, pid, load, known, first) for load in loads]


async def _measure(url: str, token: str, pid: int, load: Load, known: int, first: int) -> Figure:
    chance = random.Random(1)
    numbers = count()
    warm = _request(url, token, load, next(numbers), chance, known, first)
    await _send(url, iter([warm] * 20 if load.method == "GET" else [warm]), load.status)
    batches = [
        [
            _request(url, token, load, next(numbers), chance, known, first)
            for _ in range(load.requests // load.connections)
        ]
        for _ in range(load.connections)
    ]
    spent, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(_send(url, iter(batch), load.status) for batch in batches))
    took, spent = time.perf_counter() - began, cpu_seconds(pid) - spent
    done = sum(len(batch) for batch in batches)
    return Figure(load.name, done, spent / done * 1e6, done / took)


def _request(url: str, token: str, load: Load, number: int, chance: random.Random, known: int, first: int) -> bytes:
    path = load.path.replace("{server}", str(first + chance.randrange(known)))
    path = path.replace("{page}", str(chance.randint(1, max(1, known // 50))))
    body = load.body.replace("{n}", str(number))
    head = f"{load.method} {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{head}Accept: */*\r\n\r\n{body}".encode()


async def _send(url: str, requests: Iterator[bytes], status: int) -> None:
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    try:
        for request in requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if int(head.split(b" ", 2)[1]) != status:
                raise RuntimeError(f"{request.decode()} was answered with {(head + answer).decode()}")
    finally:
        writer.close()


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def seed(database_url: str, known: int = SERVERS) -> str:
    """Migrate a database and fill it with servers that are active; the answer is their owner's token."""
    await schema.prepare(database_url)
    transactions = Transactions(
        database=await db.connect(database_url), clock=SystemClock(), ids=Ids(random.Random(1)), settings=Settings()
    )
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(catalog.default_text())
        file.flush()
        offered = catalog.read_file(Path(file.name))
    async with transactions.write(OPERATOR) as ctx:
        await catalog.apply(ctx, offered)
        ctx = ctx.in_account((await accounts.add_account(ctx, "bench")).id)
        await credit.add_credit(ctx, 10**6 * money.MICROS, "for the measurement")
        token = (await tokens.add(ctx, "bench")).value
        rows = [server_row(ctx.ids, ctx.account_id, number, ctx.now_ms) for number in range(known)]
        await ctx.tx.many(_ADD, rows)
        host = await hosts.add_host(ctx, "bench", "simulator")
        facts = HostFacts("none", "none:", "none", "", "1", "bench", 10**6, 10**9, 10**9)
        await hosts.record_facts(ctx, host.id, facts, "ok")
        plan = await catalog.find_plan(ctx, 4)
        assert plan is not None
        for server_id in range(1, known + 1):
            await rentals.open_rental(ctx, server_id, plan)
            await rentals.confirm_rental(ctx, server_id, ctx.now_ms)
        await compact_sums(ctx)
    await transactions.database.close()
    return token


async def compact_sums(ctx: Ctx) -> None:
    """Have the sums of the account be a few rows, as a worker does soon after many servers were added."""
    for sums in SUMS:
        while await sums.compact(ctx, ctx.account_id):
            pass


def server_row(ids: Ids, account_id: int, number: int, now_ms: int) -> dict[str, Any]:
    """An active server, for `SERVER_COLUMNS`."""
    return {
        "uuid": ids.uuid(),
        "account_id": account_id,
        "name": f"server-{number}",
        "hostname": f"server-{number}.example.com",
        "status": "active",
        "plan_id": 4,
        "os_id": 1,
        "location": "us-west",
        "backups_enabled": False,
        "ip_address": f"127.10.{number // 250 % 250}.{number % 250 + 2}",
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
    }


@contextmanager
def serving(database_url: str) -> Iterator[tuple[str, int]]:
    """The API alone, as vpsd serves it, in a process of its own: its address and process id."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.http", "serve", database_url, str(listener.fileno())],
            pass_fds=[listener.fileno()],
        )
    try:
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(10)


def serve(database_url: str, listener: int) -> None:
    """Answer on a listening socket until told to stop."""

    async def run() -> None:
        clock = SystemClock()
        runtime = Runtime(
            database=await db.connect(database_url),
            clock=clock,
            ids=Ids(),
            settings=Settings(rate_limit=0, address_rate_limit=0, operations_per_account=100_000),
            hypervisors=Hypervisors(lambda _: Simulator()),  # nobody calls them, nor what follows
            images=SimulatedImages(),
            repository=Repository(Directory(Path("nowhere")), "", None),
            instance="",
            jumps=ClockJumps(clock),
        )
        server = Server.of(make_app(runtime), runtime.settings)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
        await server.serve([socket.socket(fileno=listener)])
        await runtime.database.close()

    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
        runner.run(run())


def main() -> None:
    """Measure in a folder that is gone afterwards."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as folder:
        database_url = f"sqlite:///{folder}/vpsd.sqlite"
        token = asyncio.run(seed(database_url))
        with serving(database_url) as (url, pid):
            for figure in asyncio.run(measure(url, token, pid)):
                print(f"{figure.name:12}{figure.cpu_us:8.0f} µs CPU{figure.per_second:8.0f} requests/s")


if __name__ == "__main__":
    main()
