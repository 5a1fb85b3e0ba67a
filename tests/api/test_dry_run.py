"""`?dry_run=1`: what a POST would come to, and not a row that differs afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.api.tables import dump
from tests.api.test_access import ROUTES
from tests.cloud import Cloud
from tests.idempotency.posts import POSTS, SERVERS, WEB, ready
from vpsd.accounts import service as accounts
from vpsd.lifecycle import Status

BEGINS_FROM = {"start": Status.STOPPED, "stop": Status.ACTIVE, "reboot": Status.ACTIVE}
CAN_BE_TRIED = [
    operation["operationId"]
    for _, _, operation in ROUTES
    if any(parameter.get("name") == "dry_run" for parameter in operation.get("parameters", ()))
]


def test_whatever_makes_or_moves_a_server_can_be_tried() -> None:
    assert set(CAN_BE_TRIED) == {name for name in POSTS if name.startswith("server_") or name.endswith("_restore")}


@asynccontextmanager
async def listening(cloud: Cloud, url: str) -> AsyncIterator[list[str]]:
    """What workers hear, whichever way the database tells them."""
    heard: list[str] = []
    if url.startswith("sqlite"):
        cloud.database.on_operation(lambda: heard.append("wake"))
        yield heard
        return
    connection = await asyncpg.connect(url)
    await connection.add_listener("vpsd_operations", lambda *_: heard.append("wake"))
    yield heard
    while not heard:  # notices come in their order, with the next answer
        await connection.execute("SELECT 1")
    await connection.close()


@pytest.mark.parametrize("operation", CAN_BE_TRIED)
async def test_it_changes_nothing_and_wakes_nobody(cloud: Cloud, database_url: str, operation: str) -> None:
    path, body = await ready(cloud, operation)
    await cloud.post(f"{SERVERS}?dry_run=1", WEB)  # notes the use of the token
    async with listening(cloud, database_url) as heard:
        before = await dump(cloud.database)
        answer = await cloud.post(f"{path}?dry_run=1", body, headers={"Idempotency-Key": "one"})
        assert answer.status_code == 200, answer.text
        assert await dump(cloud.database) == before
        assert await cloud.work() == 0
        done = await cloud.post(path, body, headers={"Idempotency-Key": "one"})
        assert done.status_code in (200, 201)
        await asyncio.sleep(0)
    assert heard == ["wake"]


async def test_of_a_create_it_shows_answer_price_and_place(cloud: Cloud) -> None:
    host = await cloud.have_host()
    tried = await cloud.post(f"{SERVERS}?dry_run=1", {**WEB, "plan_id": 3, "hostname": "web.example.com"})
    assert '"monthly":5.00,"hourly":0.007,' in tried.text
    shown = tried.json()
    assert list(shown) == ["dry_run", "answer", "price", "placement"]
    assert shown["dry_run"] is True
    assert shown["price"] == {"monthly": 5.0, "hourly": 0.007, "currency": "USD"}
    assert shown["placement"] == {"location": "us-west", "host": host}
    assert [shown["answer"][name] for name in ("id", "uuid", "password", "operation")] == [None] * 4
    real = (await cloud.post(SERVERS, {**WEB, "plan_id": 3, "hostname": "web.example.com"})).json()
    assert shown["answer"] == {**real, "id": None, "uuid": None, "password": None, "operation": None}


async def test_a_host_is_named_before_it_has_spoken(cloud: Cloud) -> None:
    shown = (await cloud.post(f"{SERVERS}?dry_run=true", {**WEB, "location": "eu-central"})).json()
    assert shown["placement"] == {"location": "eu-central", "host": "simulator"}


@pytest.mark.parametrize("operation", [name for name in CAN_BE_TRIED if name != "server_create"])
async def test_of_a_command_it_shows_the_answer_it_would_give(cloud: Cloud, operation: str) -> None:
    path, body = await ready(cloud, operation)
    tried = await cloud.post(f"{path}?dry_run=1", body)
    price = '"monthly":5.00,"hourly":0.007,' if operation == "server_resize" else '"monthly":2.00,"hourly":0.003,'
    assert price in tried.text
    shown = tried.json()
    assert (shown["dry_run"], shown["placement"]["location"]) == (True, "us-west")
    real = (await cloud.post(path, body)).json()
    assert ("password" in real) == (operation == "server_rebuild")
    assert real["operation"]["status"] == "queued"
    assert shown["answer"] == real | {"operation": None} | ({"password": None} if "password" in real else {})


async def _limit(cloud: Cloud, **limits: int) -> None:
    async with cloud.writing("alice") as ctx:
        await accounts.set_limits(ctx, await cloud.account(), dict(limits))


async def test_it_meets_the_errors_that_the_request_would_meet(cloud: Cloud) -> None:
    active, stopped = await cloud.have_server("active"), await cloud.have_server("stopped", Status.STOPPED)
    foreign = await cloud.have_server("foreign", who="charlie")

    async def meets(path: str, body: Any, status_code: int, text: str, who: str = "alice") -> None:
        before = await dump(cloud.database)
        tried = await cloud.post(f"{path}?dry_run=1", body, who=who)
        real = await cloud.post(path, body, who=who)
        assert (tried.status_code, tried.content) == (real.status_code, real.content), path
        assert real.status_code == status_code, real.text
        assert text in real.text
        assert await dump(cloud.database) == before

    await meets(SERVERS, {"name": "-", "plan_id": 99}, 400, "This field is required")
    await meets(SERVERS, [], 400, "Send a JSON object")
    await meets(f"{SERVERS}4711/start/", None, 404, "not_found")
    for command in BEGINS_FROM:
        await meets(f"{SERVERS}{foreign}/{command}/", None, 404, "not_found")
    await meets(f"{SERVERS}{active}/start/", None, 400, "wrong_status")
    await meets(f"{SERVERS}{stopped}/stop/", None, 400, "wrong_status")
    await meets(f"{SERVERS}{stopped}/reboot/", None, 400, "wrong_status")
    await meets(SERVERS, WEB, 403, "forbidden", await cloud.token("*:read"))
    await _limit(cloud, max_servers=2)
    await meets(SERVERS, WEB, 403, "over_quota")
    await _limit(cloud, max_servers=9)
    await cloud.have_host(memory_mb=800)
    await meets(SERVERS, WEB, 503, "out_of_capacity")
    await meets(f"{SERVERS}{active}/resize/", {"plan_id": 3}, 503, "out_of_capacity")
    await meets(f"{SERVERS}{active}/resize/", {"plan_id": 4}, 400, "plan_id")
    await meets(f"{SERVERS}{active}/rebuild/", {"os_id": 99}, 400, "os_id")
    await meets(f"{SERVERS}{active}/power/", {"action": "explode"}, 400, "action")
    await cloud.have_balance(-1)
    await meets(SERVERS, WEB, 402, "payment_required")
    await meets(f"{SERVERS}{stopped}/start/", None, 402, "payment_required")


async def test_a_value_that_is_neither_is_refused_by_the_parameters_name(cloud: Cloud) -> None:
    for operation in CAN_BE_TRIED:
        path, body = await ready(cloud, operation)
        before = await dump(cloud.database)
        for odd in ("maybe", "", "2", "-1", "null", "1%201"):
            answer = await cloud.post(f"{path}?dry_run={odd}", body)
            assert answer.status_code == 400, (operation, odd)
            assert answer.json() == {"dry_run": ["Give 1 to try it, or 0 to do it."]}
        assert await dump(cloud.database) == before


async def test_a_key_that_is_none_is_refused_in_a_dry_run_as_well(cloud: Cloud) -> None:
    for headers in ({"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 256}, {"Idempotancy-Key": "x"}):
        answer = await cloud.post(f"{SERVERS}?dry_run=1", WEB, headers=headers)
        assert answer.status_code == 400, headers
        assert [name.lower() for name in answer.json()] == [name.lower() for name in headers]


async def test_where_nothing_can_be_tried_it_is_not_done_either(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    before = await dump(cloud.database)
    for method, path, operation in ROUTES:
        if method != "GET" and operation["operationId"] not in CAN_BE_TRIED:
            filled = path.format(server_id=server_id, key_id=1, group_id=1, token_id=2, backup_id=1, snapshot_id=1)
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            answer = await cloud.ask(method, f"{filled}?dry_run=1", json=body)
            assert answer.status_code == 400, filled
            assert answer.json() == {
                "dry_run": ["A dry run of this request is not possible. Leave dry_run out to carry it out."]
            }
    assert await dump(cloud.database) == before


async def test_a_dry_run_of_0_does_it(cloud: Cloud) -> None:
    assert (await cloud.post(f"{SERVERS}?dry_run=0", WEB)).status_code == 201
    assert (await cloud.post(f"{SERVERS}?dry_run=false", WEB)).status_code == 201
    assert (await cloud.get(SERVERS)).json()["count"] == 2
