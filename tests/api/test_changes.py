"""Power actions, resizing and rebuilding, as customers ask for them."""

import asyncio

import pytest

from tests.cloud import Cloud
from vpsd.billing.usage import _RENTALS as RENTALS
from vpsd.core.money import MICROS
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import Status

SERVERS = "/api/v1/servers/"
GIB = 1 << 30


@pytest.mark.parametrize(
    ("action", "before", "working", "after"),
    [
        ("start", Status.STOPPED, "starting", "active"),
        ("stop", Status.ACTIVE, "stopping", "stopped"),
        ("restart", Status.ACTIVE, "rebooting", "active"),
        ("hard_stop", Status.ACTIVE, "stopping", "stopped"),
    ],
)
async def test_power_does_what_the_official_client_asks_for(
    cloud: Cloud, action: str, before: Status, working: str, after: str
) -> None:
    server_id = await cloud.have_server(status=before)
    answer = await cloud.post(f"{SERVERS}{server_id}/power/", {"action": action})
    assert answer.status_code == 200
    assert answer.json()["server"] == {"id": server_id, "name": "web", "status": working}
    await cloud.settle()
    assert await cloud.status(server_id) == after


async def test_a_power_action_that_there_is_not_is_named_with_those_that_there_are(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    answer = await cloud.post(f"{SERVERS}{server_id}/power/", {"action": "explode"})
    assert answer.status_code == 400
    assert answer.json() == {"action": ["Give one of start, stop, restart, hard_stop."]}


async def test_a_hard_stop_asks_nobody(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    cloud.hypervisor.ignores_acpi = True
    began = cloud.clock.now_ms()
    await cloud.post(f"{SERVERS}{server_id}/power/", {"action": "hard_stop"})
    await cloud.work()
    assert await cloud.status(server_id) == "stopped"
    assert cloud.clock.now_ms() == began
    assert (await cloud.operations(server_id))[-1]["detail"] == "powered off without a shutdown"


async def test_who_loses_patience_with_a_stop_pulls_the_plug(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    cloud.hypervisor.ignores_acpi = True
    await cloud.post(f"{SERVERS}{server_id}/stop/")
    assert (await cloud.post(f"{SERVERS}{server_id}/power/", {"action": "hard_stop"})).status_code == 200
    await cloud.settle()
    assert await cloud.status(server_id) == "stopped"
    assert [(entry["command"], entry["status"]) for entry in (await cloud.operations(server_id))[1:]] == [
        ("stop", "cancelled"),
        ("hard_stop", "succeeded"),
    ]


async def test_a_running_server_is_resized_by_one_reboot_and_its_disk_grows(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    address = (await cloud.row(server_id)).ip_address
    answer = await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 3})
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "success",
        "message": "Server is being resized. It reboots once.",
        "server": {"id": server_id, "name": "web", "status": "resizing"},
        "operation": {"id": (await cloud.operations(server_id))[-1]["id"], "status": "queued"},
    }
    await cloud.settle()
    detail = (await cloud.get(f"{SERVERS}{server_id}/")).json()
    assert (detail["status"], detail["plan"]["name"], detail["ip_address"]) == ("active", "Starter VPS", address)
    assert cloud.hypervisor.disk_bytes(await cloud.disk(server_id)) == 40 * GIB
    assert cloud.hypervisor.spec(cloud.guest(server_id)).memory_mb == 2048


async def test_a_disk_alone_grows_under_the_running_guest_and_nothing_reboots(cloud: Cloud) -> None:
    await cloud.offer(5, storage_gb=5)
    server_id = await cloud.have_server()
    cloud.hypervisor.calls.clear()
    answer = (await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 5})).json()
    assert (answer["server"]["status"], "while it runs" in answer["message"]) == ("resizing", True)
    await cloud.work()
    assert await cloud.status(server_id) == "active"
    assert cloud.hypervisor.disk_bytes(await cloud.disk(server_id)) == 5 * GIB
    assert not {"request_shutdown", "power_off", "power_on", "define"} & set(cloud.hypervisor.calls)
    assert (await cloud.get(f"{SERVERS}{server_id}/")).json()["plan"]["storage"] == 5


@pytest.mark.parametrize("more", [{"vcpus": 2}, {"memory_mb": 512}, {"vcpus": 2, "storage_gb": 2}])
async def test_whatever_else_changes_with_the_disk_needs_the_reboot(cloud: Cloud, more: dict[str, int]) -> None:
    await cloud.offer(5, **{"storage_gb": 5, **more})
    server_id = await cloud.have_server()
    answer = (await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 5})).json()
    assert answer["message"] == "Server is being resized. It reboots once."
    await cloud.settle()
    assert cloud.hypervisor.calls.count("power_on") == 2


async def test_a_guest_that_went_down_while_its_disk_grew_is_found_stopped(cloud: Cloud) -> None:
    await cloud.offer(5, storage_gb=5)
    server_id = await cloud.have_server()
    await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 5})
    cloud.hypervisor.happens(cloud.guest(server_id), PowerState.OFF)
    await cloud.settle()
    assert await cloud.status(server_id) == "stopped"
    assert cloud.hypervisor.disk_bytes(await cloud.disk(server_id)) == 5 * GIB


async def test_a_stopped_server_has_its_new_size_when_it_starts(cloud: Cloud) -> None:
    server_id = await cloud.have_server(status=Status.STOPPED)
    plan = next(plan for plan in (await cloud.get("/api/v1/plans/")).json()["results"] if plan["slug"] == "starter")
    answer = await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan": plan["uuid"]})
    assert answer.status_code == 200
    assert "when it starts" in answer.json()["message"]
    assert answer.json()["server"]["status"] == "stopped"
    assert await cloud.work() == 0
    await cloud.post(f"{SERVERS}{server_id}/start/")
    await cloud.settle()
    assert cloud.hypervisor.disk_bytes(await cloud.disk(server_id)) == 40 * GIB


async def test_what_a_server_costs_changes_at_the_moment_of_the_resize(cloud: Cloud) -> None:
    began = cloud.clock.now_ms()
    server_id = await cloud.have_server()
    cloud.clock.advance(1800)
    moment = cloud.clock.now_ms()
    await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 3})
    await cloud.settle()
    async with cloud.reading("alice") as ctx:
        found = await ctx.tx.all(RENTALS, account_id=ctx.account_id, start_ms=0, end_ms=2**60)
    assert [(rental.plan_id, rental.price_monthly_micros, rental.from_ms, rental.to_ms) for rental in found] == [
        (4, 2 * MICROS, began, moment),
        (3, 5 * MICROS, moment, None),
    ]


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({}, "plan_id", "Give the new plan"),
        ({"plan_id": 1, "plan": "x"}, "plan_id", "Give the new plan"),
        ({"plan_id": 99}, "plan_id", "There is no plan 99"),
        ({"plan": "no-such-uuid"}, "plan", "There is no plan no-such-uuid"),
        ({"plan_id": 3}, "plan_id", "has the plan Starter VPS already"),
        ({"plan_id": 4}, "plan_id", "A disk cannot shrink (2 GB instead of 40). Choose a plan with at least 40 GB."),
    ],
)
async def test_a_plan_that_cannot_be_is_refused_with_the_way_out(
    cloud: Cloud, body: dict[str, object], field: str, text: str
) -> None:
    server_id = await cloud.create(plan_id=3)
    await cloud.work()
    answer = await cloud.post(f"{SERVERS}{server_id}/resize/", body)
    assert answer.status_code == 400
    assert text in answer.json()[field][0]


async def test_a_resize_needs_credit_and_room_and_quota_for_what_is_more(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await cloud.have_balance(MICROS // 10)
    answer = await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 3})
    assert (answer.status_code, answer.json()["code"]) == (402, "payment_required")
    await cloud.have_balance(MICROS)
    assert (await cloud.post(f"{SERVERS}{server_id}/resize/?dry_run=1", {"plan_id": 3})).json()["price"]["monthly"] == 5
    assert (await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": 3})).status_code == 200
    await cloud.settle()
    assert (await cloud.row(server_id)).plan_id == 3


async def test_a_server_is_rebuilt_with_a_new_disk_and_keeps_the_rest(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    before = await cloud.row(server_id)
    answer = await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": 3})
    assert answer.status_code == 200
    told = answer.json()
    assert len(told["password"]) == 20
    assert told["server"]["status"] == "rebuilding"
    await cloud.settle()
    after = await cloud.row(server_id)
    assert (after.status, after.os_id, after.uuid, after.name) == ("active", 3, before.uuid, before.name)
    assert (after.ip_address, after.plan_id) == (before.ip_address, before.plan_id)
    assert after.base != before.base
    assert after.root_password_hash != before.root_password_hash
    calls = cloud.hypervisor.calls
    assert calls.index("remove") < len(calls) - calls[::-1].index("ensure_disk")


async def test_an_image_that_cannot_be_had_costs_no_disk(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": 3})

    def no_base(call: str) -> None:
        if call == "ensure_base":
            raise OSError("no space left")

    cloud.hypervisor.before_call = no_base
    await cloud.settle()
    rebuilt = (await cloud.operations(server_id))[1]
    assert (rebuilt["command"], rebuilt["status"]) == ("rebuild", "failed")
    assert rebuilt["error"].endswith("vpsd met an error of its own; the operator can see which.")
    assert "no space left" in ((await cloud.causes(server_id))[1] or "")
    row = await cloud.row(server_id)
    assert (row.status, row.os_id) == ("active", 1)  # its guest never stopped
    assert "remove" not in cloud.hypervisor.calls


async def test_a_rebuild_may_push_aside_a_new_hostnames_way(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await cloud.ask("PATCH", f"{SERVERS}{server_id}/", json={"hostname": "new.example.com"})
    runner = cloud.runner()
    claimed = await runner._claim()
    assert claimed is not None
    assert (await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": 3})).status_code == 200
    await runner.work(*claimed)
    await cloud.settle()
    row = await cloud.row(server_id)
    assert (row.status, row.os_id, row.seed_hostname) == ("active", 3, "new.example.com")


async def test_a_rebuild_starts_a_server_and_needs_credit_like_a_start(cloud: Cloud) -> None:
    server_id = await cloud.have_server(status=Status.STOPPED)
    await cloud.have_balance(0)
    answer = await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": 3})
    assert (answer.status_code, answer.json()["code"]) == (402, "payment_required")


async def test_two_resizes_at_once_are_one_after_the_other_or_refused(cloud: Cloud) -> None:
    server_id = await cloud.have_server(status=Status.STOPPED)
    answers = await asyncio.gather(
        *(cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": plan_id}) for plan_id in (2, 3))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 400]
    assert answers[0].status_code == 200 or "same moment" in answers[0].text
    assert (await cloud.row(server_id)).storage_gb in (40, 160)
