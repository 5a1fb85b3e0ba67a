"""What the token check costs a request, and what it takes to charge 100,000 servers for one hour in one worker.

`python -m bench.money` prints both. The yardstick of the metering is the database alone: the same rows inserted, no
reckoning and no ledger.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from sqlalchemy import insert, select

from bench import http
from tests.postgres import running_postgres
from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.accounts.models import accounts as account_rows
from vpsd.billing.models import Charge, charges, rentals
from vpsd.core import db
from vpsd.core.clock import FakeClock
from vpsd.core.context import OPERATOR, Transactions
from vpsd.core.db import Statement
from vpsd.core.ids import Ids
from vpsd.core.units import HOUR_MS
from vpsd.servers.models import servers
from vpsd.settings import Settings
from vpsd.worker.metering import charge_due

SERVERS = 100_000
ACCOUNTS = 1_000
TOKENS = 10_000
CHECKS = 5_000

_START_MS = 1_750_003_200_000  # a full hour
_ADD_ACCOUNT = Statement(insert(account_rows), ("id", "uuid", "name", "credit_limit_micros", "created_at_ms"))
_ADD_SERVER = Statement(insert(servers), ("id", *http.SERVER_COLUMNS, "provisioned_at_ms"))
_ADD_RENTAL = Statement(insert(rentals), [column.name for column in rentals.c if column.name != "id"])
_ADD_CHARGE = Statement(insert(charges), [column.name for column in charges.c if column.name != "id"])
_CHARGES = Statement(select(charges), into=Charge)


class MeteringFigures(msgspec.Struct, frozen=True):
    """Seconds to charge everything, and to insert the same rows alone."""

    database: str
    seconds: float
    rows_seconds: float

    @property
    def ratio(self) -> float:
        """How many times the rows alone."""
        return self.seconds / self.rows_seconds


def measure_token_check() -> float:
    """Microseconds of CPU to find who a token speaks for, among 10,000 tokens, on SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_token_check(f"sqlite:///{folder}/vpsd.sqlite"))


async def _token_check(database_url: str) -> float:
    await http.seed(database_url, known=1)
    transactions = await _open(database_url, FakeClock(), Ids(random.Random(1)))
    async with transactions.write(OPERATOR) as ctx:
        ctx = ctx.in_account((await accounts.find_account(ctx, "bench")).id)
        made = [(await tokens.add(ctx, "bench")).value for _ in range(TOKENS)]
    asked = random.Random(2).choices(made, k=CHECKS)
    began = time.process_time()
    for token in asked:
        async with transactions.read() as ctx:
            await tokens.authenticate(ctx, token, "127.0.0.1", "bench")
    spent = time.process_time() - began
    await transactions.database.close()
    return spent / CHECKS * 1e6


async def _open(database_url: str, clock: FakeClock, ids: Ids) -> Transactions:
    return Transactions(database=await db.connect(database_url), clock=clock, ids=ids, settings=Settings())


def measure_metering() -> list[MeteringFigures]:
    """One hour of 100,000 servers of 1,000 accounts, on each kind of database."""
    found = []
    for name, place in (("SQLite", _sqlite), ("PostgreSQL", _postgresql)):
        with place() as database_url:
            found.append(asyncio.run(_metering(name, database_url)))
    return found


@contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/vpsd.sqlite"


@contextmanager
def _postgresql() -> Iterator[str]:
    with running_postgres(syncs=True) as url:
        yield url.format("postgres")


async def _metering(name: str, database_url: str) -> MeteringFigures:
    await http.seed(database_url, known=0)
    clock = FakeClock(_START_MS)
    transactions = await _open(database_url, clock, Ids(random.Random(3)))
    await _fill(transactions)
    clock.advance(3600)
    began = time.perf_counter()
    charged = await charge_due(transactions)
    seconds = time.perf_counter() - began
    if len(charged) != ACCOUNTS:
        raise RuntimeError(f"{len(charged)} accounts were charged instead of {ACCOUNTS}")
    rows_seconds = await _rows_alone(transactions)
    await transactions.database.close()
    return MeteringFigures(name, seconds, rows_seconds)


async def _rows_alone(transactions: Transactions) -> float:
    async with transactions.read() as ctx:
        made = await ctx.tx.all(_CHARGES)
    if len(made) != SERVERS:
        raise RuntimeError(f"{len(made)} charges were made instead of {SERVERS}")
    later = [
        {**msgspec.structs.asdict(charge), "from_ms": charge.to_ms, "to_ms": charge.to_ms + HOUR_MS} for charge in made
    ]
    async with transactions.rolled_back() as ctx:
        began = time.perf_counter()
        await ctx.tx.many(_ADD_CHARGE, later)
        return time.perf_counter() - began


async def _fill(transactions: Transactions) -> None:
    first, ids = 10, transactions.ids  # after the account that is there
    async with transactions.write() as ctx:
        await ctx.tx.many(
            _ADD_ACCOUNT,
            [
                {
                    "id": first + number,
                    "uuid": ids.uuid(),
                    "name": f"account-{number}",
                    "credit_limit_micros": None,
                    "created_at_ms": _START_MS,
                }
                for number in range(ACCOUNTS)
            ],
        )
        await ctx.tx.many(
            _ADD_SERVER,
            [
                {
                    "id": number,
                    **http.server_row(ids, first + number % ACCOUNTS, number, _START_MS),
                    "provisioned_at_ms": _START_MS,
                }
                for number in range(1, SERVERS + 1)
            ],
        )
        await ctx.tx.many(
            _ADD_RENTAL,
            [
                {
                    "server_id": number,
                    "account_id": first + number % ACCOUNTS,
                    "plan_id": 4,
                    "price_monthly_micros": 2_000_000,
                    "bandwidth_gb": 256,
                    "from_ms": _START_MS,
                    "to_ms": None,
                    "confirmed_at_ms": _START_MS,
                    "charged_until_ms": _START_MS,
                }
                for number in range(1, SERVERS + 1)
            ],
        )


def main() -> None:
    """Measure and print."""
    print(f"token check, of {TOKENS:,} tokens: {measure_token_check():.0f} µs of CPU")
    for figures in measure_metering():
        print(
            f"{SERVERS:,} servers for an hour on {figures.database}: {figures.seconds:.1f} s, "
            f"their rows alone {figures.rows_seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
