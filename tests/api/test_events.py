"""Events: who did what, when, with which token, from where. Each change has one, and nothing else has any."""

import sqlite3
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import delete, update

from tests.api.tables import rows
from tests.api.test_access import PUBLIC_KEY, ROUTES
from tests.cloud import TINY, Cloud
from tests.idempotency.posts import BEFORE
from vpsd.core.clock import iso_utc
from vpsd.core.db import Statement
from vpsd.events.models import events
from vpsd.lifecycle import Status

EVENTS = "/api/v1/account/events/"
CHANGE = {"name": "web-2", "hostname": "web.example.com", "backups_enabled": True}

# For each route that changes something: body, action, what it is done to, what is told of it.
CHANGES: dict[str, tuple[Any, str, str, str | None]] = {
    "server_create": ({"name": "web", **TINY}, "server.create", "server", "web: Nano VPS, Tiny Linux"),
    "server_update": (
        *(CHANGE, "server.change", "server"),
        "name web-2, hostname web.example.com, backups_enabled True",
    ),
    "server_patch": ({"name": "web-3"}, "server.change", "server", "name web-3"),
    "server_undelete": (None, "server.undelete", "server", None),
    "server_start": (None, "server.start", "server", None),
    "server_stop": (None, "server.stop", "server", None),
    "server_reboot": (None, "server.reboot", "server", None),
    "server_power": ({"action": "hard_stop"}, "server.hard_stop", "server", None),
    "server_resize": ({"plan_id": 3}, "server.resize", "server", "Nano VPS to Starter VPS"),
    "server_rebuild": ({"os_id": 3}, "server.rebuild", "server", "Debian 12"),
    "server_delete": (None, "server.delete", "server", None),
    "backup_of_server": (None, "backup.create", "backup", "of server {server_id}"),
    "snapshot_of_server": ({"label": "x"}, "snapshot.create", "snapshot", "of server {server_id}"),
    "backup_create": ({"server_id": 0}, "backup.create", "backup", "of server {server_id}"),
    "backup_restore": (None, "server.restore", "server", "from backup {backup_id}"),
    "backup_delete": (None, "backup.delete", "backup", "of server {server_id}"),
    "snapshot_create": ({"server_id": 0, "name": "x"}, "snapshot.create", "snapshot", "of server {server_id}"),
    "snapshot_restore": (None, "server.restore", "server", "from snapshot {snapshot_id}"),
    "snapshot_delete": (None, "snapshot.delete", "snapshot", "of server {server_id}"),
    "ssh_key_create": (
        *({"name": "laptop", "public_key": PUBLIC_KEY}, "ssh_key.add", "ssh_key"),
        "laptop SHA256:uzVFf1/MRs46QOr6LE9iUMja+pcJdQ/bcm6Oa3WYODQ",
    ),
    "ssh_key_delete": (None, "ssh_key.delete", "ssh_key", None),
    "placement_group_create": ({"name": "database"}, "placement_group.create", "placement_group", "database"),
    "placement_group_patch": ({"name": "cache"}, "placement_group.change", "placement_group", "name cache"),
    "placement_group_delete": (None, "placement_group.delete", "placement_group", "placement-group-delete"),
    "token_create": (
        *({"name": "backup", "permissions": ["servers:read"]}, "token.create", "token"),
        "backup: servers:read",
    ),
    "token_delete": (None, "token.revoke", "token", None),
}

# And from which status to which the server goes with it.
TRANSITIONS: dict[str, tuple[str | None, str]] = {
    "server_create": (None, "provisioning"),
    "server_undelete": ("deleted", "starting"),
    "server_start": ("stopped", "starting"),
    "server_stop": ("active", "stopping"),
    "server_reboot": ("active", "rebooting"),
    "server_power": ("active", "stopping"),
    "server_resize": ("active", "resizing"),
    "server_rebuild": ("active", "rebuilding"),
    "server_delete": ("active", "deleting"),
    "backup_restore": ("active", "restoring"),
    "snapshot_restore": ("active", "restoring"),
}


async def _ready(cloud: Cloud, operation: str) -> dict[str, int]:
    """Ids of what the change is done to."""
    if operation == "ssh_key_delete":
        key = await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY}, who="charlie")
        assert key.status_code == 201
        return {"key_id": key.json()["id"]}
    if operation in ("placement_group_patch", "placement_group_delete"):
        name = operation.replace("_", "-")
        made = await cloud.post("/api/v1/placement-groups/", {"name": name}, who="charlie")
        return {"group_id": made.json()["id"]}
    if operation == "token_delete":
        made = await cloud.post("/api/v1/account/tokens/", {"name": "n", "permissions": ["*:read"]}, who="charlie")
        return {"token_id": made.json()["id"]}
    what, _, done = operation.partition("_")
    if what in ("backup", "snapshot"):
        server_id = await cloud.have_server(operation.replace("_", "-"), who="charlie")
        ids = {"server_id": server_id}
        if done in ("restore", "delete"):
            ids[f"{what}_id"] = (await cloud.have_copy(server_id, what, who="charlie"))["id"]
        return ids
    if operation.startswith("server_") and operation != "server_create":
        status = BEFORE.get(operation, Status.ACTIVE)
        return {"server_id": await cloud.have_server(operation.replace("_", "-"), status, who="charlie")}
    return {}


async def test_every_change_has_one_event_that_tells_who_and_what(cloud: Cloud) -> None:
    me = (await cloud.get("/api/v1/account/me/", who="charlie")).json()["token"]
    routes = [route for route in ROUTES if route[0] != "GET" and "/operator/" not in route[1]]
    assert {operation["operationId"] for _, _, operation in routes} == set(CHANGES)
    app = cloud.app()
    transport = httpx.ASGITransport(app, client=("2001:db8::7", 4711))
    headers = {"Authorization": f"Bearer {cloud.tokens['charlie']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://vpsd.test", headers=headers) as http:
        for method, path, operation in sorted(routes, key=lambda route: "delete" not in route[2]["operationId"]):
            name = operation["operationId"]
            body, action, target, detail = CHANGES[name]
            ids = await _ready(cloud, name)
            if "server_id" in (body or {}):
                body = {**body, **ids}
            before = len(await rows(cloud.database, "events"))
            filled = path.format(**ids)
            request_id = f"request.{name}"
            answer = await http.request(method, filled, json=body, headers={"X-Request-ID": request_id})
            assert answer.is_success, (name, answer.text)
            assert len(await rows(cloud.database, "events")) == before + 1, name
            newest = (await cloud.get(EVENTS, who="charlie")).json()["results"][0]
            assert newest == {
                "id": newest["id"],
                "at": iso_utc(cloud.clock.now_ms()),
                "action": action,
                "actor": "token",
                "token": {"id": me["id"], "name": "test"},
                "address": "2001:db8::7",
                "request_id": request_id,
                "target": {"type": target, "id": ids.get(f"{target.rpartition('_')[2]}_id") or answer.json()["id"]},
                "detail": detail and detail.format(**ids),
                "transition": dict(zip(("from", "to"), TRANSITIONS[name], strict=True))
                if name in TRANSITIONS
                else None,
            }
    assert (await cloud.get(EVENTS)).json()["count"] == 3  # of Alice's account: none of that is hers


async def test_a_refused_request_has_no_event_and_neither_has_a_read(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    reader = await cloud.token("*:read")
    await cloud.have_balance(0)
    before = await rows(cloud.database, "events")
    for method, path, body, who, status_code in (
        ("POST", "servers/", {"name": "web", **TINY}, "alice", 402),
        ("POST", "servers/", {"name": "web"}, "alice", 400),
        ("POST", "servers/", {"name": "web", **TINY}, reader, 403),
        ("POST", f"servers/{server_id}/start/", None, "alice", 400),
        ("POST", f"servers/{server_id}/stop/", None, "charlie", 404),
        ("PATCH", f"servers/{server_id}/", {"name": "-"}, "alice", 400),
        ("PATCH", f"servers/{server_id}/", {}, "alice", 200),  # nothing was to change
        ("PUT", f"servers/{server_id}/", {"name": "x"}, "alice", 400),
        ("DELETE", f"servers/{server_id}/", None, "charlie", 404),
        ("DELETE", f"servers/{server_id}/", None, reader, 403),
        ("POST", "ssh-keys/", {"name": "k", "public_key": "x"}, "alice", 400),
        ("DELETE", "ssh-keys/4711/", None, "alice", 404),
        ("POST", "account/tokens/", {"name": "t", "permissions": ["x"]}, "alice", 400),
        ("POST", "account/tokens/", {"name": "t", "permissions": ["servers:*"]}, reader, 403),
        ("DELETE", "account/tokens/4711/", None, "alice", 404),
        ("POST", f"servers/{server_id}/stop/?dry_run=1", None, "alice", 200),
    ):
        answer = await cloud.ask(method, f"/api/v1/{path}", json=body, who=who)
        assert answer.status_code == status_code, (method, path, answer.text)
    for method, path, _ in [route for route in ROUTES if "/operator/" not in route[1]]:
        if method == "GET":
            await cloud.get(
                path.format(server_id=server_id, group_id=1, key_id=1, plan_id=1, backup_id=1, snapshot_id=1)
            )
    assert await rows(cloud.database, "events") == before


async def test_they_come_newest_first_page_by_page(cloud: Cloud) -> None:
    for number in range(3):
        await cloud.create(f"web-{number}")
        cloud.clock.advance(1)
    first = (await cloud.get(f"{EVENTS}?page_size=4")).json()
    second = (await cloud.get(first["next"])).json()
    assert first["count"] == 6
    actions = [event["action"] for page in (first, second) for event in page["results"]]
    assert actions == ["server.create"] * 3 + ["token.create", "credit.add", "account.open"]
    ids = [event["id"] for page in (first, second) for event in page["results"]]
    assert ids == sorted(ids, reverse=True)
    assert [event["at"] for event in first["results"]] == sorted((e["at"] for e in first["results"]), reverse=True)


async def test_what_the_operator_does_is_the_operators(cloud: Cloud) -> None:
    (opened,) = [event for event in (await cloud.get(EVENTS)).json()["results"] if event["action"] == "account.open"]
    assert opened == {
        "id": opened["id"],
        "at": iso_utc(cloud.clock.now_ms()),
        "action": "account.open",
        "actor": "operator",
        "token": None,
        "address": None,
        "request_id": None,
        "target": None,
        "detail": None,
        "transition": None,
    }


async def test_what_no_request_caused_has_an_event_of_its_own(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    event = (await cloud.get(EVENTS)).json()["results"][0]
    assert {name: event[name] for name in ("action", "actor", "token", "target", "transition")} == {
        "action": "server.status",
        "actor": "vpsd",
        "token": None,
        "target": {"type": "server", "id": server_id},
        "transition": {"from": "provisioning", "to": "active"},
    }


async def test_an_address_that_is_none_is_not_written_down(cloud: Cloud) -> None:
    app = cloud.app()
    for odd in ("testclient", "x" * 100, "1.2.3.4, 5.6.7.8", ""):
        transport = httpx.ASGITransport(app, client=(odd, 4711))
        headers = {"Authorization": f"Bearer {cloud.tokens['alice']}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://vpsd.test", headers=headers) as http:
            assert (await http.post("/api/v1/servers/", json={"name": "web", **TINY})).status_code == 201
        assert (await cloud.get(EVENTS)).json()["results"][0]["address"] == "unknown"


async def test_what_a_revoked_token_did_keeps_its_name(cloud: Cloud) -> None:
    who = await cloud.token("*:*")
    server_id = await cloud.create(who=who)
    mine = (await cloud.get("/api/v1/account/me/", who=who)).json()["token"]
    await cloud.ask("DELETE", f"/api/v1/account/tokens/{mine['id']}/")
    made = [event for event in (await cloud.get(EVENTS)).json()["results"] if event["action"] == "server.create"]
    assert [(event["token"]["name"], event["target"]["id"]) for event in made] == [(mine["name"], server_id)]


async def test_the_database_refuses_to_change_or_delete_one(cloud: Cloud) -> None:
    before = await rows(cloud.database, "events")
    for statement in (update(events).values(action="nothing"), delete(events)):
        with pytest.raises((sqlite3.IntegrityError, asyncpg.PostgresError), match="append-only"):
            async with cloud.database.write() as tx:
                await tx.run(Statement(statement), action="nothing")
    assert await rows(cloud.database, "events") == before
