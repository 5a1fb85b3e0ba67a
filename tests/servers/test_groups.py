"""Placement groups: each server of one is on a host of its own, or is refused."""

import asyncio

from tests.billing.books import have_connections
from tests.cloud import TINY, Cloud
from vpsd.hosts import service as hosts

GROUPS = "/api/v1/placement-groups/"
SERVERS = "/api/v1/servers/"


async def add_hosts(cloud: Cloud, *names: str) -> None:
    async with cloud.writing() as ctx:
        for name in names:
            await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}")


async def have_group(cloud: Cloud, name: str = "database", **options: str) -> int:
    made = await cloud.post(GROUPS, {"name": name}, **options)
    assert made.status_code == 201, made.text
    group: int = made.json()["id"]
    return group


async def test_a_group_is_made_shown_and_deleted(cloud: Cloud) -> None:
    group = await have_group(cloud)
    shown = (await cloud.get(f"{GROUPS}{group}/")).json()
    assert (shown["name"], shown["policy"], shown["servers"]) == ("database", "spread", 0)
    assert [one["id"] for one in (await cloud.get(GROUPS)).json()["results"]] == [group]
    assert (await cloud.ask("DELETE", f"{GROUPS}{group}/")).status_code == 204
    assert (await cloud.get(f"{GROUPS}{group}/")).status_code == 404
    actions = [one["action"] for one in (await cloud.get("/api/v1/account/events/")).json()["results"]]
    assert {"placement_group.create", "placement_group.delete"} <= set(actions)


async def test_a_name_is_given_once_in_an_account_and_what_is_wrong_is_named(cloud: Cloud) -> None:
    await have_group(cloud)
    await have_group(cloud, who="charlie")
    again = await cloud.post(GROUPS, {"name": "database"})
    assert (again.status_code, list(again.json())) == (400, ["name"])
    odd = await cloud.post(GROUPS, {"name": "-", "policy": "pack"})
    assert (odd.status_code, sorted(odd.json())) == (400, ["name", "policy"])


async def test_there_is_a_limit(cloud: Cloud) -> None:
    cloud.set(placement_groups_per_account=1)
    await have_group(cloud)
    assert (await cloud.post(GROUPS, {"name": "more"})).status_code == 403


async def test_servers_of_a_group_are_on_different_hosts_and_one_too_many_is_refused(cloud: Cloud) -> None:
    await add_hosts(cloud, "second", "third")
    group = await have_group(cloud)
    servers = [await cloud.create(f"db-{number}", placement_group_id=group) for number in range(3)]
    placed = {(await cloud.row(server)).host_id for server in servers}
    assert len(placed) == 3
    body = {"name": "db-4", **TINY, "placement_group_id": group}
    for path in (SERVERS, f"{SERVERS}?dry_run=1"):
        refused = await cloud.post(path, body)
        assert (refused.status_code, refused.json()["code"]) == (503, "out_of_capacity")
        assert "they stay apart" in refused.json()["detail"]
    assert (await cloud.post(SERVERS, {"name": "web", **TINY})).status_code == 201
    assert (await cloud.get(f"{SERVERS}{servers[0]}/")).json()["placement_group_id"] == group


async def test_a_group_is_kept_as_long_as_anything_of_its_servers_is_there(cloud: Cloud) -> None:
    group = await have_group(cloud)
    server = await cloud.create(placement_group_id=group)
    await cloud.work()
    refused = await cloud.ask("DELETE", f"{GROUPS}{group}/")
    assert (refused.status_code, refused.json()["code"]) == (400, "busy")
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    assert (await cloud.ask("DELETE", f"{GROUPS}{group}/")).status_code == 400
    await cloud.settle()
    assert (await cloud.ask("DELETE", f"{GROUPS}{group}/")).status_code == 204
    assert (await cloud.row(server)).purged_at_ms is not None


async def test_a_group_of_somebody_else_is_none(cloud: Cloud) -> None:
    group = await have_group(cloud, who="charlie")
    answer = await cloud.post(SERVERS, {"name": "web", **TINY, "placement_group_id": group})
    assert (answer.status_code, list(answer.json())) == (400, ["placement_group_id"])
    assert (await cloud.get(f"{GROUPS}{group}/")).status_code == 404
    assert (await cloud.ask("DELETE", f"{GROUPS}{group}/")).status_code == 404


async def test_creates_at_once_in_a_group_do_not_meet_at_one_host(cloud: Cloud) -> None:
    await add_hosts(cloud, "second")
    group = await have_group(cloud)
    await have_connections(cloud)
    body = {**TINY, "placement_group_id": group}
    posts = [cloud.post(SERVERS, {"name": f"db-{number}", **body}) for number in range(4)]
    answers = await asyncio.gather(*posts)
    assert sorted(answer.status_code for answer in answers) == [201, 201, 503, 503]


async def test_a_group_is_renamed_to_what_no_other_is_called(cloud: Cloud) -> None:
    group, other = await have_group(cloud), await have_group(cloud, "cache")
    renamed = await cloud.ask("PATCH", f"{GROUPS}{group}/", json={"name": "postgres"})
    assert (renamed.status_code, renamed.json()["name"]) == (200, "postgres")
    assert (await cloud.get(f"{GROUPS}{group}/")).json() == renamed.json()
    taken = await cloud.ask("PATCH", f"{GROUPS}{other}/", json={"name": "postgres"})
    assert (taken.status_code, list(taken.json())) == (400, ["name"])
    odd = await cloud.ask("PATCH", f"{GROUPS}{other}/", json={"name": "-", "policy": "spread"})
    assert (odd.status_code, sorted(odd.json())) == (400, ["name", "policy"])
    assert (await cloud.ask("PATCH", f"{GROUPS}{other}/", json={})).json()["name"] == "cache"
    strange = await cloud.ask("PATCH", f"{GROUPS}{other}/", json={"name": "mine"}, who="charlie")
    assert strange.status_code == 404


async def test_the_servers_of_a_group_are_listed(cloud: Cloud) -> None:
    await add_hosts(cloud, "second")
    group, empty = await have_group(cloud), await have_group(cloud, "cache")
    inside = [await cloud.create(name, placement_group_id=group) for name in ("db-1", "db-2")]
    await cloud.create("web")
    for asked, ids in ((f"{group}", inside), (f"{empty}", []), (f"{group}&q=db-2", inside[1:])):
        found = (await cloud.get(f"{SERVERS}?placement_group_id={asked}")).json()
        assert ([one["id"] for one in found["results"]], found["count"]) == (ids, len(ids))
    for asked, who in (("77", "alice"), ("x", "alice"), (f"{group}", "charlie")):
        refused = await cloud.get(f"{SERVERS}?placement_group_id={asked}", who=who)
        assert (refused.status_code, list(refused.json())) == (400, ["placement_group_id"])
