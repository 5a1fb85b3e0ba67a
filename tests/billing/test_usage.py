"""Usage: what an account's servers cost in a month, as every skin reads it."""

import pytest
from msgspec import UNSET

from tests.billing.books import DAY, charge
from tests.billing.test_meter import NANO, cost
from tests.cloud import Cloud
from vpsd.billing import prices
from vpsd.billing.usage import MonthUsage, usage
from vpsd.errors import Invalid
from vpsd.servers import queries


async def read(cloud: Cloud, month: str | None = None, who: str = "alice") -> MonthUsage:
    async with cloud.reading(who) as ctx:
        return await usage(ctx, UNSET if month is None else month, await queries.names(ctx))


async def test_it_is_the_present_month_unless_another_is_named(cloud: Cloud) -> None:
    await cloud.have_server()
    assert (await read(cloud)).month == (await read(cloud, "2025-06")).month == "2025-06"
    assert (await read(cloud, "2025-05")).servers == []


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
    assert [(server.server_id, server.name) for server in found.servers] == [(1, "one"), (2, "two")]
    assert found.servers[0].cost_micros == cost(NANO, cloud.clock.now_ms() - began_ms)
    assert found.cost_micros == sum(server.cost_micros for server in found.servers)
    assert found.forecast_micros == sum(server.forecast_micros for server in found.servers)
    assert found.servers[0].forecast_micros == cost(NANO, prices.month_named("2025-06").end_ms - began_ms)


async def test_a_deleted_server_keeps_its_name_in_the_months_that_it_cost(cloud: Cloud) -> None:
    server = await cloud.have_server("gone")
    cloud.clock.advance(DAY)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await cloud.settle()
    assert [used.name for used in (await read(cloud)).servers] == ["gone"]
