"""Requests that meet the worker half way: they wait for each other, and neither is lost."""

import asyncio

from tests.cloud import Cloud

SERVERS = "/api/v1/servers/"


async def a_little_later(turns: int) -> None:
    """Let the others go on, so that each round meets them at another point."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_a_delete_at_any_moment_of_the_making_is_answered_and_carried_out(cloud: Cloud) -> None:
    async def delete(server_id: int, turns: int) -> int:
        await a_little_later(turns)
        return (await cloud.ask("DELETE", f"{SERVERS}{server_id}/")).status_code

    for turns in range(30):
        server_id = await cloud.create(f"web-{turns}")
        _, status_code = await asyncio.gather(cloud.work(), delete(server_id, turns))
        assert status_code == 204
        await cloud.settle()
        assert (await cloud.row(server_id)).purged_at_ms is not None
    assert await cloud.hypervisor.guests() == {}
    assert await cloud.addresses() == []


async def test_a_stop_at_any_moment_of_a_new_hostnames_way_is_carried_out(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    path = f"{SERVERS}{server_id}/"

    async def stop(turns: int) -> int:
        await a_little_later(turns)
        return (await cloud.post(f"{path}stop/")).status_code

    for turns in range(20):
        await cloud.ask("PATCH", path, json={"hostname": f"web-{turns}.example.com"})
        _, status_code = await asyncio.gather(cloud.work(), stop(turns))
        assert status_code == 200
        await cloud.settle()
        assert await cloud.status(server_id) == "stopped"
        assert (await cloud.post(f"{path}start/")).status_code == 200
        await cloud.settle()
        assert await cloud.status(server_id) == "active"
