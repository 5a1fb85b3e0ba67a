"""Backups by the clock: one a day, missed ones made up for once, old ones let go."""

import asyncio
from typing import Any

from sqlalchemy import update

from tests.cloud import Cloud
from vpsd.core.db import Statement
from vpsd.errors import Unavailable
from vpsd.lifecycle import Status
from vpsd.operations.models import operations
from vpsd.servers.schedule import next_backup_slot_ms

DAY = 86_400


async def _enabled(cloud: Cloud, status: Status = Status.ACTIVE) -> int:
    server = await cloud.have_server(status=status)
    await _enable(cloud, server, enabled=True)
    return server


async def _enable(cloud: Cloud, server: int, *, enabled: bool) -> None:
    answer = await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"backups_enabled": enabled})
    assert answer.status_code == 200


async def _pass(cloud: Cloud, seconds: float, step: float = 1800) -> None:
    """Let time pass as a running worker sees it."""
    while seconds > 0:
        cloud.clock.advance(min(step, seconds))
        seconds -= step
        await cloud.backup_scheduler().schedule()
        await cloud.work()


async def _backups(cloud: Cloud, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await cloud.get(f"/api/v1/backups/{query}")).json()["results"]
    return found


async def test_a_server_gets_a_backup_every_day_in_the_window(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    await _pass(cloud, 3 * DAY)
    made = await _backups(cloud, "?backup_type=automatic")
    assert len(made) == 3
    assert {one["description"] for one in made} == {"Automatic daily backup"}
    assert {one["status"] for one in made} == {"completed"}
    assert [one["incremental"] for one in made] == [True, True, False]  # newest first
    slot = next_backup_slot_ms(cloud.settings, (await cloud.row(server)).uuid, 0) // 1000
    for one in made:
        hour, minute = int(one["created_at"][11:13]), int(one["created_at"][14:16])
        assert 0 <= hour * 3600 + minute * 60 + 59 - slot % DAY < 1800 + 60
    assert all(one["expires_at"] > one["created_at"] for one in made)


async def test_a_server_that_is_off_is_backed_up_too(cloud: Cloud) -> None:
    server = await _enabled(cloud, Status.STOPPED)
    await _pass(cloud, DAY)
    assert len(await _backups(cloud)) == 1
    assert await cloud.status(server) == "stopped"


async def test_days_that_were_missed_are_made_up_for_once(cloud: Cloud) -> None:
    await _enabled(cloud)
    cloud.clock.advance(5 * DAY)  # vpsd was off
    await _pass(cloud, 600, 60)
    assert len(await _backups(cloud)) == 1
    await _pass(cloud, 2 * DAY)
    assert len(await _backups(cloud)) == 3


async def test_servers_without_backups_enabled_get_none(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    await cloud.have_server("other")
    await _pass(cloud, DAY)
    await _enable(cloud, server, enabled=False)
    (kept,) = await _backups(cloud)
    await _pass(cloud, 10 * DAY)
    assert await _backups(cloud) == [kept]  # turning it off deletes nothing
    await _pass(cloud, 30 * DAY)
    assert await _backups(cloud) == []
    assert cloud.target.objects() == []


async def test_saying_twice_that_backups_are_wanted_moves_nothing(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    cloud.clock.advance(5 * DAY)
    await _enable(cloud, server, enabled=True)
    await _pass(cloud, 60)
    assert len(await _backups(cloud)) == 1  # what was missed is still made up for


async def test_old_backups_go_and_new_ones_stay_whole(cloud: Cloud) -> None:
    await _enabled(cloud)
    manual_of = (await cloud.get("/api/v1/servers/")).json()["results"][0]["id"]
    manual = await cloud.have_copy(manual_of)
    await _pass(cloud, 40 * DAY, 3 * 3600)
    left = await _backups(cloud, "?backup_type=automatic")
    assert 30 <= len(left) <= 32
    assert (await _backups(cloud, "?backup_type=manual"))[0]["id"] == manual["id"]
    answer = await cloud.post(f"/api/v1/backups/{left[-1]['id']}/restore/")
    assert answer.status_code == 200
    await cloud.work()
    assert await cloud.status(manual_of) == "active"


async def test_a_backup_waits_for_what_is_under_way(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    cloud.clock.advance(DAY)
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.backup_scheduler().schedule()
    assert await _backups(cloud) == []
    await cloud.work()
    await cloud.backup_scheduler().schedule()
    assert len(await _backups(cloud)) == 1


async def test_a_suspended_servers_backup_is_made_up_for_when_it_is_back(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    await cloud.force_status(server, Status.SUSPENDED)
    cloud.clock.advance(3 * DAY)
    await cloud.backup_scheduler().schedule()
    assert await _backups(cloud) == []
    await cloud.force_status(server, Status.ACTIVE)
    await cloud.backup_scheduler().schedule()
    await cloud.work()
    assert [one["status"] for one in await _backups(cloud)] == ["completed"]


async def test_a_customers_command_comes_before_an_automatic_backup(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    cloud.clock.advance(DAY)
    await cloud.backup_scheduler().schedule()
    asked = await cloud.post(f"/api/v1/servers/{server}/stop/")
    assert asked.status_code == 200, asked.text
    await cloud.work()
    assert await cloud.status(server) == "stopped"
    (given_up,) = await _backups(cloud)
    assert given_up["status"] == "failed"
    assert "gave way" in given_up["error"]
    assert not (await cloud.hypervisor.volumes()).exports
    await _pass(cloud, 3600, 600)
    (made,) = await _backups(cloud)  # made up for, and the one that gave way is not shown any more
    assert made["status"] == "completed"


async def test_a_manual_backup_is_not_pushed_aside(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.post(f"/api/v1/servers/{server}/backup/")
    refused = await cloud.post(f"/api/v1/servers/{server}/stop/")
    assert refused.json()["code"] == "busy"
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    (given_up,) = await _backups(cloud)
    assert given_up["status"] == "failed"
    await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == []


async def test_a_backup_that_failed_is_tried_again_before_the_next_day(cloud: Cloud) -> None:
    await _enabled(cloud)

    def away(_: str) -> None:
        raise Unavailable("The target does not answer.")

    cloud.target.before_call = away
    cloud.clock.advance(DAY)
    await _pass(cloud, 20 * 60, 20)
    (failed,) = await _backups(cloud)
    assert failed["status"] == "failed"
    assert "does not answer" in failed["error"]
    cloud.target.before_call = None
    await _pass(cloud, 3600, 600)
    (made,) = await _backups(cloud)
    assert made["status"] == "completed"


async def test_what_is_restored_from_stays_until_that_is_done(cloud: Cloud) -> None:
    server = await _enabled(cloud)
    await _pass(cloud, DAY)
    (backup,) = await _backups(cloud)
    await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
    cloud.clock.advance(40 * DAY)
    await cloud.backup_scheduler().schedule()
    refused = await cloud.ask("DELETE", f"/api/v1/backups/{backup['id']}/")
    assert refused.json()["code"] == "busy"
    async with cloud.writing() as ctx:  # the long wait was the test's
        await ctx.tx.run(Statement(update(operations).values(deadline_at_ms=None)))
    await cloud.work()
    assert await cloud.status(server) == "active"
    await cloud.backup_scheduler().schedule()
    assert [one["id"] for one in await _backups(cloud)] != [backup["id"]]


async def test_a_parent_is_not_collected_while_its_child_is_being_made(cloud: Cloud) -> None:
    server = await cloud.have_server()
    parent = await cloud.have_copy(server)
    cloud.hypervisor.writes(await cloud.disk(server), 0, b"new")

    def wait(call: str) -> None:
        if call == "put":
            raise Unavailable("The target does not answer.")

    cloud.target.before_call = wait
    child = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    await cloud.work()
    cloud.target.before_call = None
    assert (await cloud.ask("DELETE", f"/api/v1/backups/{parent['id']}/")).status_code == 204
    before = cloud.target.objects()
    await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == before
    await cloud.settle()
    await cloud.backup_scheduler().schedule()
    assert not any(parent["uuid"] in path and "manifest" in path for path in cloud.target.objects())
    assert (await cloud.post(f"/api/v1/backups/{child['id']}/restore/")).status_code == 200
    await cloud.work()
    assert await cloud.status(server) == "active"


async def test_two_schedulers_at_once_begin_one_backup(cloud: Cloud) -> None:
    await _enabled(cloud)
    cloud.clock.advance(DAY)
    await asyncio.gather(*(cloud.backup_scheduler().schedule() for _ in range(4)))
    await cloud.work()
    assert len(await _backups(cloud)) == 1
