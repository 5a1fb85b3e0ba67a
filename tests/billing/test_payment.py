"""402: a create needs credit for a day of all servers, and says to the micro what is missing."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.billing.books import have_connections, have_price
from tests.cloud import TINY, Cloud
from vpsd.accounts import service as accounts
from vpsd.catalog.service import Catalog
from vpsd.core import money
from vpsd.core.money import MICROS

SERVERS = "/api/v1/servers/"
WEB = {"name": "web", **TINY}
DAY_OF_NANO = -(-2 * MICROS * 24 // 672)  # rounded up: a balance that covers it covers it wholly


def missing(answer: httpx.Response) -> int:
    """The amount that a 402 says is missing, in micros."""
    assert answer.status_code == 402, answer.text
    problem = answer.json()
    assert problem["code"] == "payment_required"
    found = re.search(r"([0-9.]+) USD are missing", problem["detail"])
    assert found, problem
    return money.parse(found[1])


async def limit(cloud: Cloud, micros: int | None) -> None:
    async with cloud.writing("alice") as ctx:
        await accounts.set_limits(ctx, await accounts.find_account(ctx, "alice"), {"credit_limit_micros": micros})


@asynccontextmanager
async def covering(cloud: Cloud, hours: int) -> AsyncIterator[Cloud]:
    """The API as it answers where balances have to cover so many hours."""
    usual = cloud.http
    app = cloud.app(cover_hours=hours)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vpsd.test") as http:
        cloud.http = http
        yield cloud
    cloud.http = usual


@pytest.mark.parametrize("balance", [0, 1, DAY_OF_NANO - 1, -5 * MICROS])
async def test_a_create_without_enough_credit_names_the_exact_amount_that_is_missing(
    cloud: Cloud, balance: int
) -> None:
    await cloud.have_balance(balance)
    needed = missing(await cloud.post(SERVERS, WEB))
    assert needed == DAY_OF_NANO - balance
    await cloud.have_balance(balance + needed - 1)
    assert missing(await cloud.post(SERVERS, WEB)) == 1
    await cloud.have_balance(balance + needed)
    assert (await cloud.post(SERVERS, WEB)).status_code == 201


async def test_a_refused_create_leaves_nothing_behind(cloud: Cloud) -> None:
    await cloud.have_balance(0)
    assert (await cloud.post(SERVERS, WEB)).status_code == 402
    assert (await cloud.get(SERVERS)).json()["count"] == 0
    assert await cloud.work() == 0


async def test_the_balance_has_to_cover_the_servers_that_there_are_as_well(cloud: Cloud) -> None:
    await cloud.have_server()
    await cloud.create("also", plan_id=3)  # not made yet, and counted
    balance = 1000
    await cloud.have_balance(balance)
    needed = missing(await cloud.post(SERVERS, {**WEB, "plan_id": 1}))
    assert needed == -(-(2 + 5 + 10) * MICROS * 24 // 672) - balance
    await cloud.have_balance(balance + needed - 1)
    assert missing(await cloud.post(SERVERS, {**WEB, "plan_id": 1})) == 1
    await cloud.have_balance(balance + needed)
    assert (await cloud.post(SERVERS, {**WEB, "plan_id": 1})).status_code == 201


async def test_a_deleted_server_needs_no_cover(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.have_balance(DAY_OF_NANO)
    assert (await cloud.post(SERVERS, WEB)).status_code == 402
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    assert (await cloud.post(SERVERS, WEB)).status_code == 201


async def test_a_strangers_servers_and_credit_count_for_nothing(cloud: Cloud) -> None:
    await cloud.have_server(who="charlie")
    await cloud.have_balance(DAY_OF_NANO)
    assert (await cloud.post(SERVERS, WEB)).status_code == 201
    await cloud.have_balance(0)
    assert missing(await cloud.post(SERVERS, WEB)) == -(-4 * MICROS * 24 // 672)


async def test_a_credit_limit_is_credit(cloud: Cloud) -> None:
    await cloud.have_balance(-3 * MICROS)
    await limit(cloud, 3 * MICROS + DAY_OF_NANO - 1)
    assert missing(await cloud.post(SERVERS, WEB)) == 1
    await limit(cloud, 3 * MICROS + DAY_OF_NANO)
    assert (await cloud.post(SERVERS, WEB)).status_code == 201


async def test_an_account_without_a_limit_is_never_asked_for_credit(cloud: Cloud) -> None:
    await cloud.have_balance(-1000 * MICROS)
    await limit(cloud, None)
    server = await cloud.create(plan_id=2)
    await cloud.work()
    await cloud.post(f"{SERVERS}{server}/stop/")
    await cloud.work()
    assert (await cloud.post(f"{SERVERS}{server}/start/")).status_code == 200


async def test_a_plan_that_costs_nothing_needs_no_credit(cloud: Cloud, offered: Catalog) -> None:
    await have_price(cloud, offered, 0)
    await cloud.have_balance(0)
    assert (await cloud.post(SERVERS, WEB)).status_code == 201
    assert (await cloud.post(SERVERS, {**WEB, "plan_id": 3})).status_code == 402


async def test_a_resize_has_to_be_covered_like_a_create_and_one_that_saves_money_does_not(
    cloud: Cloud, offered: Catalog
) -> None:
    server = await cloud.have_server()
    await cloud.create("other")
    await cloud.have_balance(0)
    needed = missing(await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3}))
    assert needed == -(-(2 + 5) * MICROS * 24 // 672)
    await cloud.have_balance(needed - 1)
    assert missing(await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3})) == 1
    await cloud.have_balance(-1)
    await have_price(cloud, offered, 2 * MICROS, plan_id=3)
    assert (await cloud.post(f"{SERVERS}{server}/resize/", {"plan_id": 3})).status_code == 200


@pytest.mark.parametrize("balance", [0, -1, -5 * MICROS])
async def test_where_nothing_has_to_be_covered_there_must_still_be_something(cloud: Cloud, balance: int) -> None:
    async with covering(cloud, hours=0):
        await cloud.have_balance(balance)
        needed = missing(await cloud.post(SERVERS, WEB))
        assert needed == 1 - balance
        await cloud.have_balance(balance + needed - 1)
        assert missing(await cloud.post(SERVERS, WEB)) == 1
        await cloud.have_balance(balance + needed)
        assert (await cloud.post(SERVERS, WEB)).status_code == 201


async def test_more_hours_need_more_credit(cloud: Cloud) -> None:
    async with covering(cloud, hours=672):
        await cloud.have_balance(0)
        assert missing(await cloud.post(SERVERS, WEB)) == 2 * MICROS


async def test_creates_at_once_cannot_spend_the_same_credit(cloud: Cloud) -> None:
    await have_connections(cloud)
    for _ in range(3):
        await cloud.have_balance(DAY_OF_NANO)  # enough for one
        answers = await asyncio.gather(*(cloud.post(SERVERS, {**WEB, "name": f"web-{n}"}) for n in range(4)))
        made = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        assert sorted(answer.status_code for answer in answers) == [201, 402, 402, 402]
        await cloud.ask("DELETE", f"{SERVERS}{made[0]}/")
        await cloud.work()
