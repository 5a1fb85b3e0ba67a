"""A database that is away, full, locked or read-only: one failure, told now and then, and over when it is over."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, select

from tests.postgres_proxy import proxied
from vpsd.catalog.models import Plan, plans
from vpsd.core import db
from vpsd.core.db import Database, Statement
from vpsd.core.outages import DatabaseStatus, Evidence, Problem, translated
from vpsd.core.sqlite import SqliteDatabase
from vpsd.errors import DatabaseUnavailable, OutcomeUnknown

_COLUMNS = [column.name for column in plans.c]
_ADD = Statement(insert(plans), _COLUMNS)
_ADD_AND_RETURN = Statement(insert(plans).returning(plans), _COLUMNS, into=Plan)
_ALL = Statement(select(plans).order_by(plans.c.id), into=Plan)


def _plan(number: int, description: str = "") -> dict[str, object]:
    plan = Plan(number, "P", f"p{number}", 1, 256, 2, 1, 2_000_000, None, description, True)
    return {name: getattr(plan, name) for name in _COLUMNS}


async def _add(database: Database, number: int, description: str = "", **options: Any) -> None:
    async with database.write(**options) as tx:
        await tx.run(_ADD, **_plan(number, description))


async def _ids(database: Database) -> list[int]:
    async with database.read() as tx:
        return [plan.id for plan in await tx.all(_ALL)]


def _of_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "problem", "unknown"),
    [
        (_of_sqlite(sqlite3.SQLITE_BUSY), Problem.LOCKED, False),
        (_of_sqlite(sqlite3.SQLITE_BUSY_SNAPSHOT), Problem.LOCKED, False),
        (_of_sqlite(sqlite3.SQLITE_FULL), Problem.FULL, False),
        (_of_sqlite(sqlite3.SQLITE_READONLY_DBMOVED), Problem.READ_ONLY, False),
        (_of_sqlite(sqlite3.SQLITE_IOERR_FSYNC), Problem.FAILING, True),
        (_of_sqlite(sqlite3.SQLITE_CORRUPT), Problem.FAILING, False),
        (_of_sqlite(sqlite3.SQLITE_CANTOPEN), Problem.UNAVAILABLE, False),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), Problem.UNAVAILABLE, False),
        (ConnectionRefusedError("no"), Problem.UNAVAILABLE, True),
        (TimeoutError(), Problem.UNAVAILABLE, True),
        (asyncpg.ConnectionDoesNotExistError("no"), Problem.UNAVAILABLE, True),
        (asyncpg.InterfaceError("connection is closed"), Problem.UNAVAILABLE, True),
        (asyncpg.InterfaceError("pool is closing"), Problem.UNAVAILABLE, True),
        (asyncpg.InternalClientError("cannot switch to state 12"), Problem.UNAVAILABLE, True),
        (asyncpg.TooManyConnectionsError("no"), Problem.UNAVAILABLE, False),
        (asyncpg.AdminShutdownError("no"), Problem.UNAVAILABLE, True),
        (asyncpg.CannotConnectNowError("no"), Problem.UNAVAILABLE, True),
        (asyncpg.QueryCanceledError("no"), Problem.UNAVAILABLE, True),
        (asyncpg.DiskFullError("no"), Problem.FULL, False),
        (asyncpg.ReadOnlySQLTransactionError("no"), Problem.READ_ONLY, False),
        (asyncpg.PostgresIOError("no"), Problem.FAILING, False),
        (asyncpg.LockNotAvailableError("no"), Problem.LOCKED, False),
    ],
)
def test_what_drivers_raise_is_one_kind_of_failure(error: Exception, problem: Problem, unknown: bool) -> None:
    with pytest.raises(DatabaseUnavailable) as failed, translated():
        raise error
    assert failed.value.problem == problem
    assert type(failed.value) is DatabaseUnavailable
    with pytest.raises(DatabaseUnavailable) as failed, translated(committing=True):
        raise error
    assert isinstance(failed.value, OutcomeUnknown) == unknown


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("no such table: x"),
        _of_sqlite(sqlite3.SQLITE_CONSTRAINT_CHECK),
        asyncpg.DeadlockDetectedError("no"),
        asyncpg.UndefinedTableError("no"),
        asyncpg.DataError("invalid input for query argument $1"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        KeyError("no"),
    ],
)
def test_what_is_an_error_of_vpsds_own_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)), translated(committing=True):
        raise error


def test_the_log_has_a_line_a_second_at_most_one_a_minute_while_it_lasts_and_one_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    status = DatabaseStatus(lambda: now)
    full, away = DatabaseUnavailable(Problem.FULL, "no space"), DatabaseUnavailable(Problem.UNAVAILABLE, "refused")
    for at, error in ((0.0, full), (0.5, away), (0.9, full), (1.5, away), (30.0, away), (61.4, away), (61.5, away)):
        now = at
        for _ in range(100):
            status.failed(error)
    for _ in range(2):
        status.answered(Evidence.ANSWERED)
    assert [record.getMessage() for record in caplog.records] == [
        "the database is full (failures: 1): no space",
        "the database is unavailable (failures: 300): refused",
        "the database is unavailable (failures: 300): refused",
        "the database is well again (failures since the last line: 99)",
    ]


@pytest.mark.parametrize(
    ("problem", "evidence"),
    [
        (Problem.UNAVAILABLE, Evidence.ANSWERED),
        (Problem.LOCKED, Evidence.BEGUN),
        *((problem, Evidence.CHANGED) for problem in (Problem.FULL, Problem.READ_ONLY, Problem.FAILING)),
    ],
)
def test_only_what_proves_it_says_that_all_is_well(problem: Problem, evidence: Evidence) -> None:
    status = DatabaseStatus(lambda: 0.0)
    for one in Evidence:
        status.failed(DatabaseUnavailable(problem, ""))
        status.answered(one)
        assert (status.problem is None) == (one >= evidence)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = await db.connect(database_url)
    yield made
    await made.close()


async def test_a_closed_database_is_unavailable_for_everything(database: Database) -> None:
    await _ids(database)
    await database.close()
    for opened in (database.read(), database.write()):
        with pytest.raises(DatabaseUnavailable):
            async with opened as tx:
                await tx.all(_ALL)
        assert database.status.problem is Problem.UNAVAILABLE


@pytest.fixture
def path(tmp_path: Path, sqlite_template: Path) -> Path:
    copy = tmp_path / "vpsd.sqlite"
    copy.write_bytes(sqlite_template.read_bytes())
    return copy


async def test_while_another_process_holds_the_lock_others_go_on_and_the_write_follows(path: Path) -> None:
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_seconds: float) -> None:
        paused.set()
        await go_on.wait()

    database = SqliteDatabase(str(path), pause=pause)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = [asyncio.create_task(_add(database, number)) for number in (1, 2)]
    async with asyncio.timeout(30):
        await paused.wait()
        assert await _ids(database) == []
        with pytest.raises(DatabaseUnavailable):  # it does not queue behind those that wait
            await _add(database, 3, wait_seconds=0)
    assert database.status.problem is None  # for that it was not patient enough
    assert await _ids(database) == []
    other.execute("COMMIT")
    go_on.set()
    await asyncio.gather(*writing)
    assert await _ids(database) == [1, 2]
    assert database.status.problem is None
    # Not even a single try keeps the event loop waiting.
    assert database._writer.execute("PRAGMA busy_timeout").fetchone() == (0,)
    await database.close()
    other.close()


async def test_a_lock_that_is_held_too_long_is_a_failure_after_the_time_that_it_may_take(path: Path) -> None:
    slept: list[float] = []

    async def pause(seconds: float) -> None:
        slept.append(seconds)

    database = SqliteDatabase(str(path), pause=pause, monotonic=lambda: sum(slept))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable) as failed:
        await _add(database, 1)
    assert failed.value.problem == Problem.LOCKED
    assert db.WAIT_SECONDS <= sum(slept) < db.WAIT_SECONDS + 0.1
    assert max(slept) <= 0.05
    other.execute("COMMIT")
    await _add(database, 1)
    await database.close()
    other.close()


async def test_a_full_disk_is_still_read_and_written_again_when_there_is_room(path: Path) -> None:
    database = SqliteDatabase(str(path))
    pages = database._writer.execute("PRAGMA page_count").fetchone()[0]
    database._writer.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable) as failed:
            async with database.write() as tx:
                for number in range(200):
                    await tx.run(_ADD, **_plan(number, "x" * 5000))
        assert failed.value.problem == Problem.FULL == database.status.problem
        assert await _ids(database) == []
    database._writer.execute("PRAGMA max_page_count = 100000")
    await _add(database, 1, "x" * 100_000)
    assert (await _ids(database), database.status.problem) == ([1], None)
    await database.close()


async def test_a_commit_that_fails_is_undone_and_the_next_one_goes_through(path: Path) -> None:
    database = SqliteDatabase(str(path))
    database._writer.set_authorizer(
        lambda action, name, *_: (
            sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK
        )
    )
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        await _add(database, 1)
    database._writer.set_authorizer(None)
    await _add(database, 2)
    assert await _ids(database) == [2]
    await database.close()


on_postgres = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@on_postgres
async def test_a_postgresql_that_goes_away_is_unavailable_until_it_is_back(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxied(database_url, tmp_path) as proxy:
        database = await db.connect(proxy.url)
        database.on_operation(lambda: None)  # it listens
        assert await _ids(database) == []
        caplog.clear()
        await proxy.close()
        for _ in range(20):
            for opened in (database.read(), database.write(), database.snapshot()):
                with pytest.raises(DatabaseUnavailable):
                    async with opened as tx:
                        await tx.all(_ALL)
        assert database.status.problem is Problem.UNAVAILABLE
        await proxy.open()
        assert await _ids(database) == []
        assert database.status.problem is None
        await database.close()
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().partition(" (")[0] for record in said] == [
        "the database is unavailable",
        "the database is well again",
    ]


@on_postgres
async def test_a_connection_that_is_lost_in_a_transaction_fails_it_and_the_next_one_is_a_new_one(
    database_url: str,
) -> None:
    database, other = await db.connect(database_url), await asyncpg.connect(database_url)
    with pytest.raises(DatabaseUnavailable) as failed:
        async with database.write() as tx:
            await tx.run(_ADD, **_plan(1))
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            )
            await tx.run(_ADD, **_plan(2))
    assert type(failed.value) is DatabaseUnavailable
    assert await _ids(database) == []
    await other.close()
    await database.close()


async def test_a_query_without_a_row_changed_nothing(database: Database) -> None:
    """What was only read says nothing of a database that is full."""
    database.status.failed(DatabaseUnavailable(Problem.FULL, ""))
    async with database.write() as tx:
        await tx.all(_ALL)
    assert database.status.problem is Problem.FULL
    async with database.write() as tx:
        await tx.all(_ADD_AND_RETURN, **_plan(1))
    assert database.status.problem is None
