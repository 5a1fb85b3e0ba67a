"""The database's clock is everybody's: what a machine's own is set to says nothing."""

from pathlib import Path

import pytest
from sqlalchemy import BigInteger, cast, extract, func, select

from tests.cloud import Cloud
from vpsd.core import database_clock
from vpsd.core.clock import FakeClock
from vpsd.core.database_clock import DatabaseClock
from vpsd.core.db import Statement
from vpsd.main import open_transactions
from vpsd.settings import Settings

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

_NOW = Statement(select(cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)), into=int)


async def _now_ms(cloud: Cloud) -> int:
    async with cloud.database.read() as tx:
        return await tx.first(_NOW) or 0


async def test_it_shows_the_databases_time_and_goes_on_by_what_passes_steadily(cloud: Cloud) -> None:
    own = FakeClock()
    clock = DatabaseClock(own, cloud.database)
    before_ms = await _now_ms(cloud)
    await clock.set_right()
    now_ms = clock.now_ms()
    assert before_ms <= now_ms <= await _now_ms(cloud)
    own.jump(-86_400)
    assert clock.now_ms() == now_ms
    await clock.sleep(2)
    assert (clock.now_ms(), own.monotonic()) == (now_ms + 2000, clock.monotonic())


async def test_an_answer_that_took_long_changes_nothing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = DatabaseClock(FakeClock(), cloud.database)
    now_ms = clock.now_ms()
    monkeypatch.setattr(database_clock, "_LONGEST_SECONDS", -1)
    await clock.set_right()
    assert clock.now_ms() == now_ms


async def test_a_vpsd_on_postgresql_goes_by_it_from_the_first_moment(database_url: str, tmp_path: Path) -> None:
    async with open_transactions(Settings(data_dir=tmp_path, database_url=database_url)) as transactions:
        assert isinstance(transactions.clock, DatabaseClock)
