"""A host hands out what it has, times what the operator overcommits, and not more: not even to two at once."""

import asyncio

import asyncpg
import msgspec
import pytest

from tests.api.tables import change
from tests.billing.books import have_connections
from tests.cloud import TINY, Cloud
from tests.servers.test_locks import until_waiting
from vpsd.audit import Audit
from vpsd.hosts import service as hosts
from vpsd.hosts.models import hosts as hosts_table
from vpsd.hosts.placement import RESOURCES
from vpsd.servers import capacity, unplaced, updates
from vpsd.servers.models import servers

PEOPLE = ("alice", "charlie")
SERVERS = "/api/v1/servers/"
NANO = {"name": "web", **TINY}  # 1 vCPU, 256 MB, 2 GB


async def free(cloud: Cloud) -> tuple[int | None, ...]:
    """What the host may hand out still: vCPUs, MB of memory, GB of storage."""
    async with cloud.reading() as ctx:
        room = await hosts.room(ctx, cloud.runtime.host_id)
        counted = await capacity.counted(ctx)
    used, limits = room.used(), room.limits(cloud.settings)
    summed = counted.get(room.id, hosts.Used(room.id, 0, 0, 0, 0))
    assert used == {name: getattr(summed, f"used_{name}") for name in RESOURCES}
    return tuple(None if limit is None else limit - used[name] for name, limit in limits.items())


async def test_before_a_host_has_spoken_there_is_room_for_everything(cloud: Cloud) -> None:
    assert await free(cloud) == (None, None, None)
    assert (await cloud.post(SERVERS, {**NANO, "plan_id": 2})).status_code == 201


async def test_what_a_host_says_is_recorded_and_its_next_word_replaces_it(cloud: Cloud) -> None:
    await cloud.have_host(cpus=4, memory_mb=8000, storage_gb=100)
    assert await free(cloud) == (32, 8000, 400)  # vCPUs and disks are overcommitted, memory is not
    await cloud.have_host(cpus=2, memory_mb=4000, storage_gb=None)
    assert await free(cloud) == (16, 4000, None)


async def test_two_workers_may_record_the_same_host_at_once(cloud: Cloud) -> None:
    await have_connections(cloud)
    await asyncio.gather(*(cloud.have_host(cpus=4, memory_mb=8000, storage_gb=100) for _ in range(4)))
    assert await free(cloud) == (32, 8000, 400)


async def test_servers_hold_their_share_until_nothing_of_them_is_left(cloud: Cloud) -> None:
    await cloud.have_host(cpus=4, memory_mb=8000, storage_gb=100)
    server = await cloud.create()
    await cloud.create("other", who="charlie", plan_id=3)
    held = (32 - 2, 8000 - 256 - 2048, 400 - 2 - 40)
    assert await free(cloud) == held
    await cloud.work()
    await cloud.post(f"{SERVERS}{server}/stop/")
    await cloud.work()
    assert await free(cloud) == held  # it may be started again
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    assert await free(cloud) == held  # its disk is still there
    await cloud.settle()
    assert await free(cloud) == (31, 8000 - 2048, 400 - 40)


@pytest.mark.parametrize(
    ("has", "lacking"),
    [({"cpus": 0}, "vcpus"), ({"memory_mb": 255}, "memory_mb"), ({"storage_gb": 0}, "storage_gb")],
)
async def test_a_create_without_room_is_a_503_that_says_what_is_lacking(
    cloud: Cloud, has: dict[str, int], lacking: str
) -> None:
    await cloud.have_host(**has)
    answer = await cloud.post(SERVERS, NANO)
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_capacity")
    assert "Retry-After" not in answer.headers
    assert f"No host has room for a Nano VPS now: too little {lacking}." in answer.json()["detail"]
    assert (await cloud.get(SERVERS)).json()["count"] == 0


async def test_capacity_is_handed_out_to_the_last_mb_and_given_back(cloud: Cloud) -> None:
    await cloud.have_host(memory_mb=512)
    servers = [await cloud.create(f"web-{number}") for number in range(2)]
    assert (await cloud.post(SERVERS, NANO)).status_code == 503
    await cloud.ask("DELETE", f"{SERVERS}{servers[0]}/")
    assert (await cloud.post(SERVERS, NANO)).status_code == 503
    await cloud.settle()
    assert (await cloud.post(SERVERS, NANO)).status_code == 201


async def test_plans_tell_whether_and_where_there_is_room_for_one(cloud: Cloud) -> None:
    places = ["us-west", "us-east", "eu-central"]
    await cloud.have_host(memory_mb=3000)
    plans = {plan["id"]: plan for plan in (await cloud.get("/api/v1/plans/")).json()["results"]}
    assert {number: plan["available"] for number, plan in plans.items()} == {1: False, 2: False, 3: True, 4: True}
    assert {number: plan["locations"] for number, plan in plans.items()} == {1: [], 2: [], 3: places, 4: places}
    await cloud.create(plan_id=3)
    for plan_id, available in ((3, False), (4, True)):
        plan = (await cloud.get(f"/api/v1/plans/{plan_id}/")).json()
        assert (plan["available"], plan["locations"]) == (available, places if available else [])
    there = (await cloud.get("/api/v1/plans/?location=us-east")).json()
    assert (there["count"], [plan["id"] for plan in there["results"]]) == (1, [4])


async def test_a_plan_that_is_said_to_be_available_can_be_had_and_another_cannot(cloud: Cloud) -> None:
    await cloud.have_host(cpus=1, memory_mb=5000, storage_gb=30)
    for plan in (await cloud.get("/api/v1/plans/")).json()["results"]:
        answer = await cloud.post(f"{SERVERS}?dry_run=1", {**NANO, "plan_id": plan["id"]})
        assert answer.status_code == (200 if plan["available"] else 503), plan


async def test_a_resize_without_room_is_a_503_and_changes_nothing(cloud: Cloud) -> None:
    await cloud.have_host(memory_mb=2047 + 256)
    server = await cloud.have_server()
    await cloud.create("other")
    answer = await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3})
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_capacity")
    assert (await cloud.row(server)).plan_id == 4
    assert await cloud.status(server) == "active"
    await cloud.have_host(memory_mb=2048 + 256)
    assert (await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3})).status_code == 200


async def test_what_takes_more_of_a_pool_that_is_almost_full_is_a_503_and_books_nothing(cloud: Cloud) -> None:
    await cloud.offer(9, storage_gb=4)
    await cloud.have_host()
    server = await cloud.have_server()
    snapshot = await cloud.have_copy(server, "snapshot")
    await cloud.post(f"{SERVERS}{server}/stop/")
    await cloud.work()
    await cloud.have_host(storage_free_mb=10 * 1024 - 1)  # of 128 TB
    before = await cloud.balance(), await cloud.operations(server)
    for path, body in (
        (SERVERS, NANO),
        (f"{SERVERS}?dry_run=1", NANO),
        (f"{SERVERS}{server}/resize/", {"plan_id": 9}),
        (f"{SERVERS}{server}/resize/?dry_run=1", {"plan_id": 9}),
        (f"{SERVERS}{server}/backup/", None),
        ("/api/v1/snapshots/", {"server_id": server, "name": "more"}),
        (f"/api/v1/snapshots/{snapshot['id']}/restore/", None),
        (f"/api/v1/snapshots/{snapshot['id']}/restore/?dry_run=1", None),
    ):
        answer = await cloud.post(path, body)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), path
        assert "storage is almost full" in answer.json()["detail"], path
        assert answer.headers["Retry-After"] == "300", path
    assert (await cloud.balance(), await cloud.operations(server)) == before
    assert len((await cloud.get(SERVERS)).json()["results"]) == 1
    for plan in (await cloud.get("/api/v1/plans/")).json()["results"]:
        assert (plan["available"], plan["locations"]) == (False, [])
    assert (await cloud.post(f"{SERVERS}{server}/start/")).status_code == 200  # what there is goes on
    await cloud.have_host(storage_free_mb=10 * 1024)
    assert (await cloud.post(SERVERS, NANO)).status_code == 201


async def test_how_much_is_left_for_running_servers_can_be_set(cloud: Cloud) -> None:
    await cloud.have_host(storage_gb=100, storage_free_mb=5119)  # of which 5 % are 5 GB
    assert (await cloud.post(SERVERS, NANO)).status_code == 503
    cloud.set(storage_reserve_mb=5119)
    assert (await cloud.post(SERVERS, NANO)).status_code == 201
    cloud.set(storage_reserve_mb=5120)
    assert (await cloud.post(SERVERS, NANO)).status_code == 503
    await cloud.have_host(storage_free_mb=None)  # not known
    assert (await cloud.post(SERVERS, NANO)).status_code == 201


async def test_a_daily_backup_waits_for_room(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"backups_enabled": True})
    await cloud.work()
    cloud.clock.advance(2 * 86400)
    await cloud.have_host(storage_free_mb=0)
    await cloud.backup_scheduler().schedule()
    await cloud.work()
    assert (await cloud.get("/api/v1/backups/")).json()["count"] == 0
    await cloud.have_host()
    await cloud.backup_scheduler().schedule()
    await cloud.work()
    assert (await cloud.get("/api/v1/backups/")).json()["count"] == 1


async def test_creates_at_once_cannot_share_the_last_room(cloud: Cloud) -> None:
    await cloud.have_host(memory_mb=300)
    await have_connections(cloud)
    for _ in range(3):
        asked = [(who, cloud.post(SERVERS, NANO, who=who)) for who in ("alice", "charlie")]  # no account in common
        answers = await asyncio.gather(*(post for _, post in asked))
        assert sorted(answer.status_code for answer in answers) == [201, 503]
        for (who, _), answer in zip(asked, answers, strict=True):
            if answer.status_code == 201:
                await cloud.ask("DELETE", f"{SERVERS}{answer.json()['id']}/", who=who)
        await cloud.settle()


async def test_what_is_handed_out_is_compared_with_the_servers_and_counted_anew(cloud: Cloud) -> None:
    await cloud.have_server()
    assert await Audit(cloud.runtime).run() == []
    async with cloud.database.write() as tx:
        await change(tx, hosts_table, cloud.runtime.host_id, used_vcpus=7)
    (found,) = await Audit(cloud.runtime).run()
    assert (found.kind, found.name, found.fixed) == ("host", "simulator", None)
    assert "7 vCPUs" in found.text
    (found,) = await Audit(cloud.runtime, fix=True).run()
    assert found.fixed == "counted anew"
    assert await Audit(cloud.runtime).run() == []


async def test_servers_of_an_older_vpsd_are_given_to_this_machines_own_host_and_counted(cloud: Cloud) -> None:
    server = await cloud.have_server()
    async with cloud.database.write() as tx:
        await change(tx, servers, server, host_id=None)
        await change(tx, hosts_table, cloud.runtime.host_id, used_servers=0, used_vcpus=0)
    async with cloud.writing() as ctx:
        await unplaced.give_to_local_host(ctx)
    assert (await cloud.row(server)).host_id == cloud.runtime.host_id
    assert await Audit(cloud.runtime).run() == []


async def test_a_purge_that_is_repeated_gives_nothing_back_twice(cloud: Cloud) -> None:
    await cloud.have_host()
    server = await cloud.have_server()
    await cloud.create("other")
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    await cloud.work()
    before = await free(cloud)
    async with cloud.writing() as ctx:
        await updates.set_purged(ctx, server)
    assert await free(cloud) == before


async def test_the_next_host_takes_what_the_first_has_no_room_for(cloud: Cloud) -> None:
    await cloud.have_host(memory_mb=256)
    async with cloud.writing() as ctx:
        second = await hosts.add_host(ctx, "second", "simulator", uri="simulator://second", location="us-west")
    placed = [(await cloud.row(await cloud.create(f"web-{number}"))).host_id for number in range(3)]
    assert sorted(map(str, placed)) == sorted(map(str, [cloud.runtime.host_id, second.id, second.id]))
    elsewhere = await cloud.post(SERVERS, {**NANO, "location": "us-east"})
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (503, "out_of_capacity")
    plan = (await cloud.get("/api/v1/plans/4/")).json()
    assert (plan["available"], plan["locations"]) == (True, ["us-west"])


async def test_where_the_hosts_with_room_do_not_answer_waiting_helps(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, cloud.runtime.host_id, "no route to host")
    before = await cloud.balance()
    for path in (SERVERS, f"{SERVERS}?dry_run=1"):
        answer = await cloud.post(path, NANO)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["Retry-After"] == "60"
        assert "no route" not in answer.text
    assert await cloud.balance() == before
    assert not (await cloud.get("/api/v1/plans/4/")).json()["available"]


async def test_a_location_without_hosts_for_new_servers_says_so(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, state="disabled")
    answer = await cloud.post(SERVERS, NANO)
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_capacity")
    assert answer.json()["detail"] == "There is no host for new servers at us-west now. Choose another location."


async def test_creates_at_once_on_many_hosts_fill_them_to_the_last_mb(cloud: Cloud) -> None:
    await cloud.have_host(memory_mb=512)
    seen = await cloud.hypervisor.facts()
    for name in ("second", "third"):
        async with cloud.writing() as ctx:
            host = await hosts.add_host(ctx, name, "simulator", uri=f"simulator://{name}")
            await hosts.record_facts(ctx, host.id, msgspec.structs.replace(seen, memory_mb=512), "ok")
    await have_connections(cloud)
    posts = [cloud.post(SERVERS, {**NANO, "name": f"web-{number}"}, who=who) for number in range(5) for who in PEOPLE]
    answers = [answer.status_code for answer in await asyncio.gather(*posts)]
    assert sorted(answers) == [201] * 6 + [503] * 4
    async with cloud.reading() as ctx:
        assert [room.used_memory_mb for room in await hosts.rooms(ctx)] == [512, 512, 512]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # on SQLite nobody comes between
@pytest.mark.parametrize("change", [{"removed_at_ms": 1}, {"state": "disabled"}, {"state": "fenced"}])
async def test_a_host_that_is_given_up_while_it_is_chosen_gets_no_server(
    cloud: Cloud, database_url: str, change: dict[str, object]
) -> None:
    watcher = await asyncpg.connect(database_url)
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, **change)
        creating = asyncio.create_task(cloud.post(SERVERS, NANO))  # it sees the host as it was, and waits to take room
        await until_waiting(watcher, 1)
    refused = await creating
    assert (refused.status_code, refused.json()["code"]) == (503, "out_of_capacity")
    await watcher.close()


async def test_a_host_that_is_given_up_takes_back_what_it_had_handed_out(cloud: Cloud) -> None:
    server = await cloud.have_server()
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, state="disabled")
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    await cloud.settle()
    async with cloud.reading() as ctx:
        assert (await hosts.row(ctx, cloud.runtime.host_id)).used_servers == 0


async def test_where_every_host_is_removed_a_create_is_refused(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, removed_at_ms=1)
    refused = await cloud.post(SERVERS, NANO)
    assert (refused.status_code, refused.json()["code"]) == (503, "out_of_capacity")
    assert {plan["available"] for plan in (await cloud.get("/api/v1/plans/")).json()["results"]} == {False}
