"""A plan's new price: for new servers, and for those that have the plan from the day that is said, never before."""

import asyncio
from pathlib import Path

import pytest

from tests.billing.books import (
    DAY,
    HOUR,
    announce,
    assert_right,
    charge,
    charges_of,
    have_connections,
    have_price,
    rentals_of,
    resize,
    schedule,
    spent,
    until_hour,
)
from tests.billing.test_meter import NANO, cost
from tests.cloud import Cloud
from vpsd.billing import credit, prices
from vpsd.billing.models import Charge
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.core.money import MICROS
from vpsd.core.units import HOUR_MS
from vpsd.errors import Invalid
from vpsd.worker.repricing import apply_catalog

DEARER = 3 * MICROS
STARTER = 5 * MICROS


def _costs(made: list[Charge], from_ms: int, until_ms: int) -> int:
    return sum(entry.amount_micros for entry in made if from_ms <= entry.from_ms < until_ms)


def _in(cloud: Cloud, seconds: float) -> int:
    return cloud.clock.now_ms() + round(seconds * 1000)


async def _shown(cloud: Cloud, server: int) -> set[float]:
    """The server's monthly price, wherever somebody may read it."""
    (used,) = (await cloud.get("/api/v1/account/usage/")).json()["servers"]
    async with cloud.reading("alice") as ctx:
        price = await credit.price_of(ctx, server)
        together = await credit.monthly_price(ctx)
    return {used["price_monthly"], price / MICROS, together / MICROS}


async def test_a_new_price_is_for_new_servers_and_leaves_the_others_theirs(cloud: Cloud, offered: Catalog) -> None:
    old = await cloud.have_server("old")
    assert await announce(cloud, offered, DEARER, None) == 0
    new = await cloud.have_server("new")
    cloud.clock.advance(DAY)
    await charge(cloud)
    for server, price in ((old, NANO), (new, DEARER)):
        (rental,) = await rentals_of(cloud, server)
        assert (rental.price_monthly_micros, rental.to_ms) == (price, None)
        assert await spent(cloud, server) == cost(price, rental.charged_until_ms - rental.from_ms)
    await assert_right(cloud)


async def test_from_a_day_on_servers_pay_the_new_price_and_until_then_the_old(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    posted_ms = (await rentals_of(cloud, server))[0].from_ms
    day_ms = _in(cloud, 2 * DAY + 1.234)  # in the middle of an hour
    assert await announce(cloud, offered, DEARER, day_ms) == 1
    await charge(cloud)
    for _ in range(5):
        cloud.clock.advance(19 * HOUR)
        await charge(cloud)
    made = await charges_of(cloud, server)
    assert _costs(made, posted_ms, day_ms) == cost(NANO, day_ms - posted_ms)
    assert _costs(made, day_ms, made[-1].to_ms) == cost(DEARER, made[-1].to_ms - day_ms)
    assert [entry.rate_micros for entry in made] == [NANO if entry.from_ms < day_ms else DEARER for entry in made]
    assert any(entry.to_ms == day_ms for entry in made)
    await assert_right(cloud)


async def test_a_new_price_for_a_day_that_is_over_is_refused(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(DAY)
    for seconds in (-DAY, 0):
        with pytest.raises(Invalid, match="is in the past"):
            await announce(cloud, offered, DEARER, _in(cloud, seconds))
    (rental,) = await rentals_of(cloud, server)
    assert (rental.price_monthly_micros, rental.to_ms) == (NANO, None)
    assert (await cloud.get("/api/v1/plans/4/")).json()["price_monthly"] == 2


async def test_saying_it_again_changes_nothing(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    day_ms = _in(cloud, DAY)
    assert [await announce(cloud, offered, DEARER, day_ms) for _ in range(3)] == [1, 0, 0]
    before = await rentals_of(cloud, server)
    cloud.clock.advance(2 * DAY)  # the catalogue still says so at a later start
    assert await announce(cloud, offered, DEARER, day_ms) == 0
    assert await announce(cloud, offered, DEARER, None) == 0
    assert await rentals_of(cloud, server) == before


async def test_servers_of_other_plans_keep_their_price(cloud: Cloud, offered: Catalog) -> None:
    other = await cloud.create(plan_id=3)
    await cloud.work()
    assert await announce(cloud, offered, DEARER, _in(cloud, DAY)) == 0
    (rental,) = await rentals_of(cloud, other)
    assert (rental.price_monthly_micros, rental.to_ms) == (STARTER, None)


async def test_each_account_is_told_once(cloud: Cloud, offered: Catalog) -> None:
    for who in ("alice", "alice", "charlie"):
        await cloud.have_server(who=who)
    day_ms = _in(cloud, DAY) // 1000 * 1000
    assert await announce(cloud, offered, DEARER, day_ms) == 3
    assert await announce(cloud, offered, DEARER, None) == 3
    for who in ("alice", "charlie"):
        events = (await cloud.get("/api/v1/account/events/?page_size=100", who=who)).json()["results"]
        assert [event["detail"] for event in reversed(events) if event["action"] == "plan.price"] == [
            "Nano VPS: 3.00 a month from 2025-06-16T15:06:44Z",
            "Nano VPS: the announced price is withdrawn",
        ]


async def test_a_server_that_is_still_being_made_pays_by_the_same_rule(cloud: Cloud, offered: Catalog) -> None:
    posted_ms = cloud.clock.now_ms()
    server = await cloud.create()
    cloud.clock.advance(60)
    day_ms = _in(cloud, 10 * HOUR)
    assert await announce(cloud, offered, DEARER, day_ms) == 1
    cloud.clock.advance(60)
    await cloud.work()
    cloud.clock.advance(DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert made[0].from_ms == posted_ms
    assert _costs(made, posted_ms, day_ms) == cost(NANO, day_ms - posted_ms)
    assert _costs(made, day_ms, made[-1].to_ms) == cost(DEARER, made[-1].to_ms - day_ms)
    await assert_right(cloud)


async def test_a_server_whose_making_outlasts_the_day_pays_both_prices(cloud: Cloud, offered: Catalog) -> None:
    posted_ms = cloud.clock.now_ms()
    server = await cloud.create()
    day_ms = _in(cloud, 100)
    await announce(cloud, offered, DEARER, day_ms)
    cloud.hypervisor.boot_seconds = 200
    await cloud.work()
    cloud.clock.advance(DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert _costs(made, posted_ms, day_ms) == cost(NANO, day_ms - posted_ms)
    assert _costs(made, day_ms, made[-1].to_ms) == cost(DEARER, made[-1].to_ms - day_ms)
    await assert_right(cloud)


async def test_a_server_that_first_worked_after_the_day_pays_only_the_new_price(cloud: Cloud, offered: Catalog) -> None:
    cloud.hypervisor.never_boots = True
    server = await cloud.create()
    await cloud.work()
    await announce(cloud, offered, DEARER, _in(cloud, DAY))
    cloud.clock.advance(2 * DAY)
    cloud.hypervisor.never_boots = False
    started_ms = cloud.clock.now_ms()
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    cloud.clock.advance(5 * HOUR)
    await charge(cloud)
    assert [rental.confirmed_at_ms is None for rental in await rentals_of(cloud, server)] == [True, False]
    made = await charges_of(cloud, server)
    assert made[0].from_ms == started_ms
    assert await spent(cloud, server) == cost(DEARER, made[-1].to_ms - started_ms)
    await assert_right(cloud)


async def test_a_server_that_is_deleted_before_the_day_never_pays_the_new_price(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    day_ms = _in(cloud, 10 * DAY)
    await announce(cloud, offered, DEARER, day_ms)
    cloud.clock.advance(DAY)
    await charge(cloud)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    deleted_ms = cloud.clock.now_ms()
    cloud.clock.advance(20 * DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert made[-1].to_ms == deleted_ms
    assert [rental.to_ms for rental in await rentals_of(cloud, server)] == [deleted_ms, day_ms]  # it never began
    assert await spent(cloud, server) == cost(NANO, deleted_ms - made[0].from_ms)
    assert await announce(cloud, offered, 4 * MICROS, _in(cloud, DAY)) == 0
    await assert_right(cloud)


async def test_a_server_that_is_resized_before_the_day_never_pays_its_old_plans_new_price(
    cloud: Cloud, offered: Catalog
) -> None:
    server = await cloud.have_server()
    posted_ms = (await rentals_of(cloud, server))[0].from_ms
    await announce(cloud, offered, 50 * MICROS, _in(cloud, 2 * DAY))
    cloud.clock.advance(DAY)
    resized_ms = cloud.clock.now_ms()
    await resize(cloud, server, 3)
    assert await schedule(cloud) == 0
    cloud.clock.advance(3 * DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert _costs(made, posted_ms, resized_ms) == cost(NANO, resized_ms - posted_ms)
    assert _costs(made, resized_ms, made[-1].to_ms) == cost(STARTER, made[-1].to_ms - resized_ms)
    await assert_right(cloud)


async def test_two_prices_in_a_month_share_its_cap(cloud: Cloud, offered: Catalog) -> None:
    await have_price(cloud, offered, 40 * MICROS)
    server = await cloud.have_server()
    july = prices.month_of(prices.month_of(cloud.clock.now_ms()).end_ms)
    day_ms = july.start_ms + 26 * DAY * 1000
    await announce(cloud, offered, 41 * MICROS, day_ms)
    cloud.clock.advance((day_ms - cloud.clock.now_ms()) / 1000)
    for _ in range(10):
        cloud.clock.advance(DAY)
        await charge(cloud)
    assert _costs(await charges_of(cloud, server), july.start_ms, july.end_ms) == 41 * MICROS
    await assert_right(cloud)


async def test_a_change_of_mind_before_the_day_counts(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    now = cloud.clock.now_ms()
    await announce(cloud, offered, 50 * MICROS, now + 10 * DAY * 1000)
    await announce(cloud, offered, 60 * MICROS, now + 5 * DAY * 1000)
    day_ms = now + DAY * 1000
    assert await announce(cloud, offered, DEARER, day_ms) == 1
    cloud.clock.advance(12 * DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert {entry.rate_micros for entry in made} == {NANO, DEARER}
    assert _costs(made, day_ms, made[-1].to_ms) == cost(DEARER, made[-1].to_ms - day_ms)
    await assert_right(cloud)


async def test_an_announced_price_that_is_taken_back_never_comes(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    await announce(cloud, offered, DEARER, _in(cloud, DAY))
    cloud.clock.advance(HOUR)
    await charge(cloud)
    assert await announce(cloud, offered, NANO, None) == 1
    cloud.clock.advance(3 * DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert await spent(cloud, server) == cost(NANO, made[-1].to_ms - made[0].from_ms)
    await assert_right(cloud)


async def test_the_price_that_is_shown_is_the_one_that_is_paid(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    now = cloud.clock.now_ms()
    await announce(cloud, offered, 50 * MICROS, now + 3 * DAY * 1000)
    assert await _shown(cloud, server) == {2.0}
    await announce(cloud, offered, DEARER, now + DAY * 1000)
    assert await _shown(cloud, server) == {2.0}
    cloud.clock.advance(DAY + HOUR)
    assert await _shown(cloud, server) == {3.0}
    cloud.clock.advance(3 * DAY)  # past the day of the price that never came
    assert await _shown(cloud, server) == {3.0}


@pytest.mark.parametrize("charged_hours", [0, 5])
@pytest.mark.parametrize("back_hours", [3, 20])
async def test_at_a_clock_that_was_set_back_a_resize_charges_nothing_twice(
    cloud: Cloud, charged_hours: int, back_hours: int
) -> None:
    cloud.clock.advance(until_hour(cloud))
    server = await cloud.have_server()
    cloud.clock.advance(charged_hours * HOUR)
    await charge(cloud)
    had = await charges_of(cloud, server)
    cloud.clock.advance(-back_hours * HOUR)  # to before what was charged, or before the server itself
    await resize(cloud, server, 3)
    cloud.clock.advance(2 * DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert made[: len(had)] == had
    assert made[-1].to_ms == cloud.clock.now_ms() // HOUR_MS * HOUR_MS
    await assert_right(cloud)


async def test_a_day_that_came_and_was_undone_by_the_clock_is_not_charged_twice(cloud: Cloud, offered: Catalog) -> None:
    server = await cloud.have_server()
    await announce(cloud, offered, DEARER, _in(cloud, 5 * HOUR))
    cloud.clock.advance(10 * HOUR)
    await charge(cloud)
    had = await charges_of(cloud, server)
    cloud.clock.advance(-8 * HOUR)
    await announce(cloud, offered, 4 * MICROS, _in(cloud, HOUR))
    cloud.clock.advance(DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert made[: len(had)] == had
    assert made[-1].to_ms == cloud.clock.now_ms() // HOUR_MS * HOUR_MS
    await assert_right(cloud)


@pytest.mark.parametrize("ahead", [HOUR / 2, 40 * DAY])
async def test_a_deleted_server_is_not_rented_again_by_a_clock_that_was_set_back(
    cloud: Cloud, offered: Catalog, ahead: float
) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(5 * HOUR)
    await charge(cloud)
    cloud.clock.advance(-3 * HOUR)  # its rental ends where it was charged, later than now
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    assert await announce(cloud, offered, DEARER, _in(cloud, ahead)) == 0
    assert all(rental.to_ms is not None for rental in await rentals_of(cloud, server))


async def test_processes_that_start_with_a_new_price_at_once_raise_it_once(cloud: Cloud, offered: Catalog) -> None:
    servers = [await cloud.have_server(f"web-{number}") for number in range(4)]
    day_ms = _in(cloud, DAY)
    await have_price(cloud, offered, DEARER, from_ms=day_ms)
    await have_connections(cloud)
    assert sum(await asyncio.gather(*(schedule(cloud) for _ in range(4)))) == 4
    for server in servers:
        assert [rental.to_ms for rental in await rentals_of(cloud, server)] == [day_ms, None]
    cloud.clock.advance(2 * DAY)
    await charge(cloud)
    await assert_right(cloud)


async def test_a_server_that_is_deleted_as_its_price_changes_is_not_rented_any_more(
    cloud: Cloud, offered: Catalog
) -> None:
    await have_connections(cloud)
    for number in range(5):
        servers = [await cloud.have_server() for _ in range(2)]
        await have_price(cloud, offered, (3 + number) * MICROS, from_ms=_in(cloud, HOUR))
        deletes = [cloud.ask("DELETE", f"/api/v1/servers/{server}/") for server in servers]
        await asyncio.gather(schedule(cloud), schedule(cloud), *deletes)
        for server in servers:
            assert all(rental.to_ms is not None for rental in await rentals_of(cloud, server))
        await cloud.settle()
        cloud.clock.advance(2 * HOUR)
        await charge(cloud)
        await assert_right(cloud)


async def test_a_server_that_first_works_as_its_price_changes_costs_what_it_should(
    cloud: Cloud, offered: Catalog
) -> None:
    await have_connections(cloud)
    for number in range(5):
        servers = [await cloud.create() for _ in range(2)]
        cloud.clock.advance(1)
        await have_price(cloud, offered, (3 + number) * MICROS, from_ms=_in(cloud, HOUR))
        await asyncio.gather(cloud.work("first"), cloud.work("second"), schedule(cloud), schedule(cloud))
        for server in servers:
            assert all(rental.confirmed_at_ms is not None for rental in await rentals_of(cloud, server))
        cloud.clock.advance(2 * HOUR)
        await charge(cloud)
        await assert_right(cloud)


async def test_the_catalogue_file_says_from_when(cloud: Cloud, tmp_path: Path) -> None:
    server = await cloud.have_server()
    path = tmp_path / "new.toml"
    text = catalog.default_text().replace("price_monthly = 2.00", "price_monthly = 3.00")
    path.write_text(text)
    assert await apply_catalog(cloud.runtime, path) == ["plans 4: changed"]
    (rental,) = await rentals_of(cloud, server)
    assert (rental.price_monthly_micros, rental.to_ms) == (NANO, None)
    day = "price_monthly = 3.00\nprice_for_all_from = 2999-01-01T00:00:00+01:00"
    path.write_text(text.replace("price_monthly = 3.00", day))
    assert await apply_catalog(cloud.runtime, path) == [
        "plans 4: changed",
        "plans 4: the future price of 1 servers is changed",
    ]
    assert await apply_catalog(cloud.runtime, path) == []
    old, new = await rentals_of(cloud, server)
    assert (old.price_monthly_micros, new.price_monthly_micros) == (NANO, DEARER)
    assert old.to_ms == new.from_ms == prices.month_named("2999-01").start_ms - HOUR_MS
    await assert_right(cloud)
