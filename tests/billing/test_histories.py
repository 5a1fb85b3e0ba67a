"""Whatever happens to servers, clocks and workers: every balance is what follows from what happened."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.billing.books import DAY, HOUR, announce, assert_right, charge, charges_of, has_moved, rentals_of
from tests.cloud import Cloud
from vpsd.billing import prices
from vpsd.billing.models import Rental
from vpsd.catalog.service import Catalog
from vpsd.core.db import Statement, Tx
from vpsd.core.money import MICROS
from vpsd.core.sqlite import SqliteDatabase
from vpsd.hypervisor.simulator import Simulator
from vpsd.servers.models import servers
from vpsd.settings import Settings

GB = 1 << 30

_IDS = Statement(select(servers.c.id).order_by(servers.c.id), into=int)

Step = tuple[str, int]

# What may happen, as often as it stands here: how far the clock goes and in what time a price counts are in seconds.
LIFE: list[Step] = [
    *(("create", 3), ("create", 4), ("work", 0), ("work", 0), ("bill", 0), ("sample", 0)),
    *(("delete", 0), ("delete", 1), ("stop", 0), ("start", 0), ("rebuild", 0)),
    *(("resize to 1", 0), ("resize to 2", 0), ("resize to 3", 0), ("resize to 3", 1)),
    *(("charge after", seconds) for seconds in (1, HOUR // 2, HOUR, 5 * HOUR, 5 * HOUR, DAY, 3 * DAY, 20 * DAY)),
    *(("go on", seconds) for seconds in (1, HOUR // 2, HOUR, 5 * HOUR)),
    *(("go back", seconds) for seconds in (1, HOUR // 2, 2 * HOUR, 7 * HOUR, 2 * DAY)),
    *(("announce", seconds) for seconds in (1, HOUR // 3, 3 * HOUR, 5 * HOUR, 2 * DAY)),
    *(("take back", 0), ("guests boot", 0), ("guests boot", 1), ("guests boot", 1)),
    *(("balance", 0), ("balance", 3), ("balance", 1000)),
]


class OneConnection(SqliteDatabase):
    """In memory there is no other connection to take a snapshot with."""

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        async with self.read() as tx:
            yield tx


class Lives:
    """One vpsd without a file, and the way back to its beginning: histories are many, and each starts with nothing."""

    def __init__(self, cloud: Cloud, database: SqliteDatabase) -> None:
        self._cloud, self._connection = cloud, database._writer
        self._beginning = sqlite3.connect(":memory:")
        self._connection.backup(self._beginning)
        self._began_ms = cloud.clock.now_ms()

    def anew(self) -> Cloud:
        """The cloud, as if nothing had happened."""
        cloud = self._cloud
        self._beginning.backup(self._connection)
        cloud.clock.advance((self._began_ms - cloud.clock.now_ms()) / 1000)
        cloud.hypervisor = Simulator(clock=cloud.clock)
        cloud.have_connections()
        return cloud


@pytest.fixture
async def lives(sqlite_template: Path, offered: Catalog, tmp_path: Path) -> AsyncIterator[Lives]:
    database = OneConnection(":memory:")
    with sqlite3.connect(sqlite_template) as migrated:
        migrated.backup(database._writer)
    plain = Settings(data_dir=tmp_path, hypervisor="simulator", rate_limit=0, address_rate_limit=0, login_failures=0)
    cloud = Cloud(database, plain)
    await cloud.open(offered)
    yield Lives(cloud, database)
    await cloud.close()


async def live(cloud: Cloud, offered: Catalog, history: list[Step]) -> None:
    """Let it all happen. What is refused on the way (402, 400, 404) is part of life."""
    made: list[int] = []
    moved, price = 0, 2
    for what, value in history:
        if what == "create":
            order = {"name": "web", "plan_id": value, "os_id": 1, "location": "us-west"}
            answer = await cloud.post("/api/v1/servers/", order)
            made += [answer.json()["id"]] if answer.status_code == 201 else []
        elif what in ("delete", "stop", "start", "rebuild") or what.startswith("resize"):
            if value < len(made):
                await _request(cloud, made[value], what)
        elif what == "work":
            await cloud.work()
        elif what == "bill":
            await cloud.biller().bill()
        elif what == "charge after":
            cloud.clock.advance(value)
            await charge(cloud)
        elif what == "sample":
            moved += 150 * GB
            has_moved(cloud, moved, moved // 2)
            await cloud.sampler().sample()
        elif what == "go on":
            cloud.clock.advance(value)
        elif what == "go back":
            cloud.clock.advance(-value)
        elif what == "announce":
            price += 1
            await announce(cloud, offered, price * MICROS, cloud.clock.now_ms() + value * 1000)
        elif what == "take back":
            await announce(cloud, offered, price * MICROS, None)
        elif what == "guests boot":
            cloud.hypervisor.never_boots = not value
        elif what == "balance":
            await cloud.have_balance(value * MICROS)
        else:
            raise KeyError(what)


async def _request(cloud: Cloud, server: int, what: str) -> None:
    path = f"/api/v1/servers/{server}/"
    if what == "delete":
        answer = await cloud.ask("DELETE", path)
    elif what == "rebuild":
        answer = await cloud.post(f"{path}rebuild/", {"os_id": 3})
    elif what.startswith("resize"):
        answer = await cloud.post(f"{path}resize/", {"plan_id": int(what[-1])})
    else:
        answer = await cloud.post(f"{path}{what}/")
    assert answer.status_code < 500, answer.text


async def assert_sound(cloud: Cloud) -> None:
    """What no history may make of the charges, whatever the books say of each other."""
    async with cloud.reading() as ctx:
        ids = await ctx.tx.all(_IDS)
    for server in ids:
        assert all(rental.to_ms is None or rental.from_ms <= rental.to_ms for rental in await rentals_of(cloud, server))
        had = [rental for rental in await rentals_of(cloud, server) if rental.confirmed_at_ms is not None]
        of_month: dict[str, int] = {}
        end_ms = 0
        for entry in await charges_of(cloud, server):
            assert end_ms <= entry.from_ms < entry.to_ms
            assert entry.amount_micros >= 0
            end_ms = entry.to_ms
            name = prices.month_of(entry.from_ms).name
            of_month[name] = of_month.get(name, 0) + entry.amount_micros
        for name, total in of_month.items():
            assert total <= _highest(had, name)


def _highest(had: list[Rental], name: str) -> int:
    month = prices.month_named(name)
    return max(
        rental.price_monthly_micros
        for rental in had
        if rental.from_ms < month.end_ms and (rental.to_ms is None or rental.to_ms > month.start_ms)
    )


@settings(
    derandomize=True,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(st.sampled_from(LIFE), min_size=20, max_size=30))
async def test_after_any_history_every_balance_follows_from_what_happened(
    lives: Lives, offered: Catalog, history: list[Step]
) -> None:
    cloud = lives.anew()
    await live(cloud, offered, [("create", 4), ("work", 0), *history])
    await assert_right(cloud)
    await cloud.settle()
    cloud.clock.advance(9 * DAY)  # whatever the clock did: in the end all that is due is charged
    await charge(cloud)
    await assert_right(cloud)
    await assert_sound(cloud)
