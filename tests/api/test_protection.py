"""A protected server keeps what is on its disk, whoever asks for what would lose it."""

from typing import Any

import pytest

from tests.cloud import Cloud
from vpsd.flows.backup_steps import take_restored_disk
from vpsd.flows.steps import discard_disk, remove_guest
from vpsd.flows.table import FLOWS
from vpsd.lifecycle import RULES, Command, Giver

SERVERS = "/api/v1/servers/"

# What a customer can ask for that loses the disk: how, and whether it can be tried with dry_run.
LOSES: dict[str, tuple[Command, str, str, Any]] = {
    "delete": (Command.DELETE, "DELETE", SERVERS + "{server}/", None),
    "delete now": (Command.DELETE, "DELETE", SERVERS + "{server}/?now=true", None),
    "rebuild": (Command.REBUILD, "POST", SERVERS + "{server}/rebuild/", {"os_id": 3}),
    "try a rebuild": (Command.REBUILD, "POST", SERVERS + "{server}/rebuild/?dry_run=1", {"os_id": 3}),
    "restore a backup": (Command.RESTORE, "POST", "/api/v1/backups/{backup}/restore/", None),
    "restore a snapshot": (Command.RESTORE, "POST", "/api/v1/snapshots/{snapshot}/restore/", None),
    "try a restore": (Command.RESTORE, "POST", "/api/v1/backups/{backup}/restore/?dry_run=1", None),
}


def test_every_command_that_loses_a_disk_is_among_them() -> None:
    losing = {discard_disk, remove_guest, take_restored_disk}
    commands = {command for command, flow in FLOWS.items() if losing & set(flow)}
    assert {command for command, *_ in LOSES.values()} == {
        command for command in commands if RULES[command].given_by is Giver.CUSTOMER
    }


@pytest.mark.parametrize("what", LOSES)
async def test_what_would_lose_its_disk_is_a_409_until_the_protection_is_lifted(cloud: Cloud, what: str) -> None:
    _, method, path, body = LOSES[what]
    server = await cloud.have_server()
    backup, snapshot = await cloud.have_copy(server), await cloud.have_copy(server, "snapshot")
    path = path.format(server=server, backup=backup["id"], snapshot=snapshot["id"])
    one = f"{SERVERS}{server}/"
    await cloud.ask("PATCH", one, json={"protected": True})
    before = await cloud.operations(server)
    options = {} if body is None else {"json": body}
    refused = await cloud.ask(method, path, **options)
    assert (refused.status_code, refused.json()["code"]) == (409, "protected")
    assert f'PATCH {one} with {{"protected": false}}' in refused.json()["detail"]
    assert (await cloud.operations(server), await cloud.status(server)) == (before, "active")
    await cloud.ask("PATCH", one, json={"protected": False})
    assert (await cloud.ask(method, path, **options)).status_code in (200, 204)


async def test_what_leaves_its_disk_is_done_to_a_protected_server(cloud: Cloud) -> None:
    await cloud.offer(9, storage_gb=4)
    server = await cloud.have_server()
    one = f"{SERVERS}{server}/"
    await cloud.ask("PATCH", one, json={"protected": True})
    for path, body in (("backup/", None), ("resize/", {"plan_id": 9}), ("reboot/", None), ("stop/", None)):
        assert (await cloud.post(f"{one}{path}", body)).status_code in (200, 201), path
        await cloud.work()


async def test_a_wrong_field_is_said_before_the_protection(cloud: Cloud) -> None:
    server = await cloud.create(protected=True)
    assert (await cloud.post(f"{SERVERS}{server}/rebuild/", {"os_id": 99})).status_code == 400
