"""Quotas: what an account has, summed up over its servers, stays within limits, or a 403 says which and how much."""

import asyncio

import pytest

from tests.billing.books import have_connections
from tests.cloud import TINY, Cloud
from vpsd.accounts import service as accounts

SERVERS = "/api/v1/servers/"
STARTER = {"name": "web", **TINY, "plan_id": 3}  # 1 vCPU, 2048 MB, 40 GB
ONE = {"max_servers": 1, "max_vcpus": 1, "max_memory_mb": 2048, "max_storage_gb": 40}
WORDS = {
    "max_servers": "servers",
    "max_vcpus": "vCPUs",
    "max_memory_mb": "MB of memory",
    "max_storage_gb": "GB of storage",
}
quotas = pytest.mark.parametrize("quota", ONE)


async def limit(cloud: Cloud, **limits: int | None) -> None:
    async with cloud.writing("alice") as ctx:
        await accounts.set_limits(ctx, await accounts.find_account(ctx, "alice"), limits)


@quotas
async def test_what_goes_beyond_a_quota_is_a_403_that_says_the_limit(cloud: Cloud, quota: str) -> None:
    await limit(cloud, **{quota: 2 * ONE[quota]})
    for _ in range(2):  # up to the limit itself
        assert (await cloud.post(SERVERS, STARTER)).status_code == 201
    answer = await cloud.post(SERVERS, STARTER)
    assert answer.status_code == 403
    assert answer.json()["code"] == "over_quota"
    assert f"{2 * ONE[quota]} {WORDS[quota]} are the limit" in answer.json()["detail"]
    assert (await cloud.get(SERVERS)).json()["count"] == 2
    await limit(cloud, **{quota: None})
    assert (await cloud.post(SERVERS, STARTER)).status_code == 201


@quotas
async def test_a_deleted_server_makes_room_at_once(cloud: Cloud, quota: str) -> None:
    await limit(cloud, **{quota: ONE[quota]})
    server = (await cloud.post(SERVERS, STARTER)).json()["id"]
    assert (await cloud.post(SERVERS, STARTER)).status_code == 403
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    assert (await cloud.post(SERVERS, STARTER)).status_code == 201


@quotas
async def test_a_plan_that_is_larger_than_the_quota_is_refused_as_the_first(cloud: Cloud, quota: str) -> None:
    await limit(cloud, **{quota: ONE[quota] - 1})
    assert (await cloud.post(SERVERS, STARTER)).status_code == 403


async def test_every_limit_that_is_broken_is_said_and_no_other(cloud: Cloud) -> None:
    await limit(cloud, max_servers=10, max_vcpus=0, max_memory_mb=2047)
    detail = (await cloud.post(SERVERS, STARTER)).json()["detail"]
    assert "0 vCPUs are the limit, and 0 are in use: 1 more are too many" in detail
    assert "2047 MB of memory are the limit, and 0 are in use: 2048 more are too many" in detail
    assert "servers are" not in detail
    assert "storage" not in detail


async def test_a_resize_is_held_against_what_it_adds(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await limit(cloud, max_servers=1, max_vcpus=1, max_memory_mb=2047, max_storage_gb=40)
    answer = await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3})
    assert (answer.status_code, answer.json()["code"]) == (403, "over_quota")
    assert "2047 MB of memory are the limit, and 256 are in use: 1792 more are too many" in answer.json()["detail"]
    await limit(cloud, max_memory_mb=2048)
    assert (await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3})).status_code == 200


async def test_a_strangers_servers_are_not_counted(cloud: Cloud) -> None:
    await limit(cloud, max_servers=1)
    for _ in range(2):
        assert (await cloud.post(SERVERS, STARTER, who="charlie")).status_code == 201
    assert (await cloud.post(SERVERS, STARTER)).status_code == 201


async def test_creates_at_once_cannot_share_the_last_place(cloud: Cloud) -> None:
    await limit(cloud, max_servers=1)
    await have_connections(cloud)
    for _ in range(3):
        answers = await asyncio.gather(*(cloud.post(SERVERS, STARTER) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403]
        (made,) = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        await cloud.ask("DELETE", f"{SERVERS}{made}/")
        await cloud.work()
