"""The operation that a request has queued: its answer names it, and a deletion's header does."""

from typing import Any

import pytest

from tests.api.tables import rows
from tests.api.test_access import ROUTES
from tests.cloud import TINY, Cloud
from tests.idempotency.posts import POSTS, SERVERS, ready
from vpsd.lifecycle import Status

HEADER = "X-Operation-ID"
QUEUE = [name for name in POSTS if name not in ("ssh_key_create", "placement_group_create", "token_create")]


async def _operation(cloud: Cloud, operation_id: int) -> dict[str, Any]:
    (found,) = [row for row in await rows(cloud.database, "operations") if row["id"] == operation_id]
    return found


@pytest.mark.parametrize("operation", QUEUE)
async def test_an_answer_names_the_operation_and_a_repeated_request_names_the_same(
    cloud: Cloud, operation: str
) -> None:
    path, body = await ready(cloud, operation)
    headers = {"Idempotency-Key": "one"}
    answer = await cloud.post(path, body, headers=headers)
    named = answer.json()["operation"]
    assert list(named) == ["id", "status"]
    newest = max(row["id"] for row in await rows(cloud.database, "operations"))
    assert named == {"id": newest, "status": "queued"}
    assert (await cloud.post(path, body, headers=headers)).json()["operation"] == named
    await cloud.work()
    assert (await _operation(cloud, newest))["status"] == "succeeded"


async def test_where_nothing_is_queued_none_is_named(cloud: Cloud) -> None:
    cloud.set(undelete_hours=1)
    server_id = await cloud.have_server(status=Status.STOPPED)
    path = f"{SERVERS}{server_id}/"
    assert (await cloud.post(f"{path}resize/", {"plan_id": 3})).json()["operation"] is None
    assert HEADER not in (await cloud.ask("DELETE", path)).headers  # it is down already
    assert (await cloud.post(f"{path}undelete/")).json()["operation"] is None
    assert await cloud.work() == 0


async def test_what_supersedes_another_operation_is_one_of_its_own(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    path = f"{SERVERS}{server_id}/"
    stop = (await cloud.post(f"{path}stop/")).json()["operation"]
    hard_stop = (await cloud.post(f"{path}power/", {"action": "hard_stop"})).json()["operation"]
    assert stop["id"] != hard_stop["id"]
    assert hard_stop["status"] == "queued"
    await cloud.settle()
    ends = {operation["id"]: operation["status"] for operation in await cloud.operations(server_id)}
    assert (ends[stop["id"]], ends[hard_stop["id"]]) == ("cancelled", "succeeded")


async def test_a_deletion_names_its_operation_in_a_header(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    answer = await cloud.ask("DELETE", f"{SERVERS}{server_id}/")
    assert (answer.status_code, answer.content) == (204, b"")
    found = await _operation(cloud, int(answer.headers[HEADER]))
    assert (found["server_id"], found["command"], found["status"]) == (server_id, "delete", "queued")


async def test_a_deletion_that_can_be_undone_names_what_shuts_the_server_down(cloud: Cloud) -> None:
    cloud.set(undelete_hours=1)
    server_id = await cloud.have_server()
    answer = await cloud.ask("DELETE", f"{SERVERS}{server_id}/")
    assert int(answer.headers[HEADER]) == (await cloud.operations(server_id))[-1]["id"]


async def test_other_answers_have_no_such_header(cloud: Cloud) -> None:
    made = await cloud.post("/api/v1/account/tokens/", {"name": "n", "permissions": ["servers:read"]})
    for answer in (
        await cloud.post(SERVERS, {"name": "web", **TINY}),
        await cloud.ask("DELETE", f"/api/v1/account/tokens/{made.json()['id']}/"),
        await cloud.ask("DELETE", f"{SERVERS}4711/"),
    ):
        assert HEADER not in answer.headers


def test_the_description_names_the_header_of_a_deletion_and_of_nothing_else() -> None:
    named = {
        operation["operationId"]
        for _, _, operation in ROUTES
        for answer in operation["responses"].values()
        if HEADER in answer.get("headers", ())
    }
    assert named == {"server_delete"}
