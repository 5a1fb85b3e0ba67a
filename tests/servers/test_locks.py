"""The lock of a server's row: who waits for it finds the server as it is by then."""

import asyncio

import asyncpg
import pytest

from tests.cloud import Cloud
from vpsd.lifecycle import Status


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("asked", ["delete", "start", "backup"])
async def test_who_waits_for_a_resize_to_commit_does_not_miss_the_server(
    cloud: Cloud, database_url: str, asked: str
) -> None:
    server_id = await cloud.have_server(status=Status.STOPPED)
    path = f"/api/v1/servers/{server_id}/"
    other, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("SELECT id FROM servers WHERE id = $1 FOR NO KEY UPDATE", server_id)
        resize = asyncio.create_task(cloud.post(f"{path}resize/", {"plan_id": 2}))
        await until_waiting(watcher, 1)
        command = cloud.ask("DELETE", path) if asked == "delete" else cloud.post(f"{path}{asked}/")
        second = asyncio.create_task(command)
        await until_waiting(watcher, 2)
    assert (await resize).status_code == 200
    assert (await second).status_code == {"delete": 204, "start": 200, "backup": 201}[asked]
    await other.close()
    await watcher.close()


async def until_waiting(connection: asyncpg.Connection, count: int) -> None:
    """Let others work until so many of them wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    for _ in range(10_000):
        if await connection.fetchval(waiting) >= count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{count} did not wait")
