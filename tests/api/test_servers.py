"""What customers do with servers, and what they are told when it cannot be."""

import asyncio
from typing import Any

import pytest

from tests.cloud import TINY, Cloud
from vpsd.lifecycle import Command, Status, allowed

SERVERS = "/api/v1/servers/"
WHOLE = {"name": "web-server-updated", "hostname": "web-updated.example.com", "backups_enabled": True}
COMMANDS = [Command.START, Command.STOP, Command.REBOOT]


async def test_a_server_is_created_and_becomes_active(cloud: Cloud) -> None:
    answer = await cloud.post(
        SERVERS,
        {"name": "web-server-02", "plan_id": 1, "os_id": 5, "location": "us-west", "hostname": "web02.example.com",
         "backups_enabled": True},
    )  # fmt: skip
    assert answer.status_code == 201
    made = answer.json()
    password = made.pop("password")
    assert len(password) == 20
    assert len(made.pop("uuid")) == 36
    assert made.pop("operation") == {"id": 1, "status": "queued"}
    assert made == {
        "id": 1,
        "name": "web-server-02",
        "hostname": "web02.example.com",
        "status": "provisioning",
        "ip_address": None,
        "location": "us-west",
        "plan": {"id": 1, "name": "Standard VPS", "vcpus": 2, "memory": 4096, "storage": 80},
        "os": {"id": 5, "name": "Ubuntu 22.04 LTS"},
        "backups_enabled": True,
        "freeze_for_backups": True,
        "tags": [],
        "protected": False,
        "created_at": "2025-06-15T15:06:40Z",
        "updated_at": "2025-06-15T15:06:40Z",
        "message": "Server is being provisioned. This may take 2-5 minutes.",
    }
    await cloud.settle()
    detail = (await cloud.get(f"{SERVERS}1/")).json()
    assert detail["status"] == "active"
    assert detail["ip_address"] == "127.10.0.2"
    assert detail["ssh"] == "ssh root@127.10.0.2"


async def test_the_password_is_shown_once(cloud: Cloud) -> None:
    made = (await cloud.post(SERVERS, {"name": "web", **TINY})).json()
    for path in (SERVERS, f"{SERVERS}{made['id']}/", f"{SERVERS}{made['id']}/operations/"):
        assert made["password"] not in (await cloud.get(path)).text


async def test_optional_fields_may_be_null_or_left_out(cloud: Cloud) -> None:
    answer = await cloud.post(SERVERS, {"name": "web", **TINY, "hostname": None, "ssh_key_id": None})
    assert answer.status_code == 201
    assert answer.json()["hostname"] == "web"
    assert answer.json()["backups_enabled"] is False


async def test_put_changes_all_three_and_answers_with_the_detail(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    answer = await cloud.ask("PUT", f"{SERVERS}{server_id}/", json=WHOLE)
    assert answer.status_code == 200
    assert WHOLE.items() <= answer.json().items()
    assert answer.json() == (await cloud.get(f"{SERVERS}{server_id}/")).json()
    assert answer.json()["updated_at"] > answer.json()["created_at"]


@pytest.mark.parametrize("missing", list(WHOLE))
async def test_put_wants_all_three_fields(cloud: Cloud, missing: str) -> None:
    server_id = await cloud.create()
    body = {name: value for name, value in WHOLE.items() if name != missing}
    answer = await cloud.ask("PUT", f"{SERVERS}{server_id}/", json=body)
    assert answer.status_code == 400
    assert answer.json() == {missing: ["This field is required."]}


@pytest.mark.parametrize("field", list(WHOLE))
async def test_patch_changes_only_what_is_sent(cloud: Cloud, field: str) -> None:
    server_id = await cloud.have_server()
    before = (await cloud.get(f"{SERVERS}{server_id}/")).json()
    answer = await cloud.ask("PATCH", f"{SERVERS}{server_id}/", json={field: WHOLE[field]})
    assert answer.status_code == 200
    assert answer.json() == {**before, field: WHOLE[field], "updated_at": answer.json()["updated_at"]}


async def test_patch_of_nothing_changes_nothing(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    before = (await cloud.get(f"{SERVERS}{server_id}/")).json()
    answer = await cloud.ask("PATCH", f"{SERVERS}{server_id}/", json={})
    assert (answer.status_code, answer.json()) == (200, before)


async def test_changes_refuse_null_and_what_cannot_be_changed(cloud: Cloud) -> None:
    server_id = await cloud.create()
    for method in ("PUT", "PATCH"):
        nothing = dict.fromkeys(WHOLE)
        answer = await cloud.ask(method, f"{SERVERS}{server_id}/", json={**nothing, "plan_id": 2})
        assert answer.status_code == 400
        assert answer.json() == {
            "name": ["Expected a string, got null."],
            "hostname": ["Expected a string, got null."],
            "backups_enabled": ["Expected true or false, got null."],
            "plan_id": [
                "Unknown field. The fields are name, hostname, backups_enabled, freeze_for_backups, tags, protected."
            ],
        }


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.DELETING])
async def test_a_command_from_the_wrong_status_is_told_what_is_allowed(cloud: Cloud, status: Status) -> None:
    server_id = await cloud.have_server(status=status)
    for command in (command for command in COMMANDS if command not in allowed(status)):
        answer = await cloud.post(f"{SERVERS}{server_id}/{command}/")
        assert answer.status_code == 400
        assert answer.json()["code"] == "wrong_status"
        assert f"The server is {status}" in answer.json()["detail"]
        assert answer.json()["detail"].endswith(f"Allowed now: {', '.join(allowed(status))}.")
        assert await cloud.status(server_id) == status


@pytest.mark.parametrize(
    ("command", "before", "message", "working", "after"),
    [
        ("start", Status.STOPPED, "Server is starting", "starting", "active"),
        ("start", Status.ERROR, "Server is starting", "starting", "active"),
        ("stop", Status.ACTIVE, "Server is stopping", "stopping", "stopped"),
        ("reboot", Status.ACTIVE, "Server is rebooting", "rebooting", "active"),
    ],
)
async def test_a_command_is_accepted_and_carried_out(
    cloud: Cloud, command: str, before: Status, message: str, working: str, after: str
) -> None:
    server_id = await cloud.have_server("web", before)
    answer = await cloud.post(f"{SERVERS}{server_id}/{command}/", headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    operation = (await cloud.operations(server_id))[-1]
    assert answer.json() == {
        "status": "success",
        "message": message,
        "server": {"id": server_id, "name": "web", "status": working},
        "operation": {"id": operation["id"], "status": "queued"},
    }
    assert await cloud.status(server_id) == working
    await cloud.settle()
    assert await cloud.status(server_id) == after


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.DELETING])
async def test_delete_is_accepted_from_every_status(cloud: Cloud, status: Status) -> None:
    server_id = await cloud.have_server(status=status)
    path = f"{SERVERS}{server_id}/"
    answer = await cloud.ask("DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "start/"), ("GET", "operations/")):
        assert (await cloud.ask(method, path + suffix)).status_code == 404
    assert (await cloud.ask("PATCH", path, json={})).status_code == 404
    assert (await cloud.get(SERVERS)).json()["count"] == 0
    await cloud.settle()
    assert await cloud.hypervisor.guests() == {}


async def test_a_server_is_deleted_while_it_is_being_made(cloud: Cloud) -> None:
    server_id = await cloud.create()
    assert (await cloud.ask("DELETE", f"{SERVERS}{server_id}/")).status_code == 204
    await cloud.settle()
    assert await cloud.hypervisor.guests() == {}


@pytest.mark.parametrize("commands", [("stop", "stop"), ("stop", "reboot"), ("reboot", "reboot", "stop")])
async def test_of_two_commands_at_once_one_wins(cloud: Cloud, commands: tuple[str, ...]) -> None:
    server_id = await cloud.have_server()
    answers = await asyncio.gather(*(cloud.post(f"{SERVERS}{server_id}/{command}/") for command in commands))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200, *[400] * (len(commands) - 1)]
    for answer in answers:
        if answer.status_code == 400:
            assert answer.json()["code"] in ("wrong_status", "busy")
    assert len(await cloud.operations(server_id)) == 2  # the making, and the command that won


async def test_everything_at_once_leaves_a_server_that_is_gone(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    path = f"{SERVERS}{server_id}/"
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "stop/", {}),
        ("DELETE", "", {}),
        ("PATCH", "", {"json": {"hostname": "new.example.com"}}),
        ("DELETE", "", {}),
        ("POST", "reboot/", {}),
        ("PUT", "", {"json": WHOLE}),
    ]
    answers = await asyncio.gather(*(cloud.ask(method, path + end, **body) for method, end, body in requests))
    assert {answer.status_code for answer in answers} <= {200, 204, 400, 404}
    assert [answer.status_code for answer in answers].count(204) == 1
    await cloud.settle()
    assert await cloud.hypervisor.guests() == {}
