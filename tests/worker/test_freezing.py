"""A guest is frozen for the beginning of a backup, and whatever goes wrong then, it is not left like that unseen."""

import pytest

from tests.cloud import Cloud
from tests.killed import Killed
from vpsd.core.units import DAY_MS
from vpsd.hypervisor.protocol import PowerState
from vpsd.operations.service import LEASE_SECONDS
from vpsd.servers import updates


async def _actions(cloud: Cloud) -> list[str]:
    return [event["action"] for event in (await cloud.get("/api/v1/account/events/")).json()["results"]]


async def _detail(cloud: Cloud, server: int) -> str | None:
    return (await cloud.row(server)).status_detail


async def _is_released(cloud: Cloud, server: int) -> None:
    row = await cloud.row(server)
    assert (row.unthawed_backup_id, row.status_detail) == (None, None)
    assert not cloud.hypervisor.is_frozen(cloud.guest(server))


async def test_a_backup_says_what_was_frozen(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    assert (backup["consistent"], backup["consistency_detail"]) == (True, "Frozen for 0 ms: /.")
    await _is_released(cloud, server)


async def test_a_server_that_is_not_to_be_frozen_is_not(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True
    answer = await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"freeze_for_backups": False})
    assert answer.json()["freeze_for_backups"] is False
    for what in ("backup", "snapshot"):
        copy = await cloud.have_copy(server, what)
        assert copy["consistent"] is False
        assert copy["consistency_detail"] == "Not frozen: freeze_for_backups of the server is false."
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"backups_enabled": True})
    cloud.clock.advance(DAY_MS / 1000)
    await cloud.backup_scheduler().schedule()
    await cloud.work()
    automatic = (await cloud.get("/api/v1/backups/?backup_type=automatic")).json()["results"][0]
    assert (automatic["status"], automatic["consistent"]) == ("completed", False)
    await _is_released(cloud, server)


async def test_it_can_be_said_when_a_server_is_made_and_with_all_the_rest(cloud: Cloud) -> None:
    server = await cloud.create(freeze_for_backups=False)
    path = f"/api/v1/servers/{server}/"
    assert (await cloud.get(path)).json()["freeze_for_backups"] is False
    whole = {"name": "web", "hostname": "web", "backups_enabled": False}
    assert (await cloud.ask("PUT", path, json=whole)).json()["freeze_for_backups"] is False
    assert (await cloud.ask("PUT", path, json={**whole, "freeze_for_backups": True})).json()["freeze_for_backups"]


async def test_an_agent_that_does_not_answer_is_not_told_to_freeze_and_raises_no_alarm(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.has_agent = False
    backup = await cloud.have_copy(server)
    assert (backup["consistent"], backup["consistency_detail"]) == (
        False,
        "Not frozen: the guest's agent did not answer.",
    )
    assert "ensure_thawed" not in cloud.hypervisor.calls
    await _is_released(cloud, server)


async def test_an_agent_that_dies_after_it_froze_is_told_of_and_waited_for(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True
    lost = await cloud.have_copy(server)
    assert "did not answer when it was told to thaw" in lost["consistency_detail"]
    assert cloud.hypervisor.is_frozen(cloud.guest(server))
    detail = await _detail(cloud, server)
    assert detail is not None
    assert f"for backup {lost['id']}" in detail
    assert f"POST /api/v1/servers/{server}/reboot/" in detail
    assert (await _actions(cloud)).count("server.frozen") == 1

    second = await cloud.have_copy(server, "snapshot")
    assert second["consistency_detail"] == (
        f"Not frozen: the server was not seen to write since it was frozen for backup {lost['id']}."
    )
    await cloud.thaw_checker().look()
    assert await _detail(cloud, server) == detail
    assert (await _actions(cloud)).count("server.frozen") == 1

    cloud.hypervisor.agent_dies_frozen = False
    await cloud.thaw_checker().look()
    await _is_released(cloud, server)
    assert (await _actions(cloud))[0] == "server.thawed"
    assert (await cloud.have_copy(server))["consistent"]


async def test_the_next_backup_looks_by_itself_whether_the_server_writes_again(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True
    await cloud.have_copy(server)
    cloud.hypervisor.agent_dies_frozen = False
    assert (await cloud.have_copy(server))["consistent"]
    await _is_released(cloud, server)


async def test_a_guest_that_is_thawed_and_does_not_write_is_told_of(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.never_writes = True
    backup = await cloud.have_copy(server)
    detail = await _detail(cloud, server)
    assert detail is not None
    assert detail.startswith(f"Frozen for backup {backup['id']}: it has not written since.")
    cloud.hypervisor.never_writes = False
    await cloud.thaw_checker().look()
    await _is_released(cloud, server)


@pytest.mark.parametrize("way", ["reboot", "power"])
async def test_a_server_that_was_left_frozen_writes_after_a_reboot(cloud: Cloud, way: str) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True
    await cloud.have_copy(server)
    if way == "reboot":
        await cloud.post(f"/api/v1/servers/{server}/reboot/")
    else:
        await cloud.post(f"/api/v1/servers/{server}/power/", {"action": "hard_stop"})
        await cloud.work()
        await cloud.post(f"/api/v1/servers/{server}/start/")
    cloud.hypervisor.has_agent = False  # it is not this that tells
    await cloud.work()
    await _is_released(cloud, server)


async def test_a_boot_leaves_what_else_there_is_to_say(cloud: Cloud) -> None:
    server = await cloud.have_server()
    async with cloud.writing() as ctx:
        await updates.set_unthawed(ctx, server, 1)
        await updates.set_status_detail(ctx, server, "Something else.")
        await updates.forget_freeze(ctx, server)
    row = await cloud.row(server)
    assert (row.unthawed_backup_id, row.status_detail) == (None, "Something else.")


async def test_a_server_that_is_powered_off_is_not_frozen_any_more(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True
    await cloud.have_copy(server)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    await cloud.thaw_checker().look()
    row = await cloud.row(server)
    assert (row.unthawed_backup_id, row.status_detail) == (None, None)


async def test_a_vpsd_that_dies_while_a_guest_is_frozen_finds_it_when_it_is_back(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True

    def die(call: str) -> None:
        if call == "export_disk":
            raise Killed

    cloud.hypervisor.after_call = die
    await cloud.post(f"/api/v1/servers/{server}/backup/")
    with pytest.raises(Killed):
        await cloud.work()
    cloud.hypervisor.after_call = None
    cloud.hypervisor.agent_dies_frozen = False
    assert cloud.hypervisor.is_frozen(cloud.guest(server))
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.work()
    await _is_released(cloud, server)
    assert (await cloud.get("/api/v1/backups/")).json()["results"][0]["consistent"]


async def test_a_backup_that_fails_while_the_guest_is_frozen_leaves_nobody_in_the_dark(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.agent_dies_frozen = True
    await cloud.post(f"/api/v1/servers/{server}/backup/")

    def vanish(call: str) -> None:
        if call == "export_progress":
            cloud.hypervisor.happens(cloud.guest(server), PowerState.PAUSED)
            cloud.hypervisor.before_call = None

    cloud.hypervisor.before_call = vanish
    await cloud.settle()
    await cloud.thaw_checker().look()
    row = await cloud.row(server)
    assert (row.unthawed_backup_id is None) == (row.status_detail is None)
