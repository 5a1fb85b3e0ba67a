"""Usage: what an account's servers cost in a month, as every skin reads it."""

import pytest
from msgspec import UNSET

from tests.billing.books import DAY, charge
from tests.billing.test_meter import NANO, cost
from tests.cloud import Cloud
from vpsd.billing import prices
from vpsd.billing.usage import MonthUsage, usage
from vpsd.core.pages import Page
from vpsd.errors import Invalid


async def read(cloud: Cloud, month: str | None = None, page: Page = Page()) -> MonthUsage:  # noqa: B008
    async with cloud.reading("alice") as ctx:
        return await usage(ctx, UNSET if month is None else month, page)


async def test_it_is_the_present_month_unless_another_is_named(cloud: Cloud) -> None:
    await cloud.have_server()
    assert (await read(cloud)).month == (await read(cloud, "2025-06")).month == "2025-06"
    assert (await read(cloud, "2025-05")).servers.rows == []


@pytest.mark.parametrize("text", ["", "2025", "2025-13", "2025-6", "2025-06-01", "June", "9999-12"])
async def test_what_is_not_a_month_is_refused(cloud: Cloud, text: str) -> None:
    with pytest.raises(Invalid, match=r"month: Give a month like 2026-11\."):
        await read(cloud, text)


async def test_a_month_is_the_sum_of_its_servers_and_nobody_elses(cloud: Cloud) -> None:
    began_ms = cloud.clock.now_ms()
    await cloud.have_server("one")
    await cloud.have_server("two")
    await cloud.have_server("his", who="charlie")
    cloud.clock.advance(5 * DAY)
    await charge(cloud)
    found = await read(cloud)
    servers = found.servers.rows
    assert [server.server_id for server in servers] == [1, 2]
    assert servers[0].cost_micros == cost(NANO, cloud.clock.now_ms() - began_ms)
    assert found.cost_micros == sum(server.cost_micros for server in servers)
    assert found.forecast_micros == sum(server.forecast_micros for server in servers)
    assert servers[0].forecast_micros == cost(NANO, prices.month_named("2025-06").end_ms - began_ms)


async def test_a_deleted_server_keeps_its_name_in_the_months_that_it_cost(cloud: Cloud) -> None:
    server = await cloud.have_server("gone")
    cloud.clock.advance(DAY)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await cloud.settle()
    answer = (await cloud.get("/api/v1/account/usage/")).json()
    assert [used["server"]["name"] for used in answer["servers"]] == ["gone"]


async def test_its_servers_come_page_by_page_and_its_sums_are_of_all(cloud: Cloud) -> None:
    made = [await cloud.have_server(f"web-{number}") for number in range(5)]
    cloud.clock.advance(DAY)
    url: str | None = "/api/v1/account/usage/?month=2025-06&page_size=2"
    pages = []
    while url is not None:
        pages.append((await cloud.get(url)).json())
        url = pages[-1]["next"]
    assert [[used["server"]["id"] for used in page["servers"]] for page in pages] == [made[:2], made[2:4], made[4:]]
    whole = (await cloud.get("/api/v1/account/usage/")).json()
    assert {(page["count"], page["cost"], page["forecast"]) for page in pages} == {
        (5, whole["cost"], whole["forecast"])
    }
    assert whole["next"] is None
    second = (await cloud.get("/api/v1/account/usage/?page=2&page_size=2")).json()
    assert second["servers"] == pages[1]["servers"]
    assert second["previous"].endswith("/account/usage/?page_size=2&page=1")
