"""A start on a database that any landed commit has made: it comes to the present schema, and vpsd works on it."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.api.tables import rows
from tests.migrations.old import DELETED_MS, HOUR_MS, LANDED, OLD_MS, differences, dump, fill, migrate, opened
from vpsd.core.pages import Page
from vpsd.errors import Misconfigured
from vpsd.migrations import HEAD, schema, shape
from vpsd.operations import history
from vpsd.operations import service as operations

# Every commit that has changed the migrations until they were frozen, and what later ones made of databases that they
# could still upgrade.
UNMEANT = ("a56cc15", "9094b3b", "d1f1291", "a56cc15+b7321fc", "9094b3b+b7321fc", "d1f1291+40af3b1", "d1f1291+e68e1dd")
COMMITS = (
    *("49dd861", "d71b4aa", *UNMEANT, "e91cbd4", "b7321fc", "a8bb715", "40af3b1", "e68e1dd"),
    *("49dd861+e91cbd4+a8bb715", "49dd861+40af3b1"),
)
STAMPS = {"49dd861": "0001", "d71b4aa": "0001", "a56cc15": "0002", "9094b3b": "0002", "e91cbd4": "0002"}
STAMPS |= {"d1f1291": "0003", "b7321fc": "0003", "a8bb715": "0004", "40af3b1": "0004", "e68e1dd": "0004"}
AS_RELEASED = ("d71b4aa", "e91cbd4", "b7321fc", "e68e1dd")

Rows = dict[str, list[dict[str, Any]]]


def _make(connection: Connection, commits: str, folder: Path) -> Rows:
    migrate(connection, commits, folder)
    fill(connection)
    return dump(connection)


def _compare(connection: Connection) -> list[Any]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    return list(compare_metadata(MigrationContext.configure(connection), schema.all_tables()))


def _old(url: str, commits: str, folder: Path) -> Rows:
    return asyncio.run(schema.run(url, partial(_make, commits=commits, folder=folder)))


def test_every_landed_commit_is_tried() -> None:
    assert {path.stem for path in LANDED.glob("*.diff")} == set(STAMPS) <= set(COMMITS)


@pytest.mark.parametrize("commits", COMMITS)
def test_a_landed_database_comes_to_the_present_schema_with_its_rows(
    commits: str, empty_url: str, tmp_path: Path
) -> None:
    before = _old(empty_url, commits, tmp_path / "versions")
    stamp = STAMPS[commits.rpartition("+")[2]]
    came_from = asyncio.run(schema.prepare(empty_url))
    if commits in AS_RELEASED:
        assert came_from == (None if stamp == HEAD else stamp)
    else:
        assert came_from == f"an unfinished {stamp}"
    assert asyncio.run(schema.run(empty_url, _compare)) == []
    assert asyncio.run(schema.run(empty_url, shape.describe)) == shape.released()[HEAD]
    assert asyncio.run(schema.prepare(empty_url)) is None
    after = asyncio.run(schema.run(empty_url, dump))
    if commits in UNMEANT:  # what was moved and is not charged yet never will be
        assert [row.pop("charged_at_ms") for row in after["traffic"]] == [0, 0, 0, DELETED_MS]
    for table, kept in before.items():
        shown = [{name: row.get(name, old[name]) for name in old} for old, row in zip(kept, after[table], strict=True)]
        assert shown == kept


@pytest.mark.parametrize("commits", STAMPS)
async def test_vpsd_works_on_a_landed_database(commits: str, empty_url: str, tmp_path: Path) -> None:
    old = await schema.run(empty_url, partial(_make, commits=commits, folder=tmp_path / "versions"))
    await schema.prepare(empty_url)
    # The first migration with money goes by the machine's time.
    cloud = await opened(empty_url, OLD_MS + 6 * HOUR_MS if "rentals" in old else round(time.time() * 1000))
    listed = (await cloud.get("/api/v1/servers/", who="default")).json()["results"]
    assert [server["name"] for server in listed] == ["runs", "never-worked"]
    made = await cloud.create("new", "default")
    await cloud.work()
    assert await cloud.status(made) == "active"
    await cloud.biller().bill()
    assert await differences(cloud) == []
    cloud.clock.advance(48 * 3600)  # into another month
    await cloud.biller().bill()
    assert await differences(cloud) == []
    transfers = [
        charge["server_id"] for charge in await rows(cloud.database, "charges") if charge["kind"] == "transfer"
    ]
    assert transfers == ([] if "rentals" not in old else [4] if commits in UNMEANT else [4, 2])
    servers = {server["id"]: server for server in await rows(cloud.database, "servers")}
    assert [servers[number]["status"] for number in (1, 2, 3)] == ["active", "stopped", "error"]
    if "rentals" in old:
        assert servers[6]["status"] == "suspended"
        assert servers[6]["suspended_at_ms"] >= OLD_MS
    for backup in await rows(cloud.database, "backups"):
        assert backup["incremental"] == (None if backup["target"] is None else backup["parent_id"] is not None)
    await cloud.close()


def test_a_server_that_is_rented_twice_at_once_keeps_a_database_as_it_is(empty_url: str, tmp_path: Path) -> None:
    def rent_again(connection: Connection) -> Rows:
        columns = "server_id, account_id, plan_id, price_monthly_micros, bandwidth_gb, from_ms, charged_until_ms"
        connection.execute(text(f"INSERT INTO rentals ({columns}) SELECT {columns} FROM rentals WHERE server_id = 1"))
        return dump(connection)

    _old(empty_url, "a56cc15", tmp_path / "versions")
    before = asyncio.run(schema.run(empty_url, rent_again))
    with pytest.raises(Misconfigured, match="rentals"):
        asyncio.run(schema.prepare(empty_url))
    assert asyncio.run(schema.run(empty_url, dump)) == before


@pytest.mark.parametrize("commits", ["b7321fc", "e68e1dd"])
async def test_a_command_that_was_to_take_over_has_a_row_of_its_own(
    commits: str, empty_url: str, tmp_path: Path
) -> None:
    def leave_one_waiting(connection: Connection) -> None:
        _make(connection, commits, tmp_path / "versions")
        connection.execute(
            text(
                "INSERT INTO operations (uuid, server_id, command, status, progress, attempts, fence, run_at_ms, "
                "created_at_ms, successor) "
                f"VALUES ('o-2', 2, 'start', 'running', 0, 1, 1, {OLD_MS}, {OLD_MS}, 'delete')"
            )
        )

    await schema.run(empty_url, leave_one_waiting)
    await schema.prepare(empty_url)
    cloud = await opened(empty_url, round(time.time() * 1000))
    async with cloud.reading() as ctx:
        present = await operations.open_operation(ctx, 2)
        assert present is not None
        waiting = await operations.waiting(ctx, present.id)
    assert waiting is not None
    assert (present.command, waiting.command, waiting.status) == ("start", "delete", "queued")
    await cloud.work()
    async with cloud.reading() as ctx:
        found = (await history.history(ctx, 2, Page())).rows
    assert [(operation.command, operation.status) for operation in found] == [
        ("start", "cancelled"),
        ("delete", "succeeded"),
    ]
    await cloud.close()
