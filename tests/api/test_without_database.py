"""A database that is away or takes no changes: what can be answered is, the rest is a 503."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.cloud import Cloud
from tests.idempotency.posts import KEY, WEB, WORK, Stumbling, api_on, count
from tests.postgres_proxy import Proxy, proxied
from vpsd.accounts import service as accounts
from vpsd.api.http import health
from vpsd.catalog.service import Catalog
from vpsd.core import db
from vpsd.core.db import WAIT_SECONDS, Database, Tx
from vpsd.core.outages import Problem
from vpsd.core.postgres import PostgresDatabase
from vpsd.core.sqlite import SqliteDatabase
from vpsd.errors import DatabaseUnavailable, OutcomeUnknown, Unusable
from vpsd.settings import Settings

SERVERS = "/api/v1/servers/"
ME = "/api/v1/account/me/"


async def have_read_only(cloud: Cloud, database_url: str, *, on: bool = True) -> None:
    """Have the database take no changes: as SQLite can be told, and as a PostgreSQL standby does."""
    if isinstance(cloud.database, SqliteDatabase):
        cloud.database._writer.execute(f"PRAGMA query_only = {int(on)}")
        return
    assert isinstance(cloud.database, PostgresDatabase)
    name = database_url.split("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(database_url, server_settings={"default_transaction_read_only": "off"})
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {"on" if on else "off"}')
    await connection.close()
    await cloud.database._pool.expire_connections()


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log has for the operator; no tracebacks."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in records if record.exc_info]
    return [record.getMessage().partition(" (")[0] for record in records]


async def test_a_database_that_takes_no_changes_is_read_and_told_of(
    cloud: Cloud, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    server_id = await cloud.have_server()
    caplog.clear()
    await have_read_only(cloud, database_url)
    cloud.clock.advance(600)  # the use of the token should be recorded again
    for path in (SERVERS, f"{SERVERS}{server_id}/", ME):
        answer = await cloud.get(path)
        assert answer.status_code == 200, answer.text
    for method, path, body in (("POST", SERVERS, WEB), ("DELETE", f"{SERVERS}{server_id}/", None)):
        refused = await cloud.ask(method, path, json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        assert refused.headers["Retry-After"] == "5"
        assert "read" not in refused.json()["detail"]  # what the driver says is for the operator
    told = await cloud.get("/health", who=None)
    assert (told.status_code, told.json()["status"]) == (503, "degraded")
    assert told.json()["database"] == {"status": "read_only"}
    assert _told(caplog) == ["the database is read_only"]
    await have_read_only(cloud, database_url, on=False)
    cloud.database.status._probed_at = float("-inf")  # a second later
    assert (await cloud.get("/health", who=None)).json()["database"] == {"status": "ok"}
    assert (await cloud.post(SERVERS, WEB)).status_code == 201
    assert _told(caplog) == ["the database is read_only", "the database is well again"]


async def test_a_closed_database_is_a_503_as_during_a_shutdown(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    await cloud.database.close()
    for _ in range(30):
        for answer in (await cloud.get(SERVERS), await cloud.post(SERVERS, WEB)):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert answer.headers["Retry-After"] == "5"
    told = await cloud.get("/health", who=None)
    assert (told.status_code, told.json()["database"]) == (503, {"status": "unavailable"})
    assert _told(caplog) == ["the database is unavailable"]


class Waiting(Stumbling):
    """Notes how long readers would wait."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.waits: list[float] = []

    def read(self, wait_seconds: float = WAIT_SECONDS) -> AbstractAsyncContextManager[Tx]:
        self.waits.append(wait_seconds)
        return super().read(wait_seconds)


async def test_health_does_not_wait_for_the_database_for_long(cloud: Cloud) -> None:
    database = Waiting(cloud.database)
    async with api_on(cloud, database) as http:
        assert (await http.get("/health")).status_code == 200  # with a token, which is looked at as well
        assert database.waits == [1, 1]
        assert (await http.get(ME)).status_code == 200
        assert database.waits[2:] == [WAIT_SECONDS] * 2


async def test_health_tells_of_a_data_folder_without_room(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await cloud.get("/health", who=None)).json()["data_folder"] == {"status": "ok"}
    free = shutil.disk_usage(cloud.settings.data_dir).total
    monkeypatch.setattr(health, "_FULL_BYTES", free + 1)  # as if that were too little
    told = await cloud.get("/health", who=None)
    assert (told.status_code, told.json()["status"]) == (200, "degraded")
    assert told.json()["data_folder"] == {"status": "full"}
    cloud.database.status.failed(DatabaseUnavailable(Problem.FULL, "no space"))
    told = await cloud.get("/health", who=None)  # a small change would go through, and proves nothing
    assert (told.status_code, told.json()["database"]) == (503, {"status": "full"})


@pytest.mark.parametrize(
    "made",
    [Cloud.runner, Cloud.reconciler, Cloud.biller, Cloud.backup_scheduler, Cloud.sampler, Cloud.guest_reader],
)
async def test_the_loops_outlive_it_log_it_once_and_work_again(
    cloud: Cloud, database_url: str, caplog: pytest.LogCaptureFixture, made: Callable[[Cloud], Any]
) -> None:
    await cloud.have_server()
    await cloud.post(SERVERS, {**WEB, "name": "new"})  # something to do
    caplog.clear()
    await have_read_only(cloud, database_url)
    cloud.clock.advance(7200)
    running = asyncio.create_task(made(cloud).run())
    until_ms = cloud.clock.now_ms() + 60_000
    async with asyncio.timeout(30):
        while cloud.clock.now_ms() < until_ms and not running.done():
            await asyncio.sleep(0)
    assert not running.done()
    assert _told(caplog) in (["the database is read_only"], [])
    await have_read_only(cloud, database_url, on=False)
    running.cancel()
    await asyncio.wait({running})


async def test_a_commit_without_an_answer_is_told_as_one_and_the_key_finds_out(cloud: Cloud) -> None:
    stumbling = Stumbling(cloud.database)
    stumbling.after[WORK] = OutcomeUnknown(Problem.UNAVAILABLE, "gone")
    async with api_on(cloud, stumbling) as http:
        unknown = await http.post(SERVERS, json=WEB, headers=KEY)
        assert (unknown.status_code, unknown.json()["code"]) == (503, "outcome_unknown")
        assert "Idempotency-Key" in unknown.json()["detail"]
        assert "Retry-After" not in unknown.headers
        again = await http.post(SERVERS, json=WEB, headers=KEY)
    assert again.status_code == 201
    assert await count(cloud, "servers") == 1


async def test_a_refusal_is_told_although_its_key_could_not_be_given_back(cloud: Cloud) -> None:
    stumbling = Stumbling(cloud.database)
    stumbling.at_the_end[WORK] = Unusable.plain("no")
    stumbling.at_the_end[WORK + 1] = DatabaseUnavailable(Problem.FULL, "no space")
    async with api_on(cloud, stumbling) as http:
        refused = await http.post(SERVERS, json=WEB, headers=KEY)
    assert refused.json() == {"detail": "no", "code": "unusable"}


@pytest.fixture
async def proxy(database_url: str, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with proxied(database_url, tmp_path) as made:
        yield made


@pytest.fixture
async def behind(proxy: Proxy, tmp_path: Path, offered: Catalog) -> AsyncIterator[Cloud]:
    """vpsd with a proxy before its PostgreSQL."""
    settings = Settings(data_dir=tmp_path, hypervisor="simulator", rate_limit=0, address_rate_limit=0)
    made = Cloud(await db.connect(proxy.url), settings)
    await made.open(offered)
    await made.get(ME)
    yield made
    await made.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_connection_that_is_lost_in_a_commit_does_it_once_whoever_won(
    behind: Cloud, proxy: Proxy, moment: str
) -> None:
    database = Stumbling(behind.database)

    async def cut() -> None:
        proxy.cut_commit = moment

    database.before[WORK] = cut
    async with api_on(behind, database) as http:
        unknown = await http.post(SERVERS, json=WEB, headers=KEY)
        assert (unknown.status_code, unknown.json()["code"]) == (503, "outcome_unknown")
        assert await count(behind, "servers") == (moment == "after")
        again = await http.post(SERVERS, json=WEB, headers=KEY)
    assert again.status_code == 201, again.text
    assert await count(behind, "servers") == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("connections", [0, 1])
async def test_a_postgresql_that_answers_nothing_is_not_waited_for_longer_than_one_may(
    behind: Cloud, proxy: Proxy, connections: int
) -> None:
    assert isinstance(behind.database, PostgresDatabase)
    if not connections:
        await behind.database._pool.expire_connections()
    proxy.swallows = True
    async with asyncio.timeout(5):  # of 10 s for a connection, and 30 s for a statement
        with pytest.raises(DatabaseUnavailable):
            async with behind.runtime.read(wait_seconds=0.05) as ctx:
                await accounts.instance(ctx)
    assert behind.database.status.problem == "unavailable"
    proxy.swallows = False
