"""Tags, names to look for, and protection from deletion."""

from typing import Any

import pytest

from tests.api.tables import rows
from tests.cloud import TINY, Cloud
from vpsd.lifecycle import Status

SERVERS = "/api/v1/servers/"


async def test_tags_are_kept_in_their_order_and_shown_everywhere(cloud: Cloud) -> None:
    made = await cloud.post(SERVERS, {"name": "web", **TINY, "tags": ["web", "env:prod"], "protected": True})
    assert (made.json()["tags"], made.json()["protected"]) == (["web", "env:prod"], True)
    one = f"{SERVERS}{made.json()['id']}/"
    for shown in ((await cloud.get(one)).json(), (await cloud.get(SERVERS)).json()["results"][0]):
        assert (shown["tags"], shown["protected"], shown["delete_at"]) == (["web", "env:prod"], True, None)
    changed = await cloud.ask("PATCH", one, json={"tags": []})
    assert (changed.json()["tags"], changed.json()["protected"]) == ([], True)


async def test_a_put_that_does_not_speak_of_tags_and_protection_leaves_them(cloud: Cloud) -> None:
    server_id = await cloud.create(tags=["web"], protected=True)
    body = {"name": "web", "hostname": "web", "backups_enabled": False}
    kept = (await cloud.ask("PUT", f"{SERVERS}{server_id}/", json=body)).json()
    assert (kept["tags"], kept["protected"]) == (["web"], True)
    more = {**body, "tags": ["db"], "protected": False}
    changed = (await cloud.ask("PUT", f"{SERVERS}{server_id}/", json=more)).json()
    assert (changed["tags"], changed["protected"]) == (["db"], False)


async def test_a_server_made_without_them_has_none_and_is_not_protected(cloud: Cloud) -> None:
    made = (await cloud.post(SERVERS, {"name": "web", **TINY})).json()
    assert (made["tags"], made["protected"]) == ([], False)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        (["ok", "Upper"], "Entry 2: Give at most 20 tags, each a lower-case letter or digit"),
        (["-x"], "Entry 1: Give at most 20 tags"),
        (["x" * 64], "Entry 1: Give at most 20 tags"),
        (["x\n"], "Entry 1: Give at most 20 tags"),
        (["ä"], "Entry 1: Give at most 20 tags"),
        ([f"t{number}" for number in range(21)], "Give at most 20 tags"),
        (["a", "b", "a"], "Entry 3: a is there already. Give each tag once."),
        ("a", "Expected an array, got a string."),
        (None, "Expected an array, got null."),
    ],
)
async def test_tags_that_cannot_be_are_refused_by_place(cloud: Cloud, tags: Any, text: str) -> None:
    server_id = await cloud.create()
    for method, path, body in (("POST", SERVERS, {"name": "x", **TINY}), ("PATCH", f"{SERVERS}{server_id}/", {})):
        answer = await cloud.ask(method, path, json={**body, "tags": tags})
        assert answer.status_code == 400
        (messages,) = answer.json().items()
        assert messages[0] == "tags"
        assert messages[1][0].startswith(text)


async def test_the_longest_tags_that_are_allowed_are_kept(cloud: Cloud) -> None:
    tags = [f"{number:02d}" + "x" * 61 for number in range(20)]
    server_id = await cloud.create(tags=tags)
    assert (await cloud.get(f"{SERVERS}{server_id}/")).json()["tags"] == tags


async def names(cloud: Cloud, query: str, who: str = "alice") -> tuple[int, list[str]]:
    listed = (await cloud.get(f"{SERVERS}?{query}", who=who)).json()
    return listed["count"], [server["name"] for server in listed["results"]]


async def test_a_list_is_narrowed_by_tag_and_name_and_whatever_else(cloud: Cloud) -> None:
    await cloud.create("a", tags=["web_1", "env:prod"])
    await cloud.create("b", tags=["webx1", "env:prod-2"])
    await cloud.create("b", tags=["env:prod"], location="us-east")
    await cloud.create("a", who="charlie", tags=["env:prod"])
    assert await names(cloud, "tag=env:prod") == (2, ["a", "b"])
    assert await names(cloud, "tag=web_1") == (1, ["a"])
    assert await names(cloud, "tag=env") == (0, [])
    assert await names(cloud, "tag=nobody-has-it") == (0, [])
    assert await names(cloud, "name=b") == (2, ["b", "b"])
    assert await names(cloud, "name=B") == (0, [])
    assert await names(cloud, "name=b&tag=env:prod") == (1, ["b"])
    assert await names(cloud, "name=b&tag=env:prod&location=us-west&status=provisioning") == (0, [])
    assert await names(cloud, "name=b&tag=env:prod&location=us-east&status=provisioning") == (1, ["b"])
    first = (await cloud.get(f"{SERVERS}?tag=env:prod&page_size=1")).json()
    assert (first["count"], len(first["results"])) == (2, 1)
    assert [server["location"] for server in (await cloud.get(first["next"])).json()["results"]] == ["us-east"]


@pytest.mark.parametrize("query", ["tag=Upper", "tag=%25", "tag=", "name=-", "name=a_b", "name="])
async def test_a_filter_that_no_server_could_meet_is_refused(cloud: Cloud, query: str) -> None:
    answer = await cloud.get(f"{SERVERS}?{query}")
    assert answer.status_code == 400
    assert set(answer.json()) == {query.split("=")[0]}


async def test_a_protected_server_is_deleted_only_when_that_is_lifted(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    one = f"{SERVERS}{server_id}/"
    await cloud.ask("PATCH", one, json={"protected": True})
    events = len(await rows(cloud.database, "events"))
    answer = await cloud.ask("DELETE", one)
    assert (answer.status_code, answer.json()["code"]) == (409, "protected")
    assert f'PATCH {one} with {{"protected": false}}' in answer.json()["detail"]
    assert await cloud.status(server_id) == Status.ACTIVE
    assert len(await rows(cloud.database, "events")) == events
    assert (await cloud.ask("DELETE", one, who="charlie")).status_code == 404
    await cloud.ask("PATCH", one, json={"protected": False})
    assert (await cloud.ask("DELETE", one)).status_code == 204
