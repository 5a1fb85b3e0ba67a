"""Backups, snapshots and what is made of them, from the request to the disk: database, simulated host, real target."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from tests.cloud import TINY, Cloud
from tests.killed import Killed
from vpsd.audit import Audit
from vpsd.backups import queries
from vpsd.backups.repository import Repository
from vpsd.backups.targets import MARK, Directory, TargetFull
from vpsd.core.clock import FakeClock
from vpsd.core.db import Statement
from vpsd.core.money import MICROS
from vpsd.errors import Unavailable
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import Status
from vpsd.operations import service as operations
from vpsd.operations.models import operations as operations_table
from vpsd.operations.service import LEASE_SECONDS

MB = 1 << 20


async def _restore(cloud: Cloud, what: str, copy_id: int) -> None:
    answer = await cloud.post(f"/api/v1/{what}s/{copy_id}/restore/")
    assert answer.status_code == 200, answer.text
    await cloud.work()


async def _write(cloud: Cloud, server: int, at: int, text: str) -> None:
    cloud.hypervisor.writes(await cloud.disk(server), at, text.encode().ljust(20))


async def _read(cloud: Cloud, server: int, at: int) -> str:
    return cloud.hypervisor.content(await cloud.disk(server), at, 20).decode().strip("\0 ")


async def _is_tidy(cloud: Cloud) -> None:
    assert await Audit(cloud.runtime).run() == []
    assert not (await cloud.hypervisor.volumes()).exports


@pytest.mark.parametrize("what", ["backup", "snapshot"])
async def test_a_server_goes_back_to_how_it_was(cloud: Cloud, what: str) -> None:
    server = await cloud.have_server()
    address = (await cloud.get(f"/api/v1/servers/{server}/")).json()["ip_address"]
    await _write(cloud, server, 5 * MB, "before")
    copy = await cloud.have_copy(server, what)
    assert (copy["server"], copy["consistent"], copy["incremental"]) == ({"id": server, "name": "web"}, True, False)
    assert copy["size_mb"] > 0
    await _write(cloud, server, 5 * MB, "after")
    answer = (await cloud.post(f"/api/v1/{what}s/{copy['id']}/restore/")).json()
    assert answer["server"] == {"id": server, "name": "web", "status": "restoring"}
    assert await cloud.status(server) == "restoring"
    await cloud.work()
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert (detail["status"], detail["ip_address"], detail["error"]) == ("active", address, None)
    assert await _read(cloud, server, 5 * MB) == "before"
    await _is_tidy(cloud)


async def test_what_is_completed_can_be_restored_at_once(cloud: Cloud) -> None:
    server = await cloud.have_server()
    made = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    seen = set()

    async def look() -> None:
        async with cloud.runtime.snapshot() as ctx:  # both as they are at one moment
            status = (await queries.row(ctx, made["id"])).status
            seen.add((status, await operations.open_operation(ctx, server) is None))

    def slowly(_: str) -> None:
        looks.append(asyncio.ensure_future(look()))

    looks: list[asyncio.Future[None]] = []
    cloud.hypervisor.after_call = slowly
    await cloud.work()
    cloud.hypervisor.after_call = None
    await asyncio.gather(*looks)
    await look()
    assert seen == {("in_progress", False), ("completed", True)}


async def test_a_chain_outlives_any_of_its_members(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backups = []
    for number in range(5):
        await _write(cloud, server, number * MB, f"text {number}")
        await _write(cloud, server, 9 * MB, f"version {number}")
        backups.append(await cloud.have_copy(server))
    assert [backup["incremental"] for backup in backups] == [False, True, True, True, True]
    for gone in (backups[2], backups[0]):
        assert (await cloud.ask("DELETE", f"/api/v1/backups/{gone['id']}/")).status_code == 204
        await cloud.backup_scheduler().schedule()
    for number in (1, 4, 3):
        await _restore(cloud, "backup", backups[number]["id"])
        assert await _read(cloud, server, 9 * MB) == f"version {number}"
        assert await _read(cloud, server, number * MB) == f"text {number}"
        assert await _read(cloud, server, (number + 1) * MB) == ""
    for number in (4, 1, 3):
        await cloud.ask("DELETE", f"/api/v1/backups/{backups[number]['id']}/")
        await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == []
    await _is_tidy(cloud)


async def test_after_a_restore_everything_is_copied_and_only_what_differs_is_sent(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "one")
    first = await cloud.have_copy(server)
    await _write(cloud, server, MB, "two")
    await _restore(cloud, "backup", first["id"])
    await _write(cloud, server, 2 * MB, "three")
    for number in range(10, 20):
        await _write(cloud, server, number * MB, "more")
    second = await cloud.have_copy(server)
    await _restore(cloud, "backup", second["id"])
    cloud.target.calls.clear()
    third = await cloud.have_copy(server)
    assert not second["incremental"]
    assert not third["incremental"]
    assert cloud.target.calls.count("put") == 2  # what its boot wrote, and its manifest
    await _write(cloud, server, MB, "four")
    await _restore(cloud, "backup", second["id"])
    assert (await _read(cloud, server, MB), await _read(cloud, server, 2 * MB)) == ("one", "three")


async def test_a_new_server_begins_with_what_a_backup_of_a_deleted_one_holds(cloud: Cloud) -> None:
    old = await cloud.have_server("old")
    await _write(cloud, old, 3 * MB, "kept")
    snapshot, backup = await cloud.have_copy(old, "snapshot"), await cloud.have_copy(old)
    await cloud.ask("DELETE", f"/api/v1/servers/{old}/")
    await cloud.settle()
    refused = await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
    assert refused.status_code == 400
    assert "backup_id" in refused.json()["detail"]
    for field, copy in (("snapshot_id", snapshot), ("backup_id", backup)):
        body = {"name": "new", "plan_id": TINY["plan_id"], "location": "us-west", field: copy["id"]}
        made = await cloud.post("/api/v1/servers/", body)
        assert made.status_code == 201, made.text
        assert made.json()["os"]["id"] == TINY["os_id"]
        busy = await cloud.ask("DELETE", f"/api/v1/{field.removesuffix('_id')}s/{copy['id']}/")
        assert busy.json()["code"] == "busy"
        await cloud.work()
        new = made.json()["id"]
        assert await cloud.status(new) == "active"
        assert await _read(cloud, new, 3 * MB) == "kept"
        assert (await cloud.ask("DELETE", f"/api/v1/{field.removesuffix('_id')}s/{copy['id']}/")).status_code == 204
        await cloud.backup_scheduler().schedule()
    await _is_tidy(cloud)
    assert cloud.target.objects() == []


async def test_a_new_server_needs_one_beginning_that_it_may_have(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup, snapshot = await cloud.have_copy(server), await cloud.have_copy(server, "snapshot")
    begun = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    plain = {"name": "new", "plan_id": TINY["plan_id"], "location": "us-west"}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "os_id", "required"),
        ({"os_id": 1, "backup_id": backup["id"]}, "os_id", "one of"),
        ({"backup_id": snapshot["id"]}, "backup_id", "There is no backup"),
        ({"snapshot_id": backup["id"]}, "snapshot_id", "There is no snapshot"),
        ({"backup_id": 999}, "backup_id", "/api/v1/backups/"),
        ({"backup_id": begun["id"]}, "backup_id", "in progress"),
    ]
    for beginning, field, text in cases:
        answer = await cloud.post("/api/v1/servers/", {**plain, **beginning})
        assert answer.status_code == 400, beginning
        assert list(answer.json()) == [field]
        assert text in answer.json()[field][0]
    stranger = await cloud.post("/api/v1/servers/", {**plain, "backup_id": backup["id"]}, who="charlie")
    assert "There is no backup" in stranger.json()["backup_id"][0]


async def test_a_disk_must_fit_on_the_new_servers_plan(cloud: Cloud) -> None:
    server = await cloud.create(plan_id=1)
    await cloud.work()
    backup = await cloud.have_copy(server)
    body = {"name": "new", "plan_id": TINY["plan_id"], "location": "us-west", "backup_id": backup["id"]}
    answer = await cloud.post("/api/v1/servers/", body)
    assert answer.status_code == 400
    assert answer.json()["plan_id"] == [
        "The backup needs a disk of 80 GB, and the plan Nano VPS has 2. "
        "The smallest plan that fits is Standard VPS (1), with 80 GB."
    ]


async def test_a_server_that_is_off_is_backed_up_and_stays_off(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    backup = await cloud.have_copy(server)
    assert backup["consistent"]
    assert await cloud.status(server) == "stopped"
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    assert guest.power is PowerState.OFF
    await cloud.settle()
    assert await cloud.status(server) == "stopped"


async def test_a_guest_without_an_agent_is_backed_up_and_the_record_says_so(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.has_agent = False
    assert (await cloud.have_copy(server))["consistent"] is False


async def test_a_full_target_fails_the_backup_and_leaves_nothing_there(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for number in range(8):
        await _write(cloud, server, number * MB, f"text {number}")
    puts = 0

    def full(call: str) -> None:
        nonlocal puts
        puts += call == "put"
        if puts > 4:
            raise TargetFull("directory /srv/backups is full.")

    cloud.target.before_call = full
    made = (await cloud.post("/api/v1/backups/", {"server_id": server})).json()
    await cloud.work()
    failed = (await cloud.get(f"/api/v1/backups/{made['id']}/")).json()
    assert (failed["status"], failed["size_mb"]) == ("failed", None)
    assert "is full" in failed["error"]
    assert await cloud.status(server) == "active"
    assert cloud.target.objects()
    refused = await cloud.post(f"/api/v1/backups/{made['id']}/restore/")
    assert refused.status_code == 400
    assert "failed" in refused.json()["detail"]
    cloud.target.before_call = None
    await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == []
    await _is_tidy(cloud)
    assert (await cloud.have_copy(server))["status"] == "completed"


async def test_a_lost_connection_is_waited_for_and_the_backup_goes_on_where_it_was(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for number in range(8):
        await _write(cloud, server, number * MB, f"text {number}")
    lost = 5

    def cut(call: str) -> None:
        nonlocal lost
        lost -= call == "put"
        if lost <= 0:
            raise Unavailable("The target does not answer.")

    cloud.target.before_call = cut
    made = (await cloud.post("/api/v1/backups/", {"server_id": server})).json()
    await cloud.work()
    (operation,) = [one for one in await cloud.operations(server) if one["command"] == "backup"]
    assert (operation["status"], operation["step"]) == ("queued", "store_copy")
    assert "does not answer" in operation["error"]
    there = len(cloud.target.objects())
    assert there > 0
    cloud.target.before_call = None
    cloud.target.calls.clear()
    await cloud.settle()
    assert (await cloud.get(f"/api/v1/backups/{made['id']}/")).json()["status"] == "completed"
    assert cloud.target.calls.count("put") == len(cloud.target.objects()) - there
    await _is_tidy(cloud)


async def test_a_target_that_never_answers_ends_in_a_clear_error(cloud: Cloud) -> None:
    server = await cloud.have_server()

    def away(_: str) -> None:
        raise Unavailable("The target does not answer.")

    cloud.target.before_call = away
    made = (await cloud.post("/api/v1/backups/", {"server_id": server})).json()
    for _ in range(40):
        await cloud.settle()
    failed = (await cloud.get(f"/api/v1/backups/{made['id']}/")).json()
    assert failed["status"] == "failed"
    assert "does not answer" in failed["error"]
    assert await cloud.status(server) == "active"
    await cloud.backup_scheduler().schedule()  # cannot be collected now; nobody is told of an error for that
    cloud.target.before_call = None
    cloud.clock.advance(600)
    await cloud.backup_scheduler().schedule()
    await _is_tidy(cloud)


async def test_a_restore_whose_backup_cannot_be_read_leaves_the_server_as_it_was(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    for path in cloud.target.folder.rglob("*"):
        if path.is_file() and path.name not in ("manifest", MARK):
            path.write_bytes(path.read_bytes()[:-3] + b"bad")
    await _restore(cloud, "backup", backup["id"])
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert detail["status"] == "error"
    assert "before" in detail["error"]
    assert f"The backup {backup['id']} is damaged" in detail["error"]
    assert backup["uuid"] in ((await cloud.causes(server))[-1] or "")
    assert await _read(cloud, server, MB) == "after"
    await cloud.settle()  # the guest never stopped: it is taken in again
    assert await cloud.status(server) == "active"
    assert [(finding.kind, finding.name) for finding in await Audit(cloud.runtime).run()] == [("backup", "1")]


async def test_a_restore_that_does_not_boot_gives_the_old_disk_back(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    cloud.hypervisor.never_boots = True
    await _restore(cloud, "backup", backup["id"])
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert detail["status"] == "error"
    assert "did not answer" in detail["error"]
    assert "disk that it had before" in detail["error"]
    assert await _read(cloud, server, MB) == "after"
    cloud.hypervisor.never_boots = False
    assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200
    await cloud.work()
    assert await cloud.status(server) == "active"
    await _is_tidy(cloud)


async def _host_is_away_until_it_is_given_up(cloud: Cloud, server: int) -> None:
    """A restore's guest is waited for when the host goes away; it is back when the restore was given up."""

    def breaks(call: str) -> None:
        if call == "is_up":
            cloud.hypervisor.broken = True

    cloud.hypervisor.before_call = breaks
    for _ in range(3000):
        await cloud.work()
        cloud.clock.advance(60)
        if await cloud.status(server) == "error":
            break
    cloud.hypervisor.before_call = None
    cloud.hypervisor.broken = False


async def test_a_restore_that_nobody_could_undo_is_undone_at_the_next_boot(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    await _host_is_away_until_it_is_given_up(cloud, server)
    assert (await cloud.row(server)).previous_boot is not None
    assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200
    await cloud.settle()
    assert await cloud.status(server) == "active"
    assert await _read(cloud, server, MB) == "after"
    await _is_tidy(cloud)


async def test_a_backup_from_before_a_rebuild_brings_its_system_back(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "tiny")
    backup = await cloud.have_copy(server)
    await cloud.post(f"/api/v1/servers/{server}/rebuild/", {"os_id": 3})
    await cloud.work()
    assert (await cloud.have_copy(server))["incremental"] is False
    await _restore(cloud, "backup", backup["id"])
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert (detail["status"], detail["os"]["id"]) == ("active", TINY["os_id"])
    assert await _read(cloud, server, MB) == "tiny"
    await _is_tidy(cloud)


async def test_a_server_grows_after_a_restore_to_what_its_plan_says(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    await cloud.post(f"/api/v1/servers/{server}/resize/", {"plan_id": 3})
    await cloud.work()
    grown = cloud.hypervisor.disk_bytes(await cloud.disk(server))
    await _restore(cloud, "backup", backup["id"])
    assert cloud.hypervisor.disk_bytes(await cloud.disk(server)) == grown > backup["size_mb"] * MB


async def test_no_more_snapshots_than_five_and_manual_backups_than_ten(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for what, most in (("snapshot", 5), ("backup", 10)):
        made = [await cloud.have_copy(server, what) for _ in range(most)]
        refused = await cloud.post(f"/api/v1/servers/{server}/{what}/")
        assert refused.status_code == 400
        assert f"may have {most}" in refused.json()["server_id"][0]
        await cloud.ask("DELETE", f"/api/v1/{what}s/{made[0]['id']}/")
        await cloud.have_copy(server, what)


async def test_restoring_a_stopped_server_needs_credit(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    backup = await cloud.have_copy(server)
    await cloud.have_balance(0)
    refused = await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
    assert refused.status_code == 402
    await cloud.have_balance(100 * MICROS)
    await _restore(cloud, "backup", backup["id"])
    assert await cloud.status(server) == "active"


async def test_a_backup_is_encrypted_where_the_operator_has_a_key(cloud: Cloud) -> None:
    repository = Repository(cloud.target, cloud.instance, b"k" * 32)
    cloud.runtime = msgspec.structs.replace(cloud.runtime, repository=repository)
    server = await cloud.have_server()
    await _write(cloud, server, MB, "a secret of Alice's")
    backup = await cloud.have_copy(server)
    assert backup["encrypted"]
    for path in cloud.target.objects():
        assert b"secret of Alice" not in (cloud.target.folder / path).read_bytes()
    await _restore(cloud, "backup", backup["id"])
    assert await _read(cloud, server, MB) == "a secret of Alice's"


async def test_what_was_made_under_another_key_or_elsewhere_is_refused_in_words(cloud: Cloud, tmp_path: Path) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    here = cloud.runtime
    for repository, text in (
        (Repository(cloud.target, cloud.instance, b"k" * 32), "key"),
        (Repository(Directory(tmp_path / "other"), cloud.instance, None), "operator can help"),
    ):
        cloud.runtime = msgspec.structs.replace(here, repository=repository)
        await _restore(cloud, "backup", backup["id"])
        assert text in (await cloud.get(f"/api/v1/servers/{server}/")).json()["error"]
        await cloud.settle()
        assert not (await cloud.have_copy(server))["incremental"]
    cloud.runtime = here
    await _restore(cloud, "backup", backup["id"])
    assert await cloud.status(server) == "active"


async def test_one_checkpoint_is_kept_on_the_host_and_none_of_a_disk_that_is_gone(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backups = [await cloud.have_copy(server) for _ in range(3)]
    assert cloud.hypervisor.checkpoints(cloud.guest(server)) == {backups[-1]["uuid"]}
    await _restore(cloud, "backup", backups[0]["id"])
    assert cloud.hypervisor.checkpoints(cloud.guest(server)) == set()


async def test_a_checkpoint_of_another_disk_is_no_base_for_the_next_backup(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    cloud.hypervisor.keeps_all_checkpoints = True
    await _write(cloud, server, MB, "lost")
    await _restore(cloud, "backup", backup["id"])
    second = await cloud.have_copy(server)
    assert not second["incremental"]
    await _restore(cloud, "backup", second["id"])
    assert await _read(cloud, server, MB) == ""


async def test_a_disk_that_is_smaller_than_the_one_before_is_backed_up(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.hypervisor.grow_disk(
        cloud.guest(server), await cloud.disk(server), 9 << 30
    )  # as an image would that is larger than the plan
    await cloud.have_copy(server)
    assert (await cloud.post(f"/api/v1/servers/{server}/rebuild/", {"os_id": 1})).status_code == 200
    await cloud.work()
    assert (await cloud.have_copy(server))["status"] == "completed"


def _die_at(call: str) -> Callable[[str], None]:
    """Die at that call; who is dead cleans up nothing."""
    dead = False

    def die(name: str) -> None:
        nonlocal dead
        dead |= name == call
        if dead:
            raise Killed

    return die


async def _is_killed(cloud: Cloud) -> None:
    with pytest.raises(Killed):
        await cloud.work("first")
    cloud.hypervisor.before_call = cloud.hypervisor.after_call = None
    cloud.clock.advance(LEASE_SECONDS + 1)


async def test_a_stopped_server_whose_backup_died_boots_from_the_beginning(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    await cloud.post(f"/api/v1/servers/{server}/stop/")
    await cloud.work()
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"backups_enabled": True})
    cloud.clock.advance(86_400)
    await cloud.backup_scheduler().schedule()
    cloud.hypervisor.before_call = _die_at("export_progress")
    await _is_killed(cloud)
    assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200
    await cloud.work()
    assert await cloud.status(server) == "active"
    began = cloud.hypervisor.content(await cloud.disk(server), 0, 64).decode().split(" was started at ")[1]
    assert cloud.clock.now_ms() - int(began.strip("\0")) < 60_000
    await _is_tidy(cloud)


async def test_a_backup_that_is_stored_stays_even_where_the_host_then_fails(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()

    def away(call: str) -> None:
        if call in ("keep_checkpoint", "drop_export") and cloud.hypervisor.calls.count("read_export"):
            raise Unavailable("The host does not answer.")

    cloud.hypervisor.before_call = away
    for _ in range(40):
        await cloud.settle()
    assert (await cloud.get(f"/api/v1/backups/{backup['id']}/")).json()["status"] == "completed"
    cloud.hypervisor.before_call = None
    assert [finding.kind for finding in await Audit(cloud.runtime, fix=True).run()] == ["copy"]
    await _restore(cloud, "backup", backup["id"])
    assert await cloud.status(server) == "active"


async def test_a_restore_that_was_given_up_after_its_end_keeps_what_it_restored(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    cloud.hypervisor.after_call = _die_at("delete_disk")
    await _is_killed(cloud)
    cloud.clock.advance(2 * 86_400)
    await cloud.settle()
    assert await cloud.status(server) == "active"
    assert await _read(cloud, server, MB) == "before"
    await _is_tidy(cloud)


async def test_a_disk_that_was_taken_is_not_taken_twice(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    cloud.hypervisor.before_call = _die_at("write_seed")
    await _is_killed(cloud)
    async with cloud.writing() as ctx:  # as if it had died before the next step was noted
        await ctx.tx.run(Statement(update(operations_table), ("step",)), step="take_restored_disk")
    cloud.hypervisor.never_boots = True
    await cloud.settle()
    assert await cloud.status(server) == "error"
    assert await _read(cloud, server, MB) == "after"
    await _is_tidy(cloud)


async def test_a_delete_at_the_end_of_a_restore_can_be_undone(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    cloud.hypervisor.after_call = _die_at("delete_disk")
    await _is_killed(cloud)
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    assert (await cloud.post(f"/api/v1/servers/{server}/undelete/")).status_code == 200
    await cloud.settle()
    assert await cloud.status(server) == "active"
    assert await _read(cloud, server, MB) == "before"
    await _is_tidy(cloud)


async def test_a_guest_that_runs_from_a_disk_that_goes_is_powered_off_first(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _write(cloud, server, MB, "before")
    backup = await cloud.have_copy(server)
    await _write(cloud, server, MB, "after")
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    await _host_is_away_until_it_is_given_up(cloud, server)
    cloud.hypervisor.calls.clear()
    await cloud.settle()  # the guest runs: it is taken in
    assert await cloud.status(server) == "active"
    assert await _read(cloud, server, MB) == "after"
    assert cloud.hypervisor.spec(cloud.guest(server)).disk == await cloud.disk(server)
    assert cloud.hypervisor.calls.index("power_off") < cloud.hypervisor.calls.index("delete_disk")
    await _is_tidy(cloud)


@pytest.mark.parametrize("phase", ["export_progress", "put"])
async def test_a_guest_that_dies_during_its_backup_is_brought_back_at_once(cloud: Cloud, phase: str) -> None:
    server = await cloud.have_server()

    def dies(call: str) -> None:
        if call == phase:
            cloud.hypervisor.before_call = cloud.target.before_call = None
            cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
            raise Unavailable("It takes its time.")

    cloud.hypervisor.before_call = cloud.target.before_call = dies
    await cloud.post(f"/api/v1/servers/{server}/backup/")
    await cloud.work()
    await cloud.reconciler().reconcile()
    await cloud.work()
    assert await cloud.status(server) == "active"
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    assert guest.power is PowerState.RUNNING
    await cloud.settle()
    assert (await cloud.get("/api/v1/backups/")).json()["results"][0]["status"] == "failed"
    await _is_tidy(cloud)


async def test_a_lost_manifest_costs_one_backup_and_not_those_that_follow(cloud: Cloud) -> None:
    server = await cloud.have_server()
    first = await cloud.have_copy(server)
    for path in cloud.target.folder.rglob(f"{first['uuid']}/manifest"):
        path.unlink()
    second = await cloud.have_copy(server)
    assert second["status"] == "completed"
    await _restore(cloud, "backup", second["id"])
    assert await cloud.status(server) == "active"


async def test_failed_backups_leave_no_checkpoints_behind(cloud: Cloud) -> None:
    server = await cloud.have_server()
    whole = await cloud.have_copy(server)

    def full(call: str) -> None:
        if call == "put":
            raise TargetFull("full")

    cloud.target.before_call = full
    for _ in range(3):
        await cloud.post(f"/api/v1/servers/{server}/backup/")
        await cloud.work()
    assert cloud.hypervisor.checkpoints(cloud.guest(server)) == {whole["uuid"]}
    cloud.target.before_call = None
    assert (await cloud.have_copy(server))["incremental"]


class UnhurriedClock(FakeClock):
    """A clock that stands still, and on which sleeping takes a real moment: no lease runs out meanwhile."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.01)


async def test_backups_leave_worker_slots_free_for_what_customers_wait_for(cloud: Cloud) -> None:
    gate = asyncio.Event()

    async def wait_at_gate(call: str) -> None:
        if call == "put":
            await gate.wait()

    cloud.target.before_call = wait_at_gate
    servers = [await cloud.have_server(f"web-{number}") for number in range(4)]
    for server in servers[:3]:
        await cloud.post(f"/api/v1/servers/{server}/backup/")
    await cloud.post(f"/api/v1/servers/{servers[3]}/stop/")
    cloud.set(workers=2)
    cloud.runtime = msgspec.structs.replace(cloud.runtime, clock=UnhurriedClock(cloud.clock.now_ms()))
    running = asyncio.create_task(cloud.runner().run())
    async with asyncio.timeout(60):
        while await cloud.status(servers[3]) != "stopped":
            await asyncio.sleep(0.01)
    assert not gate.is_set()
    gate.set()
    async with asyncio.timeout(60):
        while (await cloud.get("/api/v1/backups/")).json()["results"][0]["status"] != "completed":
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait({running})


async def test_a_backup_waits_for_no_turn_that_another_may_take(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"backups_enabled": True})
    cloud.clock.advance(86_400)
    await cloud.backup_scheduler().schedule()
    assert (await cloud.post(f"/api/v1/servers/{server}/snapshot/")).json()["code"] == "busy"
    assert (await cloud.get("/api/v1/snapshots/")).json()["count"] == 0


async def test_a_backup_is_either_restored_or_deleted(cloud: Cloud) -> None:
    server = await cloud.have_server()
    ends = set()
    for turn in range(8):
        backup = await cloud.have_copy(server)
        asked = [
            cloud.post(f"/api/v1/backups/{backup['id']}/restore/"),
            cloud.ask("DELETE", f"/api/v1/backups/{backup['id']}/"),
        ]
        answers = await asyncio.gather(*(asked if turn % 2 else reversed(asked)))
        restored, deleted = answers if turn % 2 else reversed(answers)
        ends.add((restored.status_code, deleted.status_code))
        await cloud.settle()
        assert await cloud.status(server) == "active"
    assert ends <= {(200, 400), (404, 204)}, ends
    await _is_tidy(cloud)


async def test_of_commands_at_once_one_is_carried_out(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    requests = [
        *(cloud.post(f"/api/v1/servers/{server}/{command}/") for command in ("backup", "snapshot", "reboot")),
        cloud.post(f"/api/v1/backups/{backup['id']}/restore/"),
        cloud.post(f"/api/v1/servers/{server}/rebuild/", {"os_id": 1}),
    ]
    answers = await asyncio.gather(*requests)
    assert sorted(answer.status_code for answer in answers)[1:] == [400] * 4
    assert sum(answer.is_success for answer in answers) == 1
    await cloud.settle()
    assert await cloud.status(server) == "active"
    for what in ("backups", "snapshots"):
        found = (await cloud.get(f"/api/v1/{what}/")).json()["results"]
        assert {one["status"] for one in found} <= {"completed"}
    await _is_tidy(cloud)


async def test_a_stopped_server_deleted_during_its_backup_comes_back_stopped(cloud: Cloud) -> None:
    cloud.set(undelete_hours=24)
    server = await cloud.have_server(status=Status.STOPPED)
    assert (await cloud.post(f"/api/v1/servers/{server}/backup/")).status_code == 201
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    assert await cloud.status(server) == "deleted"
    assert (await cloud.post(f"/api/v1/servers/{server}/undelete/")).json()["server"]["status"] == "stopped"
    await cloud.settle()
    assert await cloud.status(server) == "stopped"
    await _is_tidy(cloud)


async def _power(cloud: Cloud, server: int) -> PowerState:
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    return guest.power


async def test_a_stopped_server_whose_backup_is_given_up_is_off(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    await cloud.post(f"/api/v1/servers/{server}/backup/")
    cloud.hypervisor.before_call = _die_at("export_progress")
    await _is_killed(cloud)
    assert await _power(cloud, server) is PowerState.PAUSED
    cloud.clock.advance(2 * 86_400)
    await cloud.settle()
    assert (await cloud.status(server), await _power(cloud, server)) == ("stopped", PowerState.OFF)
    await _is_tidy(cloud)


async def test_a_guest_that_a_lost_backup_left_standing_boots_with_its_new_plan(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    name = cloud.guest(server)
    await cloud.hypervisor.export_disk(name, "a-mark", None)
    await cloud.post(f"/api/v1/servers/{server}/resize/", {"plan_id": 3})
    cloud.hypervisor.calls.clear()
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    assert await cloud.status(server) == "active"
    assert cloud.hypervisor.calls.index("power_off") < cloud.hypervisor.calls.index("power_on")
    await cloud.hypervisor.drop_export(name)


async def test_a_backup_of_a_guest_that_went_off_does_not_promise_that_it_is_brought_back(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    made = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    await cloud.work()
    error = (await cloud.get(f"/api/v1/backups/{made['id']}/")).json()["error"]
    assert error == "The guest went off by itself. Ask again when the server is stopped."
    await cloud.settle()
    assert (await cloud.status(server), await _power(cloud, server)) == ("stopped", PowerState.OFF)


async def test_a_guest_that_is_down_although_it_should_run_is_not_copied(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
    made = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    await cloud.work()
    assert "export_disk" not in cloud.hypervisor.calls
    assert "not running" in (await cloud.get(f"/api/v1/backups/{made['id']}/")).json()["error"]
    await cloud.settle()
    assert (await cloud.status(server), await _power(cloud, server)) == ("active", PowerState.RUNNING)
