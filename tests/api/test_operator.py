"""What the operator asks for over the API, and nobody else can."""

import pytest

from tests.cloud import Cloud
from vpsd.accounts.permissions import KNOWN, OF_ROLE, covers
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostState
from vpsd.lifecycle import Status

OPERATOR = "operator:*"


def path(server: int) -> str:
    return f"/api/v1/operator/servers/{server}/migrate/"


@pytest.fixture
async def operator(cloud: Cloud) -> str:
    """A token of the operator's, in an account that has no servers."""
    return await cloud.token(OPERATOR, who="charlie")


def test_no_permission_and_no_role_but_the_operators_own_makes_an_operator() -> None:
    others = [name for name in KNOWN if name != OPERATOR]
    assert not covers(others, OPERATOR)
    assert not any(covers(held, OPERATOR) for held in OF_ROLE.values())
    assert covers([OPERATOR], OPERATOR)
    assert not any(covers([OPERATOR], name) for name in others)


async def test_a_customers_token_moves_nothing_and_makes_no_operator(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.have_second_host()
    answer = await cloud.post(path(server))
    assert (answer.status_code, answer.json()["detail"]) == (403, "This token lacks the permission operator:*.")
    answer = await cloud.post("/api/v1/account/tokens/", {"name": "more", "permissions": [OPERATOR]})
    assert answer.status_code == 403
    assert len(await cloud.operations(server)) == 1


async def test_the_operator_moves_a_server_of_any_account_and_sees_how_far_it_is(cloud: Cloud, operator: str) -> None:
    server = await cloud.have_server()
    second = await cloud.have_second_host()
    done = await cloud.post(path(server), {"host": "second"}, who=operator)
    assert done.status_code == 200
    shown = done.json()
    assert (shown["from_host"], shown["to_host"], shown["server"]["status"]) == ("simulator", "second", "active")
    followed = f"/api/v1/operator/operations/{shown['operation']['id']}/"
    assert (await cloud.get(followed, who=operator)).json()["status"] == "queued"
    assert (await cloud.get(followed)).status_code == 403
    await cloud.work()
    ended = (await cloud.get(followed, who=operator)).json()
    assert (ended["command"], ended["status"], ended["progress"]) == ("migrate", "succeeded", 1.0)
    assert (await cloud.row(server)).host_id == second.id
    assert (await cloud.get("/api/v1/operator/operations/999/", who=operator)).status_code == 404
    told = {
        who: [event["detail"] for event in (await cloud.get("/api/v1/account/events/", who=who)).json()["results"]]
        for who in ("alice", "charlie")
    }
    assert "to another host" in told["alice"]
    assert not any("second" in (detail or "") for detail in told["alice"])  # hosts are the operator's
    assert "from simulator to second" in told["charlie"]


async def test_it_goes_where_a_new_server_would_unless_a_host_is_named(cloud: Cloud, operator: str) -> None:
    server = await cloud.have_server()
    await cloud.have_second_host()
    async with cloud.writing() as ctx:
        await hosts.add_host(ctx, "full", "simulator", uri="simulator://full")
        full = await hosts.find_host_named(ctx, "full")
        await hosts.change_host(ctx, full.id, cpus=1, cpu_ratio=0.5)
        await hosts.add_host(ctx, "east", "simulator", uri="simulator://east", location="us-east")
        gone = await hosts.add_host(ctx, "off", "simulator", uri="simulator://off")
        await hosts.change_host(ctx, gone.id, state=HostState.DISABLED)
    assert (await cloud.post(f"{path(server)}?dry_run=1", who=operator)).json()["placement"]["host"] == "second"
    for host, why in (("full", "too little vcpus"), ("east", "elsewhere"), ("off", "not enabled")):
        answer = await cloud.post(path(server), {"host": host}, who=operator)
        assert (answer.status_code, answer.json()["code"]) == (503, "out_of_capacity")
        assert answer.json()["detail"] == f"No other host takes the server now ({host}: {why})."
    for host, why in (("simulator", "The server is on simulator already."), ("nowhere", "There is no host 'nowhere'.")):
        answer = await cloud.post(path(server), {"host": host}, who=operator)
        assert answer.status_code == 400
        assert why in answer.json()["host"][0]
    async with cloud.reading() as ctx:
        assert [room.used_vcpus for room in await hosts.rooms(ctx)] == [1, 0, 0, 0, 0]
    assert (await cloud.post(path(999), who=operator)).status_code == 404


async def test_what_is_under_way_or_has_to_be_made_first_is_not_moved(cloud: Cloud, operator: str) -> None:
    server = await cloud.create()
    await cloud.have_second_host()
    answer = await cloud.post(path(server), who=operator)
    assert (answer.status_code, answer.json()["code"]) == (400, "wrong_status")
    await cloud.work()
    await cloud.post(f"/api/v1/servers/{server}/backup/")
    answer = await cloud.post(path(server), who=operator)
    assert (answer.status_code, answer.json()["code"]) == (400, "busy")
    await cloud.work()
    await cloud.post(path(server), who=operator)
    answer = await cloud.post(path(server), who=operator)
    assert (answer.status_code, answer.json()["code"]) == (400, "busy")
    async with cloud.reading() as ctx:
        assert [room.used_vcpus for room in await hosts.rooms(ctx)] == [1, 1]


async def test_a_stopped_server_is_moved_as_it_is(cloud: Cloud, operator: str) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    second = await cloud.have_second_host()
    assert (await cloud.post(path(server), {"cold": False}, who=operator)).json()["server"]["status"] == "stopped"
    await cloud.work()
    assert ((await cloud.row(server)).host_id, await cloud.status(server)) == (second.id, "stopped")
