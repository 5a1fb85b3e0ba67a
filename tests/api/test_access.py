"""Who may do what, asked of every route that is described."""

from typing import Any

import msgspec

from tests.cloud import Cloud
from vpsd.api.app import openapi_json

DOCUMENT: dict[str, Any] = msgspec.json.decode(openapi_json())
ROUTES = [
    (method.upper(), path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV laptop"


def body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return {"json": content["application/json"]["example"]} if content else {}


async def test_every_route_but_the_public_ones_asks_for_a_token(cloud: Cloud) -> None:
    open_to_all = []
    for method, path, operation in ROUTES:
        answer = await cloud.ask(method, path.format(server_id=1, key_id=1), who=None, **body(operation))
        if operation.get("security") == []:
            open_to_all.append(path)
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401, (method, path)
            assert "WWW-Authenticate" in answer.headers
    assert open_to_all == ["/health"]


async def test_what_belongs_to_another_account_does_not_exist(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    key = await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY})
    assert key.status_code == 201
    owned = [route for route in ROUTES if "{" in route[1]]
    assert len(owned) == 10
    for method, path, operation in owned:
        path = path.format(server_id=server_id, key_id=key.json()["id"])
        answer = await cloud.ask(method, path, who="charlie", **body(operation))
        assert answer.status_code == 404, (method, path)
        assert answer.json()["code"] == "not_found"
    assert await cloud.status(server_id) == "active"
    assert (await cloud.get("/api/v1/ssh-keys/")).json()["count"] == 1


async def test_lists_show_ones_own_things_only(cloud: Cloud) -> None:
    await cloud.create()
    await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY})
    for path in ("/api/v1/servers/", "/api/v1/ssh-keys/"):
        assert (await cloud.get(path, who="charlie")).json()["count"] == 0
        assert (await cloud.get(path)).json()["count"] == 1


async def test_anothers_key_cannot_be_installed(cloud: Cloud) -> None:
    key = (await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": PUBLIC_KEY})).json()
    wish = {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west", "ssh_key_id": key["id"]}
    answer = await cloud.post("/api/v1/servers/", wish, who="charlie")
    assert answer.status_code == 400
    assert set(answer.json()) == {"ssh_key_id"}
