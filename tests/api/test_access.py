"""Who may do what, asked of every route that is described: as nobody, as a stranger, as read-only, as each role."""

from typing import Any

import msgspec
import pytest
from litestar import get

from tests.cloud import Cloud
from vpsd.accounts import service as accounts
from vpsd.accounts.permissions import KNOWN, OF_ROLE, Role, covers
from vpsd.accounts.service import NewPerson
from vpsd.api.app import make_routes, openapi_json

DOCUMENT: dict[str, Any] = msgspec.json.decode(openapi_json())
ROUTES = [
    (method.upper(), path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV laptop"

# What each route needs, word for word: a change here is a change of who may do what.
NEEDS = {
    "server_list": "servers:read",
    "server_create": "servers:*",
    "server_get": "servers:read",
    "server_update": "servers:*",
    "server_patch": "servers:*",
    "server_delete": "servers:*",
    "server_undelete": "servers:*",
    "server_start": "servers:*",
    "server_stop": "servers:*",
    "server_reboot": "servers:*",
    "server_power": "servers:*",
    "server_resize": "servers:*",
    "server_rebuild": "servers:*",
    "server_operations": "servers:read",
    "backup_of_server": "servers:*",
    "snapshot_of_server": "servers:*",
    "backup_list": "servers:read",
    "backup_create": "servers:*",
    "backup_get": "servers:read",
    "backup_restore": "servers:*",
    "backup_delete": "servers:*",
    "snapshot_list": "servers:read",
    "snapshot_create": "servers:*",
    "snapshot_get": "servers:read",
    "snapshot_restore": "servers:*",
    "snapshot_delete": "servers:*",
    "ssh_key_list": "ssh_keys:read",
    "ssh_key_create": "ssh_keys:*",
    "ssh_key_get": "ssh_keys:read",
    "ssh_key_delete": "ssh_keys:*",
    "placement_group_list": "servers:read",
    "placement_group_create": "servers:*",
    "placement_group_get": "servers:read",
    "placement_group_patch": "servers:*",
    "placement_group_delete": "servers:*",
    "plan_list": "servers:read",
    "plan_get": "servers:read",
    "operating_system_list": "servers:read",
    "location_list": "servers:read",
    "token_list": "tokens:read",
    "token_create": "tokens:*",
    "token_delete": "tokens:*",
    "event_list": "tokens:read",
    "account_balance": "billing:read",
    "transaction_list": "billing:read",
    "account_usage": "billing:read",
    "server_migrate": "operator:*",
    "operation_get": "operator:*",
}
IDS = ("server_id", "backup_id", "snapshot_id", "key_id", "group_id", "token_id", "plan_id", "operation_id")
FOR_EVERYBODY = {"account_me"}  # any valid token


def body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return {"json": content["application/json"]["example"]} if content else {}


async def ask(cloud: Cloud, route: tuple[str, str, dict[str, Any]], who: str | None, **ids: int) -> Any:
    method, path, operation = route
    filled = path.format(**{**dict.fromkeys(IDS, 1), **ids})
    return await cloud.ask(method, filled, who=who, **body(operation))


def test_every_route_has_its_line_in_the_table() -> None:
    named = {operation["operationId"] for _, _, operation in ROUTES if operation.get("security") != []}
    assert named == set(NEEDS) | FOR_EVERYBODY


def test_a_route_that_forgot_to_say_what_it_needs_makes_no_application() -> None:
    @get("/forgotten/")
    async def forgotten() -> None:
        """Anybody's."""

    with pytest.raises(TypeError, match="which permission it needs"):
        make_routes([forgotten])


async def test_every_route_but_the_public_ones_asks_for_a_token(cloud: Cloud) -> None:
    open_to_all = []
    for route in ROUTES:
        answer = await ask(cloud, route, None)
        if route[2].get("security") == []:
            open_to_all.append(route[1])
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401, route[1]
            assert "WWW-Authenticate" in answer.headers
    assert open_to_all == ["/health", "/health/live", "/health/ready"]


async def test_what_belongs_to_another_account_does_not_exist(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    key = await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY})
    assert key.status_code == 201
    token_id = (await cloud.get("/api/v1/account/me/")).json()["token"]["id"]
    of_nobody = ("plan_id", "/operator/")  # for those nothing is anybody's, or everything is
    owned = [route for route in ROUTES if "{" in route[1] and not any(part in route[1] for part in of_nobody)]
    assert len(owned) == 26
    group_id = (await cloud.post("/api/v1/placement-groups/", {"name": "database"})).json()["id"]
    ids = {"server_id": server_id, "group_id": group_id, "key_id": key.json()["id"], "token_id": token_id}
    ids |= {f"{what}_id": (await cloud.have_copy(server_id, what))["id"] for what in ("backup", "snapshot")}
    for route in owned:
        answer = await ask(cloud, route, "charlie", **ids)
        assert answer.status_code == 404, route[:2]
        assert answer.json()["code"] == "not_found"
    assert await cloud.status(server_id) == "active"
    assert (await cloud.get("/api/v1/ssh-keys/")).json()["count"] == 1
    assert (await cloud.get("/api/v1/account/me/")).status_code == 200


async def test_lists_show_ones_own_things_only(cloud: Cloud) -> None:
    await cloud.create()
    await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY})
    await cloud.post("/api/v1/account/tokens/", {"name": "one more", "permissions": ["servers:read"]})
    server_id = await cloud.have_server("two")
    for what in ("backup", "snapshot"):
        await cloud.have_copy(server_id, what)
    for path, theirs, mine in (
        ("servers/", 0, 2),
        ("backups/", 0, 1),
        ("snapshots/", 0, 1),
        ("ssh-keys/", 0, 1),
        ("account/tokens/", 1, 2),
        ("account/events/", 3, 11),  # two of them of servers that began to work
        ("account/transactions/", 1, 1),
    ):
        assert (await cloud.get(f"/api/v1/{path}", who="charlie")).json()["count"] == theirs, path
        assert (await cloud.get(f"/api/v1/{path}")).json()["count"] == mine, path
    assert (await cloud.get("/api/v1/account/usage/", who="charlie")).json()["servers"] == []


async def test_anothers_key_cannot_be_installed(cloud: Cloud) -> None:
    key = (await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY})).json()
    order = {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west", "ssh_key_id": key["id"]}
    answer = await cloud.post("/api/v1/servers/", order, who="charlie")
    assert answer.status_code == 400
    assert set(answer.json()) == {"ssh_key_id"}


async def _refused(cloud: Cloud, who: str) -> set[str]:
    """The operations that somebody may not do; each refusal names what is missing."""
    refused = set()
    for route in ROUTES:
        name = route[2]["operationId"]
        answer = await ask(cloud, route, who, token_id=999)
        if answer.status_code == 403 and "hand it on" not in answer.json()["detail"]:
            refused.add(name)
            assert answer.json() == {
                "detail": f"This token lacks the permission {NEEDS[name]}.",
                "code": "forbidden",
            }
    return refused


async def test_a_token_that_may_only_read_reads_everything_and_does_nothing(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    before = await cloud.row(server_id)
    reads = {operation["operationId"] for method, _, operation in ROUTES if method == "GET"}
    reads -= {name for name, need in NEEDS.items() if need == "operator:*"}  # of these `*:read` opens none
    refused = await _refused(cloud, await cloud.token("*:read"))
    assert refused == set(NEEDS) - reads
    assert await cloud.row(server_id) == before


@pytest.mark.parametrize("permission", [name for name in KNOWN if name not in ("*:*", "*:read")])
async def test_a_permission_opens_what_it_names_and_nothing_else(cloud: Cloud, permission: str) -> None:
    refused = await _refused(cloud, await cloud.token(permission))
    assert refused == {name for name, need in NEEDS.items() if not covers([permission], need)}
    assert refused


@pytest.mark.parametrize("role", list(Role))
async def test_a_role_bounds_what_its_persons_tokens_may_do(cloud: Cloud, role: Role) -> None:
    async with cloud.writing("alice") as ctx:
        person = await accounts.add_person(ctx, NewPerson("bob@example.com", "Bob", "B", role))
    bob = await cloud.token("*:*", person_id=person.id)
    refused = await _refused(cloud, bob)
    assert refused == {name for name, need in NEEDS.items() if not covers(OF_ROLE[role], need)}


async def test_a_token_of_a_read_only_person_cannot_be_made_to_do_more(cloud: Cloud) -> None:
    who = await cloud.token("tokens:*", "servers:read")
    for wanted, missing in (("servers:*", "servers:*"), ("*:*", "*:*"), ("billing:read", "billing:read")):
        answer = await cloud.post("/api/v1/account/tokens/", {"name": "more", "permissions": [wanted]}, who=who)
        assert answer.status_code == 403
        assert missing in answer.json()["detail"]
    answer = await cloud.post("/api/v1/account/tokens/", {"name": "less", "permissions": ["servers:read"]}, who=who)
    assert answer.status_code == 201
