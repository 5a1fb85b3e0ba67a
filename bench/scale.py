"""`make bench-scale`: what a request costs with few servers and with very many, whoever owns them.

`python -m bench.scale [--servers N]` fills a database for one owner of 100 servers and one of all the others, with
a host for each 100 of these, and prints CPU for each kind of request as a ratio to the same with 100 servers in all.
"""

import asyncio
import sys
import tempfile

import msgspec
from sqlalchemy import text

from bench import http
from bench.http import LOADS, Figure, Load
from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.billing import credit
from vpsd.core import db, money
from vpsd.core.clock import SystemClock
from vpsd.core.context import OPERATOR, Transactions
from vpsd.core.db import Statement
from vpsd.core.ids import Ids
from vpsd.servers import capacity
from vpsd.settings import Settings

SMALL = 100
SERVERS = 1_000_000
_LISTS = (
    Load("list of 50", "GET", "/api/v1/servers/?page_size=50", 800, 200),
    Load("list by status", "GET", "/api/v1/servers/?page_size=50&status=active", 400, 200),
    Load("list by location", "GET", "/api/v1/servers/?page_size=50&location=us-west", 400, 200),
    Load("balance", "GET", "/api/v1/account/balance/", 400, 200),
)
_CREATE = next(load for load in LOADS if load.name == "create")

_NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :servers) "
_UUID = "printf('%08x-0000-4000-8000-%012x', :account_id, i)"
_SERVERS = Statement(
    text(
        "INSERT INTO servers (uuid, account_id, name, hostname, status, plan_id, os_id, location, backups_enabled, "
        "ip_address, created_at_ms, updated_at_ms, host_id, provisioned_at_ms) "
        f"{_NUMBERS} SELECT {_UUID}, :account_id, 'server-' || i, 'server-' || i || '.example.com', 'active', 4, 1, "
        "'us-west', 0, printf('127.%d.%d.%d', i / 65536, i / 256 % 256, i % 256), :now_ms, :now_ms, 1, :now_ms FROM n"
    )
)
_HOSTS = Statement(
    text(
        "INSERT INTO hosts (name, driver, uri, cpus, memory_mb, storage_gb, storage_free_mb, health, storage) "
        f"{_NUMBERS} SELECT 'host-' || i, 'simulator', 'simulator://' || i, 64, 262144, 4096, 4000000, 'ok', 'ok' "
        "FROM n"
    )
)
_RENTALS = Statement(
    text(
        "INSERT INTO rentals (server_id, account_id, plan_id, price_monthly_micros, bandwidth_gb, from_ms, "
        "confirmed_at_ms, charged_until_ms) SELECT id, account_id, plan_id, 2000000, 256, :now_ms, :now_ms, :now_ms "
        "FROM servers WHERE account_id = :account_id"
    )
)
_OPERATIONS = Statement(
    text(
        "INSERT INTO operations (uuid, server_id, command, status, progress, attempts, fence, run_at_ms, "
        "created_at_ms, started_at_ms, finished_at_ms) SELECT uuid, id, 'create', 'succeeded', 1.0, 1, 1, :now_ms, "
        ":now_ms, :now_ms, :now_ms FROM servers WHERE account_id = :account_id"
    )
)


async def fill(database_url: str, others: int) -> tuple[str, str]:
    """A database with an owner of 100 servers and one of `others`; their tokens."""
    await http.seed(database_url, 0)
    transactions = Transactions(
        database=await db.connect(database_url), clock=SystemClock(), ids=Ids(), settings=Settings()
    )
    found = []
    for name, count in (("small", SMALL), ("large", others)):
        async with transactions.write(OPERATOR) as ctx:
            ctx = ctx.in_account((await accounts.add_account(ctx, name)).id)
            await credit.add_credit(ctx, 10**9 * money.MICROS, "for the measurement")
            found.append((await tokens.add(ctx, name)).value)
            values = {"account_id": ctx.account_id, "now_ms": ctx.now_ms}
            if count:
                await ctx.tx.run(_SERVERS, servers=count, **values)
                await ctx.tx.run(_RENTALS, **values)
                await ctx.tx.run(_OPERATIONS, **values)
            if count > SMALL:
                await ctx.tx.run(_HOSTS, servers=count // SMALL)
            await capacity.recount(ctx, 1)
            await http.compact_sums(ctx)
    async with transactions.write() as ctx:
        await ctx.tx.run(Statement(text("ANALYZE")))
    await transactions.database.close()
    small, large = found
    return small, large


def measure(others: int) -> dict[str, list[Figure]]:
    """What requests cost the small owner, and the large one."""
    with tempfile.TemporaryDirectory() as folder:
        database_url = f"sqlite:///{folder}/vpsd.sqlite"
        small, large = asyncio.run(fill(database_url, others))
        found = {}
        with http.serving(database_url) as (url, pid):
            for name, token, first, known in (("small", small, 1, SMALL), ("large", large, SMALL + 1, others)):
                if known:
                    detail = Load("detail", "GET", "/api/v1/servers/{server}/", 1500, 200)
                    loads = (detail, *_LISTS, msgspec.structs.replace(_CREATE, requests=400))
                    found[name] = asyncio.run(http.measure(url, token, pid, loads, known, first))
        return found


def main() -> None:
    """Measure few and many in one run."""
    servers = int(sys.argv[2]) if sys.argv[1:2] == ["--servers"] else SERVERS
    few = {figure.name: figure.cpu_us for figure in measure(0)["small"]}
    many = measure(servers)
    print(f"µs of CPU; in brackets: times what it costs with {SMALL} servers in all")
    print(f"{'':18} {SMALL:>12,} in all" + "".join(f"   {who} of {servers + SMALL:>9,}" for who in many))
    for name, cost in few.items():
        cells = [next(figure.cpu_us for figure in figures if figure.name == name) for figures in many.values()]
        print(f"{name:18} {cost:>19.0f}" + "".join(f"   {one:>9.0f} ({one / cost:.2f})" for one in cells))


if __name__ == "__main__":
    main()
