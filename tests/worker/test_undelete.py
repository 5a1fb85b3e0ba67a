"""Deletions that can be undone: what a server keeps, what brings it back, and when it is gone for good."""

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from tests.api.tables import rows
from tests.billing.books import assert_right, have_connections
from tests.cloud import Cloud
from tests.idempotency.posts import Stumbling
from tests.killed import Killed
from vpsd.audit import Audit
from vpsd.core.clock import iso_utc
from vpsd.core.db import Statement
from vpsd.errors import Unavailable
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import Status
from vpsd.operations.service import LEASE_SECONDS
from vpsd.servers.models import servers
from vpsd.worker.biller import Biller

SERVERS = "/api/v1/servers/"
HOUR = 3600
BACK = [Status.ACTIVE, Status.STOPPED, Status.SUSPENDED, Status.ERROR]


async def delete(cloud: Cloud, server: int, query: str = "", status_code: int = 204) -> None:
    answer = await cloud.ask("DELETE", f"{SERVERS}{server}/{query}")
    assert answer.status_code == status_code, answer.text


async def undelete(cloud: Cloud, server: int) -> Any:
    answer = await cloud.post(f"{SERVERS}{server}/undelete/")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def deleted(cloud: Cloud, status: Status = Status.ACTIVE, name: str = "web") -> int:
    """A server that was deleted a moment ago, and has come to rest."""
    cloud.set(undelete_hours=24)
    server = await cloud.have_server(name, status)
    await delete(cloud, server)
    await cloud.settle()
    assert await cloud.status(server) == "deleted"
    return server


async def power(cloud: Cloud, server: int) -> PowerState | None:
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    return None if guest is None else guest.power


async def test_a_deleted_server_is_shut_down_and_keeps_what_it_has_and_is_seen(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server()
    before = await cloud.row(server)
    end = iso_utc(cloud.clock.now_ms() + 24 * HOUR * 1000)
    await delete(cloud, server)
    detail = (await cloud.get(f"{SERVERS}{server}/")).json()
    assert (detail["status"], detail["delete_at"]) == ("deleting", end)
    await cloud.settle()
    (listed,) = (await cloud.get(f"{SERVERS}?status=deleted")).json()["results"]
    assert (listed["status"], listed["delete_at"], listed["ip_address"]) == ("deleted", end, before.ip_address)
    assert await power(cloud, server) is PowerState.OFF
    assert [held.server_id for held in await cloud.addresses()] == [server]
    assert (await rows(cloud.database, "rentals"))[0]["to_ms"] is None
    assert (await cloud.operations(server))[-1]["detail"] == "shut down by ACPI"
    (event,) = [e for e in await rows(cloud.database, "events") if e["action"] == "server.delete"]
    assert event["detail"] == f"It can be undeleted until {end}."


@pytest.mark.parametrize("before", BACK)
async def test_an_undeleted_server_is_what_it_was(cloud: Cloud, before: Status) -> None:
    server = await deleted(cloud, before)
    disks = cloud.hypervisor.calls.count("ensure_disk")
    answer = await undelete(cloud, server)
    assert answer["server"]["status"] == ("starting" if before is Status.ACTIVE else before)
    if before is Status.SUSPENDED:
        assert await cloud.work() == 0
    else:
        await cloud.settle()
    detail = (await cloud.get(f"{SERVERS}{server}/")).json()
    assert (detail["status"], detail["delete_at"]) == (before, None)
    assert await power(cloud, server) is (PowerState.RUNNING if before is Status.ACTIVE else PowerState.OFF)
    assert cloud.hypervisor.calls.count("ensure_disk") == disks
    cloud.clock.advance(25 * HOUR)
    await cloud.biller().bill()
    assert (await cloud.row(server)).deleted_at_ms is None


async def test_what_was_off_is_deleted_and_undeleted_without_an_operation(cloud: Cloud) -> None:
    server = await deleted(cloud, Status.STOPPED)
    await undelete(cloud, server)
    assert [o["command"] for o in await cloud.operations(server)] == ["create", "stop"]


async def test_why_a_server_is_in_error_is_still_known_when_it_is_undeleted(cloud: Cloud) -> None:
    cloud.set(undelete_hours=1)
    server = await cloud.have_server()
    cloud.hypervisor.loses_disk(await cloud.disk(server))
    cloud.hypervisor.vanishes(cloud.guest(server))
    await cloud.settle()
    before = await cloud.row(server)
    await delete(cloud, server)
    await undelete(cloud, server)
    after = await cloud.row(server)
    assert (after.status, after.error) == ("error", before.error)


async def test_one_that_still_shuts_down_may_be_undeleted_and_boots_when_it_is_down(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server()
    cloud.hypervisor.ignores_acpi = True  # it has heard the button, and takes its time
    await delete(cloud, server)

    def dies(call: str) -> None:
        if call == "request_shutdown":
            raise Killed

    cloud.hypervisor.after_call = dies
    with pytest.raises(Killed):
        await cloud.work("first")
    cloud.hypervisor.after_call = None
    assert (await undelete(cloud, server))["server"]["status"] == "starting"
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    assert await cloud.status(server) == "active"
    told = [(o["command"], o["status"]) for o in await cloud.operations(server)]
    assert told == [("create", "succeeded"), ("retire", "cancelled"), ("undelete", "succeeded")]
    assert cloud.hypervisor.calls.count("power_off") == 1  # or it would go down after all


@pytest.mark.parametrize(("action", "rests"), [("stop", "stopped"), ("restart", "active")])
async def test_deleted_and_undeleted_in_the_middle_of_a_command_it_goes_where_that_led(
    cloud: Cloud, action: str, rests: str
) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server()
    await cloud.post(f"{SERVERS}{server}/power/", {"action": action})
    runner = cloud.runner()
    claimed = await runner._claim()  # a worker has it in hand
    assert claimed is not None
    for _ in range(2):
        await delete(cloud, server)
        await undelete(cloud, server)
    await runner.work(*claimed)
    await cloud.settle()
    assert await cloud.status(server) == rests


async def test_a_suspension_under_way_goes_on_after_an_undelete(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24, grace_hours=0)
    server = await cloud.have_server()
    await cloud.have_balance(0)
    await cloud.biller().bill()
    assert await cloud.status(server) == "stopping"
    await delete(cloud, server)
    await undelete(cloud, server)
    await cloud.settle()
    assert await cloud.status(server) == "suspended"
    await cloud.have_balance(10**6)
    await cloud.biller().bill()
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_a_rebuild_that_was_deleted_when_its_old_disk_was_gone_is_done_by_the_undelete(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server()
    await cloud.post(f"{SERVERS}{server}/rebuild/", {"os_id": 3})

    def no_disk(call: str) -> None:
        if call == "ensure_disk":
            raise Unavailable("no space left")

    cloud.hypervisor.before_call = no_disk
    await cloud.work()
    cloud.hypervisor.before_call = None
    assert (await cloud.row(server)).provisioned_at_ms is None
    await delete(cloud, server)
    await cloud.settle()
    assert await cloud.status(server) == "deleted"
    await undelete(cloud, server)
    await cloud.settle()
    row = await cloud.row(server)
    assert (row.status, row.os_id) == ("active", 3)


@pytest.mark.parametrize("path", ["start", "stop", "reboot", "rebuild", "resize", "power"])
async def test_every_other_command_is_told_of_undelete_and_until_when(cloud: Cloud, path: str) -> None:
    server = await deleted(cloud)
    body = {"rebuild": {"os_id": 1}, "resize": {"plan_id": 3}, "power": {"action": "hard_stop"}}.get(path)
    answer = await cloud.post(f"{SERVERS}{server}/{path}/", body)
    end = iso_utc((await cloud.row(server)).purge_due_at_ms or 0)
    assert (answer.status_code, answer.json()["code"]) == (400, "wrong_status")
    assert answer.json()["detail"] == (
        f"The server is deleted, and gone for ever at {end}. Undelete it: POST {SERVERS}{server}/undelete/."
    )


async def test_it_may_be_renamed_but_is_too_late_to_protect(cloud: Cloud) -> None:
    server = await deleted(cloud)
    one = f"{SERVERS}{server}/"
    assert (await cloud.ask("PATCH", one, json={"name": "old", "hostname": "old", "tags": ["x"]})).status_code == 200
    answer = await cloud.ask("PATCH", one, json={"protected": True})
    assert (answer.status_code, answer.json()["code"]) == (400, "wrong_status")
    assert "Undelete it" in answer.json()["detail"]
    assert await cloud.work() == 0


async def test_undelete_needs_a_server_that_is_deleted(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server()
    answer = await cloud.post(f"{SERVERS}{server}/undelete/")
    assert answer.status_code == 400
    assert "undelete needs it to be deleted or deleting" in answer.json()["detail"]


async def test_one_that_ran_needs_credit_to_come_back_and_one_that_was_stopped_needs_none(cloud: Cloud) -> None:
    runs, rests = await deleted(cloud, name="runs"), await deleted(cloud, Status.STOPPED, "rests")
    await cloud.have_balance(0)
    for query in ("?dry_run=1", ""):
        answer = await cloud.post(f"{SERVERS}{runs}/undelete/{query}")
        assert (answer.status_code, answer.json()["code"]) == (402, "payment_required")
    assert await cloud.status(runs) == "deleted"
    await undelete(cloud, rests)
    assert await cloud.status(rests) == "stopped"


async def test_a_second_delete_changes_nothing(cloud: Cloud) -> None:
    server = await deleted(cloud)
    before = (await cloud.row(server), len(await rows(cloud.database, "events")))
    cloud.clock.advance(HOUR)
    await delete(cloud, server)
    assert (await cloud.row(server), len(await rows(cloud.database, "events"))) == before
    assert await cloud.work() == 0


@pytest.mark.parametrize("query", ["?now=true", "?now=1"])
async def test_now_means_for_ever_within_the_time_and_without(cloud: Cloud, query: str) -> None:
    in_it = await deleted(cloud, name="in-it")
    fresh = await cloud.have_server("fresh")
    for server in (in_it, fresh):
        await delete(cloud, server, query)
        assert (await cloud.get(f"{SERVERS}{server}/")).status_code == 404
        assert (await cloud.post(f"{SERVERS}{server}/undelete/")).status_code == 404
    await cloud.settle()
    assert await cloud.hypervisor.guests() == {}
    assert await cloud.addresses() == []
    await assert_right(cloud)


async def test_now_has_to_be_true_or_false_and_a_delete_cannot_be_tried(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for query, field in (("?now=yes!", "now"), ("?dry_run=1", "dry_run"), ("?now=1&dry_run=1", "dry_run")):
        answer = await cloud.ask("DELETE", f"{SERVERS}{server}/{query}")
        assert (answer.status_code, set(answer.json())) == (400, {field})
    assert await cloud.status(server) == "active"


async def test_protection_comes_before_all_of_it(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.create(protected=True)
    await cloud.work()
    for query in ("", "?now=true"):
        await delete(cloud, server, query, 409)


async def test_a_server_that_never_worked_is_gone_at_once(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.create()
    await delete(cloud, server)
    assert (await cloud.get(f"{SERVERS}{server}/")).status_code == 404


async def test_without_a_time_to_undo_a_delete_is_final(cloud: Cloud) -> None:
    assert cloud.settings.undelete_hours == 0
    server = await cloud.have_server()
    await delete(cloud, server)
    assert (await cloud.get(f"{SERVERS}{server}/")).status_code == 404


async def test_when_the_time_is_over_it_is_purged_and_paid_until_then_and_not_a_second_sooner(cloud: Cloud) -> None:
    server = await deleted(cloud)
    end_ms = (await cloud.row(server)).purge_due_at_ms or 0
    cloud.clock.advance((end_ms - cloud.clock.now_ms()) / 1000 - 1)
    await cloud.biller().bill()
    assert await cloud.status(server) == "deleted"
    cloud.clock.advance(1)
    await cloud.biller().bill()
    assert (await cloud.get(f"{SERVERS}{server}/")).status_code == 404
    assert (await rows(cloud.database, "rentals"))[0]["to_ms"] == end_ms
    await cloud.settle()
    assert (await cloud.row(server)).purged_at_ms is not None
    assert await cloud.hypervisor.guests() == {}
    assert [e["actor"] for e in await rows(cloud.database, "events") if e["action"] == "server.delete"] == [
        "token",
        "vpsd",
    ]
    await cloud.biller().bill()
    assert await cloud.work() == 0
    await assert_right(cloud)


async def test_one_whose_host_is_away_while_its_time_ends_is_removed_when_the_host_is_back(cloud: Cloud) -> None:
    cloud.set(undelete_hours=1)
    server = await cloud.have_server()
    cloud.hypervisor.broken = True
    await delete(cloud, server)
    await cloud.work()
    cloud.clock.advance(HOUR)
    await cloud.biller().bill()
    cloud.hypervisor.broken = False
    await cloud.settle()
    assert (await cloud.row(server)).purged_at_ms is not None
    assert await cloud.hypervisor.guests() == {}


async def test_an_undelete_between_the_look_and_the_deed_keeps_its_server(cloud: Cloud) -> None:
    server = await deleted(cloud)
    cloud.clock.advance(24 * HOUR)
    late = Stumbling(cloud.database)
    late.before[1] = lambda: undelete(cloud, server)
    await Biller(msgspec.structs.replace(cloud.runtime, database=late)).bill()
    assert (await cloud.row(server)).deleted_at_ms is None
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_of_an_undelete_and_the_end_at_the_same_moment_one_wins_whole(cloud: Cloud) -> None:
    await have_connections(cloud)
    for number in range(5):
        server = await deleted(cloud, name=f"web-{number}")
        cloud.clock.advance(24 * HOUR)
        _, answer = await asyncio.gather(cloud.biller().bill(), cloud.post(f"{SERVERS}{server}/undelete/"))
        await cloud.settle()
        row = await cloud.row(server)
        if answer.status_code == 200:
            assert (row.status, row.deleted_at_ms) == ("active", None)
        else:
            assert (answer.status_code, row.purged_at_ms is not None) == (404, True)
        await delete(cloud, server, "?now=1", 204 if answer.status_code == 200 else 404)
        await cloud.settle()
    await assert_right(cloud)


async def test_credit_that_comes_or_goes_neither_starts_nor_suspends_nor_deletes_it(cloud: Cloud) -> None:
    cloud.set(undelete_hours=8760, grace_hours=0, delete_unpaid_after_days=1)
    server = await cloud.have_server()
    await delete(cloud, server)
    await cloud.settle()
    await cloud.have_balance(0)
    for _ in range(3):
        cloud.clock.advance(48 * HOUR)
        await cloud.biller().bill()
        assert await cloud.work() == 0
    await cloud.have_balance(10**9)
    await cloud.biller().bill()
    assert await cloud.work() == 0
    assert await cloud.status(server) == "deleted"


async def test_a_guest_that_somebody_starts_is_shut_down_again(cloud: Cloud) -> None:
    server = await deleted(cloud, Status.STOPPED)
    cloud.clock.advance(1)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.RUNNING)
    await cloud.settle()
    assert await cloud.status(server) == "deleted"
    assert await power(cloud, server) is PowerState.OFF
    await undelete(cloud, server)
    assert await cloud.status(server) == "stopped"


async def test_it_counts_against_quota_and_capacity_until_it_is_gone(cloud: Cloud) -> None:
    await deleted(cloud)
    assert (await cloud.get(SERVERS)).json()["count"] == 1
    usage = (await cloud.get("/api/v1/account/usage/")).json()
    assert [entry["server"]["name"] for entry in usage["servers"]] == ["web"]
    assert (await cloud.get("/api/v1/account/balance/")).json()["price_monthly"] > 0


async def test_check_knows_a_deleted_server_and_mends_one_that_nothing_shuts_down(cloud: Cloud) -> None:
    server = await deleted(cloud)
    assert await Audit(cloud.runtime).run() == []
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(update(servers).values(status="deleting")))
    (found,) = await Audit(cloud.runtime, fix=True).run()
    assert (found.text, found.fixed) == ("is deleting, and nothing is under way", "its shutdown is queued")
    await cloud.settle()
    assert await cloud.status(server) == "deleted"
    cloud.hypervisor.loses_disk(await cloud.disk(server))
    (found,) = await Audit(cloud.runtime, fix=True).run()
    assert (found.text, await cloud.status(server)) == ("has no disk on the host", "deleted")


@pytest.mark.parametrize("before", [Status.STOPPED, Status.SUSPENDED, Status.ERROR])
async def test_one_that_was_left_deleting_with_nothing_under_way_is_where_it_was(cloud: Cloud, before: Status) -> None:
    cloud.set(undelete_hours=1)
    server = await cloud.have_server(status=before)
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.force_status(server, Status.DELETING)
    answer = await cloud.post(f"/api/v1/servers/{server}/undelete/")
    assert (answer.status_code, answer.json()["server"]["status"]) == (200, before)
    assert answer.json()["operation"] is None
    assert await cloud.status(server) == before
