"""Guests that the host pauses because its storage fails them: said, resumed, and never power-cycled."""

from typing import Any

import pytest

from tests.cloud import Cloud
from vpsd.audit import Audit
from vpsd.hosts import service as hosts
from vpsd.hypervisor.protocol import PauseReason, PowerState
from vpsd.lifecycle import Status
from vpsd.operations import history
from vpsd.servers import seen
from vpsd.worker.host_watcher import HostWatcher
from vpsd.worker.pauses import Pauses

SERVERS = "/api/v1/servers/"
REASONS = list(PauseReason)


def storage(cloud: Cloud, reason: PauseReason, *, well: bool) -> None:
    """Have the storage fail in that way, or be well again."""
    if reason is PauseReason.STORAGE_FULL:
        cloud.hypervisor.storage.free_mb = 1 << 27 if well else 0
    else:
        cloud.hypervisor.storage.fails = not well


async def pause(cloud: Cloud, server: int, reason: PauseReason) -> None:
    """The guest writes, and its storage fails it."""
    storage(cloud, reason, well=False)
    cloud.hypervisor.meets_its_storage(cloud.guest(server))


async def power(cloud: Cloud, server: int) -> PowerState:
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    return guest.power


async def events(cloud: Cloud) -> list[tuple[str, str]]:
    """What was told of pauses, oldest first."""
    found = (await cloud.get("/api/v1/account/events/?page_size=100")).json()["results"]
    return [(one["action"], one["detail"]) for one in reversed(found) if "paused" in one["action"]]


async def pass_time(cloud: Cloud, reconciler: Any, seconds: int) -> None:
    """Let the reconciler look every two seconds, and the workers work."""
    for _ in range(seconds // 2):
        cloud.clock.advance(2)
        await reconciler.reconcile()
        await cloud.work()


@pytest.mark.parametrize("reason", REASONS)
async def test_it_stays_active_is_told_once_and_goes_on_by_itself(cloud: Cloud, reason: PauseReason) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    await pause(cloud, server, reason)
    cloud.hypervisor.calls.clear()
    await pass_time(cloud, reconciler, 3600)
    row = await cloud.row(server)
    assert (row.status, row.status_detail) == ("active", reason.text)
    assert await power(cloud, server) is PowerState.PAUSED
    assert await events(cloud) == [("server.paused", reason.text)]
    assert not {"power_off", "power_on", "define"} & set(cloud.hypervisor.calls)
    assert cloud.hypervisor.calls.count("resume") <= 70  # it backs off
    assert [one["command"] for one in await cloud.operations(server)] == ["create"]
    storage(cloud, reason, well=True)
    await pass_time(cloud, reconciler, 90)
    row = await cloud.row(server)
    assert (row.status, row.status_detail) == ("active", None)
    assert await power(cloud, server) is PowerState.RUNNING
    assert await events(cloud) == [
        ("server.paused", reason.text),
        ("server.unpaused", f"It goes on. Before: {reason.text}"),
    ]
    assert not {"power_off", "power_on", "define"} & set(cloud.hypervisor.calls)


async def test_a_full_pool_is_not_tried_until_there_is_room(cloud: Cloud) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    await pause(cloud, server, PauseReason.STORAGE_FULL)
    cloud.hypervisor.storage.free_mb = 31
    cloud.hypervisor.calls.clear()
    await pass_time(cloud, reconciler, 60)
    assert "resume" not in cloud.hypervisor.calls
    assert cloud.hypervisor.calls.count("facts") <= 12
    cloud.hypervisor.storage.free_mb = 32
    await pass_time(cloud, reconciler, 20)
    assert cloud.hypervisor.calls.count("resume") == 1
    assert await power(cloud, server) is PowerState.RUNNING


async def test_one_that_fails_again_at_once_is_not_told_again(cloud: Cloud) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    for _ in range(4):
        await pause(cloud, server, PauseReason.STORAGE_FULL)
        await pass_time(cloud, reconciler, 4)
        storage(cloud, PauseReason.STORAGE_FULL, well=True)
        for _ in range(200):
            if await power(cloud, server) is PowerState.RUNNING:
                break
            await pass_time(cloud, reconciler, 2)
        await pass_time(cloud, reconciler, 2)
    assert len(await events(cloud)) == 1


async def test_several_workers_tell_it_once(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await pause(cloud, server, PauseReason.IO_ERROR)
    async with cloud.reading() as ctx:
        rows = await seen.page(ctx, cloud.runtime.host_id)
    for _ in range(3):  # who looked at the same moment
        await Pauses(cloud.runtime).look(rows, await cloud.hypervisor.guests(), everything=True)
    assert len(await events(cloud)) == 1


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("action", ["create", "start", "reboot"])
async def test_a_boot_that_meets_it_waits_and_goes_on_where_it_was(
    cloud: Cloud, action: str, reason: PauseReason
) -> None:
    server = await (cloud.create() if action == "create" else cloud.have_server())
    reconciler = cloud.reconciler()
    if action == "start":
        await cloud.post(f"{SERVERS}{server}/stop/")
        await cloud.work()
    if action != "create":
        await cloud.post(f"{SERVERS}{server}/{action}/")

    def fails_the_boot(call: str) -> None:
        if call == "power_on":
            storage(cloud, reason, well=False)

    cloud.hypervisor.before_call = fails_the_boot
    await cloud.work()
    cloud.hypervisor.before_call = None
    cloud.hypervisor.calls.clear()
    await pass_time(cloud, reconciler, 120)
    (operation,) = [one for one in await cloud.operations(server) if one["status"] == "queued"]
    assert operation["error"] == reason.text
    assert (await cloud.row(server)).status_detail == reason.text
    storage(cloud, reason, well=True)
    await pass_time(cloud, reconciler, 120)
    assert await cloud.status(server) == "active"
    assert not {"power_off", "power_on"} & set(cloud.hypervisor.calls)
    assert (await cloud.operations(server))[-1]["status"] == "succeeded"


@pytest.mark.parametrize("action", ["start", "nothing"])
async def test_a_boot_that_waited_too_long_rests_in_error_and_is_still_not_cut(cloud: Cloud, action: str) -> None:
    server, reconciler = await cloud.create(), cloud.reconciler()

    def fails_the_boot(call: str) -> None:
        if call == "power_on":
            storage(cloud, PauseReason.STORAGE_FULL, well=False)

    cloud.hypervisor.before_call = fails_the_boot
    await cloud.work()
    cloud.hypervisor.before_call = None
    cloud.hypervisor.calls.clear()
    await pass_time(cloud, reconciler, 1200)
    row = await cloud.row(server)
    assert (row.status, PauseReason.STORAGE_FULL.text in (row.error or "")) == ("error", True)
    if action == "start":
        await cloud.post(f"{SERVERS}{server}/start/")
        await pass_time(cloud, reconciler, 30)
    storage(cloud, PauseReason.STORAGE_FULL, well=True)
    await pass_time(cloud, reconciler, 120)
    assert await cloud.status(server) == "active"
    assert "power_off" not in cloud.hypervisor.calls


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize(("action", "rests"), [("stop", "stopped"), ("suspend", "suspended"), ("delete", "deleted")])
async def test_what_shall_be_off_is_powered_off_when_its_time_to_shut_down_is_over(
    cloud: Cloud, action: str, rests: str, reason: PauseReason
) -> None:
    server = await cloud.have_server()
    await pause(cloud, server, reason)
    await take_off(cloud, server, action)
    cloud.hypervisor.calls.clear()
    begun_ms = cloud.clock.now_ms()

    def too_early(call: str) -> None:
        assert call != "power_off" or cloud.clock.now_ms() - begun_ms >= cloud.settings.stop_timeout_seconds * 1000

    cloud.hypervisor.before_call = too_early
    await cloud.work()
    assert (await power(cloud, server), await cloud.status(server)) == (PowerState.OFF, rests)
    assert cloud.hypervisor.calls.count("power_off") == 1
    async with cloud.reading() as ctx:
        operation = await history.last(ctx, server)
    assert operation is not None
    assert operation.detail == f"did not shut down by ACPI within 90 s ({reason.text}): powered off"


async def take_off(cloud: Cloud, server: int, action: str) -> None:
    """Have a server go off: asked to, for lack of credit, or because it is deleted."""
    if action == "suspend":
        cloud.set(grace_hours=0)
        await cloud.have_balance(0)
        await cloud.biller().bill()
    elif action == "delete":
        cloud.set(undelete_hours=1)
        await cloud.ask("DELETE", f"{SERVERS}{server}/")
    else:
        await cloud.post(f"{SERVERS}{server}/{action}/")


@pytest.mark.parametrize("action", ["stop", "suspend", "delete"])
async def test_one_that_goes_on_in_time_shuts_down_by_itself(cloud: Cloud, action: str) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    await pause(cloud, server, PauseReason.STORAGE_FULL)
    await take_off(cloud, server, action)
    begun_ms = cloud.clock.now_ms()

    async def goes_on(call: str) -> None:
        if call == "guest" and cloud.clock.now_ms() - begun_ms >= 60_000:
            cloud.hypervisor.before_call = None
            storage(cloud, PauseReason.STORAGE_FULL, well=True)
            await reconciler.reconcile()

    cloud.hypervisor.calls.clear()
    cloud.hypervisor.before_call = goes_on
    await cloud.work()
    assert await power(cloud, server) is PowerState.OFF
    assert "power_off" not in cloud.hypervisor.calls


@pytest.mark.parametrize("action", ["reboot", "resize"])
async def test_what_is_to_run_again_waits_until_it_goes_on(cloud: Cloud, action: str) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    await pause(cloud, server, PauseReason.STORAGE_FULL)
    await cloud.post(f"{SERVERS}{server}/{action}/", {"plan_id": 3} if action == "resize" else None)
    cloud.hypervisor.calls.clear()
    await pass_time(cloud, reconciler, 300)
    assert await power(cloud, server) is PowerState.PAUSED
    assert (await cloud.operations(server))[-1]["error"] == PauseReason.STORAGE_FULL.text
    storage(cloud, PauseReason.STORAGE_FULL, well=True)
    await pass_time(cloud, reconciler, 120)
    assert "power_off" not in cloud.hypervisor.calls
    assert await cloud.status(server) == "active"
    assert (await cloud.row(server)).status_detail is None


async def test_a_hard_stop_and_a_delete_do_not_wait(cloud: Cloud) -> None:
    server, other = await cloud.have_server(), await cloud.have_server("other")
    for one in (server, other):
        await pause(cloud, one, PauseReason.STORAGE_FULL)
    await cloud.post(f"{SERVERS}{server}/power/", {"action": "hard_stop"})
    await cloud.ask("DELETE", f"{SERVERS}{other}/")
    await pass_time(cloud, cloud.reconciler(), 4)
    assert (await cloud.status(server), await power(cloud, server)) == ("stopped", PowerState.OFF)
    assert await cloud.hypervisor.guest(cloud.guest(other)) is None
    assert (await cloud.row(server)).status_detail is None


async def test_a_guest_that_shall_be_off_is_not_resumed(cloud: Cloud) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    await pause(cloud, server, PauseReason.IO_ERROR)
    await cloud.force_status(server, Status.SUSPENDED)
    cloud.hypervisor.calls.clear()
    await pass_time(cloud, reconciler, 30)
    assert "resume" not in cloud.hypervisor.calls


async def test_a_backup_of_one_says_why_it_cannot_be(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await pause(cloud, server, PauseReason.IO_ERROR)
    backup = (await cloud.post(f"{SERVERS}{server}/backup/")).json()
    await cloud.work()
    found = (await cloud.get(f"/api/v1/backups/{backup['id']}/")).json()
    assert (found["status"], await power(cloud, server)) == ("failed", PowerState.PAUSED)
    (operation,) = [one for one in await cloud.operations(server) if one["command"] == "backup"]
    assert PauseReason.IO_ERROR.text in operation["error"]


@pytest.mark.parametrize(
    ("reason", "word"), [(PauseReason.STORAGE_FULL, "full"), (PauseReason.IO_ERROR, "failing"), (None, "low")]
)
async def test_health_and_check_tell_the_operator(cloud: Cloud, reason: PauseReason | None, word: str) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    watcher = HostWatcher(cloud.runtime, lambda _: None, lambda _: None)
    await watcher.look()
    assert (await cloud.get("/health", who=None)).json()["hypervisor"]["storage"] == "ok"
    if reason is None:
        cloud.hypervisor.storage.free_mb = 10239
    else:
        await pause(cloud, server, reason)
    await reconciler.reconcile()
    await watcher.look()
    health = await cloud.get("/health", who=None)
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert health.json()["hypervisor"]["storage"] == word
    findings = [(one.kind, one.text) for one in await Audit(cloud.runtime).run()]
    assert (("server", f"cannot write: {reason.text}") in findings) if reason else findings[0][0] == "storage"
    assert ("storage" in [kind for kind, _ in findings]) == (reason is not PauseReason.IO_ERROR)
    cloud.hypervisor.storage.free_mb, cloud.hypervisor.storage.fails = 10240, False
    await watcher.look()
    await pass_time(cloud, reconciler, 60)
    await watcher.look()
    assert (await cloud.get("/health", who=None)).json()["status"] == "ok"
    assert await Audit(cloud.runtime).run() == []


async def test_a_backup_of_one_in_error_does_not_cut_its_power(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await pause(cloud, server, PauseReason.IO_ERROR)
    await cloud.force_status(server, Status.ERROR)
    await cloud.post(f"{SERVERS}{server}/backup/")
    await cloud.work()
    assert await power(cloud, server) is PowerState.PAUSED


@pytest.mark.parametrize(("action", "call", "seconds"), [("start", "is_up", 240), ("reboot", "guest", 90)])
async def test_one_that_is_paused_in_the_last_moment_of_a_wait_is_not_cut(
    cloud: Cloud, action: str, call: str, seconds: int
) -> None:
    server = await cloud.have_server(status=Status.STOPPED if action == "start" else Status.ACTIVE)
    cloud.hypervisor.never_boots = cloud.hypervisor.ignores_acpi = True
    cloud.hypervisor.calls.clear()
    await cloud.post(f"{SERVERS}{server}/{action}/")
    begun_ms = cloud.clock.now_ms()

    def fails_late(made: str) -> None:
        if made == call and cloud.clock.now_ms() - begun_ms >= seconds * 1000 - 150:
            cloud.hypervisor.storage.fails = True
            cloud.hypervisor.meets_its_storage(cloud.guest(server))

    cloud.hypervisor.after_call = fails_late
    await cloud.runner().run_once()
    assert await power(cloud, server) is PowerState.PAUSED
    assert "power_off" not in cloud.hypervisor.calls
    assert (await cloud.operations(server))[-1]["error"] == PauseReason.IO_ERROR.text


async def test_while_one_is_looked_at_the_others_stay_paused_as_far_as_is_known(cloud: Cloud) -> None:
    paused, another = [await cloud.have_server(name) for name in ("paused", "another")]
    reconciler = cloud.reconciler()
    await pause(cloud, paused, PauseReason.IO_ERROR)
    await reconciler.reconcile()
    reconciler.look_at(another)
    await reconciler.look()
    assert cloud.runtime.host.pauses == {PauseReason.IO_ERROR}


async def test_free_space_that_hardly_changes_is_not_put_down_at_once(cloud: Cloud) -> None:
    watcher = HostWatcher(cloud.runtime, lambda _: None, lambda _: None)
    for free_mb, recorded_mb in ((50_000, 50_000), (49_500, 50_000), (48_900, 48_900), (10_000, 10_000)):
        cloud.hypervisor.storage.free_mb = free_mb
        await watcher.look()
        async with cloud.reading() as ctx:
            assert (await hosts.row(ctx, cloud.runtime.host_id)).storage_free_mb == recorded_mb
    cloud.hypervisor.storage.free_mb = 10_240  # past the reserve: less than a gigabyte more
    await watcher.look()
    async with cloud.reading() as ctx:
        assert (await hosts.row(ctx, cloud.runtime.host_id)).storage_free_mb == 10_240
