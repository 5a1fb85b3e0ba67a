"""SQLite: what jobs write at the same time is committed together, and is still each job's own."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.core.test_outages import _ADD, _ids, _plan
from vpsd.core.sqlite import SqliteDatabase
from vpsd.errors import DatabaseUnavailable


@pytest.fixture
async def database(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[SqliteDatabase]:
    path = tmp_path / "vpsd.sqlite"
    path.write_bytes(sqlite_template.read_bytes())
    made = SqliteDatabase(str(path))
    yield made
    await made.close()


async def _write(
    database: SqliteDatabase, number: int, then: Callable[[], object] = lambda: None, *, together: bool = True
) -> None:
    async with database.write(together=together) as tx:
        await tx.run(_ADD, **_plan(number, "x"))
        then()


def _commits(database: SqliteDatabase) -> list[str]:
    seen: list[str] = []
    database._writer.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    return seen


def _refuse_commits(database: SqliteDatabase) -> None:
    database._writer.set_authorizer(
        lambda action, name, *_: (
            sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK
        )
    )


async def test_what_is_written_at_the_same_time_is_committed_once(database: SqliteDatabase) -> None:
    commits = _commits(database)
    await asyncio.gather(*(_write(database, number) for number in range(10)))
    assert len(commits) == 1
    assert await _ids(database) == list(range(10))


async def test_what_is_not_to_wait_for_others_is_committed_by_itself(database: SqliteDatabase) -> None:
    commits = _commits(database)
    await asyncio.gather(*(_write(database, number, together=False) for number in range(3)))
    assert len(commits) == 3


async def test_who_may_not_wait_has_those_committed_that_do(database: SqliteDatabase) -> None:
    commits = _commits(database)
    await asyncio.gather(_write(database, 1), _write(database, 2, together=False), _write(database, 3))
    assert len(commits) == 2
    assert await _ids(database) == [1, 2, 3]


async def test_one_that_raises_is_undone_alone(database: SqliteDatabase) -> None:
    def fail() -> None:
        raise KeyError

    tasks = (_write(database, 1), _write(database, 2, fail), _write(database, 3))
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [type(None), KeyError, type(None)]
    assert await _ids(database) == [1, 3]


async def test_the_first_that_raises_is_undone_alone_too(database: SqliteDatabase) -> None:
    def fail() -> None:
        raise KeyError

    done = await asyncio.gather(_write(database, 1, fail), _write(database, 2), return_exceptions=True)
    assert [type(one) for one in done] == [KeyError, type(None)]
    assert await _ids(database) == [2]


async def test_nobody_is_told_before_it_can_be_read(database: SqliteDatabase) -> None:
    async def write_and_look(number: int) -> list[int]:
        await _write(database, number)
        return await _ids(database)

    assert await asyncio.gather(*map(write_and_look, range(3))) == [[0, 1, 2]] * 3


async def test_a_commit_that_fails_fails_for_all_of_them(database: SqliteDatabase) -> None:
    _refuse_commits(database)
    done = await asyncio.gather(*(_write(database, number) for number in range(3)), return_exceptions=True)
    assert [type(one) for one in done] == [sqlite3.DatabaseError] * 3
    database._writer.set_authorizer(None)
    await _write(database, 7)
    assert await _ids(database) == [7]


async def test_one_that_is_cancelled_takes_nothing_from_the_others(database: SqliteDatabase) -> None:
    first = asyncio.create_task(_write(database, 1, lambda: asyncio.get_running_loop().call_soon(first.cancel)))
    second = asyncio.create_task(_write(database, 2))
    with suppress(asyncio.CancelledError):
        await first
    await second
    assert 2 in await _ids(database)


async def test_where_a_full_disk_undoes_everything_all_of_them_have_failed(database: SqliteDatabase) -> None:
    pages = database._writer.execute("PRAGMA page_count").fetchone()[0]
    database._writer.execute("PRAGMA cache_size = 5")
    database._writer.execute(f"PRAGMA max_page_count = {pages + 2}")

    async def write_much() -> None:
        async with database.write(together=True) as tx:
            for number in range(100, 300):
                await tx.run(_ADD, **_plan(number, "x" * 5000))

    done = await asyncio.gather(_write(database, 1), write_much(), return_exceptions=True)
    told = [number for number, one in zip([1], done, strict=False) if one is None]
    assert isinstance(done[1], DatabaseUnavailable)
    assert await _ids(database) == told
    database._writer.execute("PRAGMA max_page_count = 100000")
    await _write(database, 2)
    assert 2 in await _ids(database)


async def test_where_sqlite_undoes_everything_nobody_is_told_that_it_is_done(database: SqliteDatabase) -> None:
    def undo() -> None:  # as SQLite does by itself after some errors: https://sqlite.org/lang_transaction.html
        database._writer.execute("ROLLBACK")
        raise KeyError

    done = await asyncio.gather(_write(database, 1), _write(database, 2, undo), return_exceptions=True)
    assert [type(one) for one in done] == [DatabaseUnavailable, KeyError]
    await _write(database, 3)
    assert await _ids(database) == [3]
