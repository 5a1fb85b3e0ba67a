"""The backups and snapshots sections: what they take, what they refuse, and in which words."""

import re
from typing import Any

import pytest

from tests.cloud import Cloud
from vpsd.lifecycle import Status

BACKUPS, SNAPSHOTS = "/api/v1/backups/", "/api/v1/snapshots/"


async def test_lists_are_newest_first_and_can_be_narrowed(cloud: Cloud) -> None:
    one, two = await cloud.have_server("one"), await cloud.have_server("two")
    made = [await cloud.have_copy(server) for server in (one, two, one)]
    snapshot = await cloud.have_copy(two, "snapshot")

    async def ids(path: str) -> list[int]:
        answer = await cloud.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.json()["count"] == len(answer.json()["results"])
        return [found["id"] for found in answer.json()["results"]]

    assert await ids(BACKUPS) == [made[2]["id"], made[1]["id"], made[0]["id"]]
    assert await ids(f"{BACKUPS}?server_id={one}") == [made[2]["id"], made[0]["id"]]
    assert await ids(f"{BACKUPS}?backup_type=manual&server_id={two}") == [made[1]["id"]]
    assert await ids(f"{BACKUPS}?backup_type=automatic") == []
    assert await ids(f"{BACKUPS}?server_id=4711") == []
    assert await ids(SNAPSHOTS) == [snapshot["id"]]
    assert await ids(f"{SNAPSHOTS}?server_id={one}") == []
    first = (await cloud.get(f"{BACKUPS}?page_size=2")).json()
    assert (first["count"], len(first["results"])) == (3, 2)
    second = (await cloud.get(first["next"])).json()
    assert [found["id"] for found in second["results"]] == [made[0]["id"]]
    for query, field in (
        ("server_id=0", "server_id"),
        ("server_id=x", "server_id"),
        ("backup_type=daily", "backup_type"),
    ):
        wrong = await cloud.get(f"{BACKUPS}?{query}")
        assert (wrong.status_code, list(wrong.json())) == (400, [field])


@pytest.mark.parametrize(
    ("path", "body", "field", "text"),
    [
        (BACKUPS, {}, "server_id", "required"),
        (BACKUPS, {"server_id": "1"}, "server_id", "whole number"),
        (BACKUPS, {"server_id": 1, "name": "x"}, "name", "Unknown field"),
        (BACKUPS, {"server_id": 1, "description": "x" * 1001}, "description", "1000"),
        (SNAPSHOTS, {"server_id": 1}, "name", "required"),
        (SNAPSHOTS, {"server_id": 1, "name": "before update"}, "name", "hyphens and underscores"),
        (SNAPSHOTS, {"server_id": 1, "name": "x" * 64}, "name", "63"),
        (SNAPSHOTS, {"server_id": 1, "name": "x\n"}, "name", "hyphens"),
        ("/api/v1/servers/1/backup/", {"label": "x" * 256}, "label", "255"),
        ("/api/v1/servers/1/snapshot/", {"name": "x"}, "name", "Unknown field"),
    ],
)
async def test_what_is_wrong_is_named(cloud: Cloud, path: str, body: dict[str, Any], field: str, text: str) -> None:
    await cloud.have_server()
    answer = await cloud.post(path, body)
    assert answer.status_code == 400
    assert list(answer.json()) == [field]
    assert text in answer.json()[field][0]
    assert (await cloud.get(BACKUPS)).json()["count"] == (await cloud.get(SNAPSHOTS)).json()["count"] == 0


async def test_one_answer_names_what_the_wire_and_the_service_find_wrong(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for _ in range(cloud.settings.snapshots_per_server):
        await cloud.have_copy(server, "snapshot")
    answer = await cloud.post(SNAPSHOTS, {"server_id": server, "name": "before update", "size": 1})
    assert answer.status_code == 400
    assert set(answer.json()) == {"server_id", "name", "size"}


async def test_the_official_clients_forms_take_a_label_or_nothing_at_all(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for body, name, description in (
        (None, r"snapshot-2025-\d\d-\d\dT\d{6}", None),
        ({}, r"snapshot-2025-\d\d-\d\dT\d{6}", None),
        ({"label": "before-update"}, "before-update", "before-update"),
        ({"label": "Before the update!"}, "Before-the-update", "Before the update!"),
        ({"label": "\u00fc"}, r"snapshot-.*", "\u00fc"),
    ):
        made = (await cloud.post(f"/api/v1/servers/{server}/snapshot/", body)).json()
        await cloud.work()
        assert re.fullmatch(name, made["name"]), made
        assert made["description"] == description
    made = (await cloud.post(f"/api/v1/servers/{server}/backup/", {"label": "by hand"})).json()
    assert (made["backup_type"], made["description"], made["expires_at"]) == ("manual", "by hand", None)
    assert made["message"].startswith("Backup is being created")


async def test_servers_that_are_not_there_or_not_at_rest_are_refused(cloud: Cloud) -> None:
    server = await cloud.create()
    for path, body in ((BACKUPS, {"server_id": server}), (f"/api/v1/servers/{server}/snapshot/", None)):
        assert (await cloud.post(path, body)).json()["code"] == "wrong_status"
    await cloud.work()
    foreign = await cloud.post(BACKUPS, {"server_id": server}, who="charlie")
    missing = await cloud.post(SNAPSHOTS, {"server_id": 4711, "name": "x"})
    assert (foreign.status_code, missing.status_code) == (404, 404)
    backup, snapshot = await cloud.have_copy(server), await cloud.have_copy(server, "snapshot")
    assert (await cloud.get(f"{SNAPSHOTS}{backup['id']}/")).status_code == 404
    assert (await cloud.post(f"{BACKUPS}{snapshot['id']}/restore/")).status_code == 404
    await cloud.post(f"/api/v1/servers/{server}/stop/")
    refused = await cloud.post(f"{BACKUPS}{backup['id']}/restore/")
    assert (refused.status_code, refused.json()["code"]) == (400, "wrong_status")
    assert "The server is stopping" in refused.json()["detail"]
    await cloud.work()
    assert await cloud.status(server) == Status.STOPPED


async def test_a_backup_that_is_being_made_says_only_what_is_known(cloud: Cloud) -> None:
    server = await cloud.have_server()
    made = (await cloud.post(BACKUPS, {"server_id": server})).json()
    found = (await cloud.get(f"{BACKUPS}{made['id']}/")).json()
    operation = (await cloud.operations(server))[-1]
    assert made.pop("operation") == {"id": operation["id"], "status": "queued"}
    assert {key: value for key, value in made.items() if key != "message"} == found
    unknown = ("size_mb", "completed_at", "consistent", "paused_ms", "incremental", "sent_mb", "encrypted", "error")
    assert {key: found[key] for key in unknown} == dict.fromkeys(unknown)
    in_use = await cloud.ask("DELETE", f"{BACKUPS}{made['id']}/")
    assert (in_use.status_code, in_use.json()["code"]) == (400, "busy")
    await cloud.work()
    assert (await cloud.ask("DELETE", f"{BACKUPS}{made['id']}/")).status_code == 204
    assert (await cloud.ask("DELETE", f"{BACKUPS}{made['id']}/")).status_code == 404
