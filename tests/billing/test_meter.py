"""The meter charges once, whatever happens: twice, late, at once, after a crash, with its place set back."""

import asyncio
import random

import msgspec
import pytest
from sqlalchemy import update

from tests.billing.books import (
    DAY,
    HOUR,
    assert_right,
    change,
    charge,
    charges_of,
    checked,
    has_moved,
    have_connections,
    have_stats,
    rentals_of,
    resize,
    spent,
    until_hour,
)
from tests.cloud import Cloud
from tests.killed import Killed
from vpsd.billing import meter, prices
from vpsd.billing.models import Charge, rentals
from vpsd.core.ids import Ids
from vpsd.core.money import MICROS
from vpsd.core.units import HOUR_MS
from vpsd.hypervisor.protocol import GuestStats
from vpsd.lifecycle import Status
from vpsd.metrics.models import traffic
from vpsd.worker.metering import charge_due

NANO = 2 * MICROS  # the price of the plan that `cloud.create` takes
GB = 1 << 30


def cost(price_micros: int, milliseconds: int) -> int:
    """Within a month and below its cap."""
    return price_micros * milliseconds // prices.FULL_MONTH_MS


def to_month_end(cloud: Cloud) -> None:
    """The first moment of the next month."""
    now = cloud.clock.now_ms()
    cloud.clock.advance((prices.month_of(now).end_ms - now) / 1000)


async def test_a_server_costs_from_its_post_by_full_hours(cloud: Cloud) -> None:
    posted_ms = cloud.clock.now_ms()
    server = await cloud.create()
    cloud.hypervisor.boot_seconds = 90
    await cloud.work()
    before = await cloud.balance()
    assert await charge(cloud) == set()  # the hour is not over
    cloud.clock.advance(until_hour(cloud))
    assert await charge(cloud) == {1}
    (entry,) = await charges_of(cloud, server)
    assert (entry.from_ms, entry.to_ms) == (posted_ms, cloud.clock.now_ms())
    assert entry.quantity == entry.to_ms - entry.from_ms
    assert (entry.plan_id, entry.rate_micros) == (4, NANO)
    assert entry.amount_micros == cost(NANO, entry.quantity)
    assert await cloud.balance() == before - entry.amount_micros
    await assert_right(cloud)


async def test_an_hour_is_charged_once_however_often_the_meter_looks(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(3 * HOUR)
    await charge(cloud)
    had, balance = await charges_of(cloud, server), await cloud.balance()
    assert len(had) == 3  # the last hour is not over
    for _ in range(3):
        assert await charge(cloud) == set()
        cloud.clock.advance(60)
    assert (await charges_of(cloud, server), await cloud.balance()) == (had, balance)


async def test_a_day_of_downtime_costs_what_a_day_costs_and_not_more(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(until_hour(cloud))
    await charge(cloud)
    begin_ms, before = cloud.clock.now_ms(), await spent(cloud, server)
    cloud.clock.advance(DAY)
    assert await charge(cloud) == {1}
    made = await charges_of(cloud, server)
    assert [entry.from_ms for entry in made[1:]] == [begin_ms + hour * HOUR_MS for hour in range(24)]
    assert await spent(cloud, server) == cost(NANO, cloud.clock.now_ms() - made[0].from_ms)
    assert await spent(cloud, server) - before in (71428, 71429)  # 24 times 2.00 / 672
    await assert_right(cloud)


async def test_a_month_of_downtime_is_capped_like_any_other(cloud: Cloud) -> None:
    server = await cloud.have_server()
    to_month_end(cloud)
    july = cloud.clock.now_ms()
    cloud.clock.advance(45 * DAY)
    await charge(cloud)
    made = [entry for entry in await charges_of(cloud, server) if july <= entry.from_ms < prices.month_of(july).end_ms]
    assert sum(entry.amount_micros for entry in made) == NANO
    await assert_right(cloud)


async def test_a_clock_that_is_set_back_charges_nothing_and_owes_nothing(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(10 * HOUR)
    await charge(cloud)
    had = await charges_of(cloud, server)
    cloud.clock.advance(-5 * HOUR)
    assert await charge(cloud) == set()
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    assert await charge(cloud) == set()
    cloud.clock.advance(DAY)
    assert await charge(cloud) == set()
    assert await charges_of(cloud, server) == had
    (rental,) = await rentals_of(cloud, server)
    assert rental.to_ms == rental.charged_until_ms  # never before what was charged
    await assert_right(cloud)


async def test_many_workers_at_once_charge_once_and_do_not_stumble_over_each_other(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [await cloud.have_server(f"web-{number}", who=("alice", "charlie")[number % 2]) for number in range(4)]
    await have_connections(cloud)
    for _ in range(5):
        cloud.clock.advance(2 * HOUR)
        await asyncio.gather(*(charge(cloud) for _ in range(4)))
    for server in servers:
        made = await charges_of(cloud, server)
        assert sum(entry.amount_micros for entry in made) == cost(NANO, made[-1].to_ms - made[0].from_ms)
        assert made[-1].to_ms == cloud.clock.now_ms() // HOUR_MS * HOUR_MS
    assert "could not be charged" not in caplog.text  # nobody was saved by the unique index alone
    await assert_right(cloud)


async def test_small_batches_leave_nobody_out(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "BATCH", 2)
    servers = [await cloud.have_server(f"web-{number}", who=("alice", "charlie")[number % 2]) for number in range(5)]
    cloud.clock.advance(9 * HOUR)
    assert await charge(cloud) == {1, 2}
    for server in servers:
        assert (await charges_of(cloud, server))[-1].to_ms == cloud.clock.now_ms() // HOUR_MS * HOUR_MS
    await assert_right(cloud)


class Doomed(Ids):
    """Ids of a worker that dies when it writes its second lot into the ledger."""

    def __init__(self) -> None:
        super().__init__(random.Random(1))
        self._left = 1

    def uuid(self) -> str:
        if not self._left:
            raise Killed
        self._left -= 1
        return super().uuid()


async def _die_halfway(cloud: Cloud) -> None:
    with pytest.raises(Killed):
        await charge_due(msgspec.structs.replace(cloud.runtime, ids=Doomed()))


async def test_a_worker_that_dies_halfway_leaves_the_rest_to_the_next_one(cloud: Cloud) -> None:
    first, second = await cloud.have_server("first"), await cloud.have_server("second")
    cloud.clock.advance(DAY)
    await _die_halfway(cloud)
    assert await charges_of(cloud, first) != []
    await assert_right(cloud)
    await charge(cloud)
    for server in (first, second):
        made = await charges_of(cloud, server)
        assert sum(entry.amount_micros for entry in made) == cost(NANO, made[-1].to_ms - made[0].from_ms)
        assert made[-1].to_ms == cloud.clock.now_ms() // HOUR_MS * HOUR_MS
    await assert_right(cloud)


async def test_a_worker_that_dies_between_two_prices_of_a_server_leaves_right_books(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(10 * HOUR)
    await resize(cloud, server, 3)
    cloud.clock.advance(10 * HOUR)
    await _die_halfway(cloud)
    assert await charges_of(cloud, server) != []
    await assert_right(cloud)
    await charge(cloud)
    await assert_right(cloud)


@pytest.mark.parametrize("hours", [1, 5, 10**6])
async def test_a_place_that_was_set_back_charges_nothing_twice(cloud: Cloud, hours: int) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(10 * HOUR)
    await charge(cloud)
    had, balance = await charges_of(cloud, server), await cloud.balance()
    (rental,) = await rentals_of(cloud, server)
    back_ms = max(rental.from_ms, rental.charged_until_ms - hours * HOUR_MS)
    await change(cloud, update(rentals), ("charged_until_ms",), charged_until_ms=back_ms)
    cloud.clock.advance(HOUR)
    await charge(cloud)  # the index has the last word, and the whole lot is undone
    assert (await charges_of(cloud, server), await cloud.balance()) == (had, balance)


async def test_nobody_else_waits_for_a_server_that_cannot_be_charged(cloud: Cloud) -> None:
    broken = await cloud.have_server(who="charlie")
    whole = await cloud.have_server()
    cloud.clock.advance(10 * HOUR)
    await charge(cloud)
    had = await charges_of(cloud, broken)
    back = update(rentals).where(rentals.c.server_id == broken)
    await change(cloud, back, ("charged_until_ms",), charged_until_ms=had[0].from_ms)
    cloud.clock.advance(3 * HOUR)
    assert await charge(cloud) == {1}
    assert len(await charges_of(cloud, whole)) == len(had) + 3
    assert await charges_of(cloud, broken) == had
    found = await checked(cloud)
    assert (found.difference_micros, found.problems) == (0, [])


async def test_stopping_a_server_stops_no_cost_and_deleting_it_does(cloud: Cloud) -> None:
    posted_ms = cloud.clock.now_ms()
    server = await cloud.have_server(status=Status.STOPPED)
    cloud.clock.advance(7 * HOUR + 11.5)
    deleted_ms = cloud.clock.now_ms()
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    cloud.clock.advance(HOUR / 3)  # what it takes to vanish from the host is nobody's cost
    await cloud.settle()
    cloud.clock.advance(DAY)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert (made[0].from_ms, made[-1].to_ms) == (posted_ms, deleted_ms)
    assert await spent(cloud, server) == cost(NANO, deleted_ms - posted_ms)
    await assert_right(cloud)


async def test_the_last_part_of_an_hour_is_charged_as_soon_as_the_server_is_deleted(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(until_hour(cloud) + HOUR / 4)
    await charge(cloud)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    assert await charge(cloud) == {1}
    made = await charges_of(cloud, server)
    assert made[-1].to_ms == cloud.clock.now_ms()
    assert made[-1].quantity == HOUR_MS // 4
    await assert_right(cloud)


async def test_a_server_that_never_booted_costs_nothing(cloud: Cloud) -> None:
    cloud.hypervisor.never_boots = True
    server, balance = await cloud.create(), await cloud.balance()
    await cloud.work()
    assert await cloud.status(server) == "error"
    cloud.clock.advance(40 * DAY)
    assert await charge(cloud) == set()
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    cloud.clock.advance(DAY)
    assert await charge(cloud) == set()
    assert await cloud.balance() == balance
    await assert_right(cloud)


async def test_a_server_whose_host_did_not_answer_costs_nothing(cloud: Cloud) -> None:
    cloud.hypervisor.broken = True
    server, balance = await cloud.create(), await cloud.balance()
    while await cloud.status(server) != "error":
        await cloud.work()
        cloud.clock.advance(31)
    cloud.clock.advance(DAY)
    assert await charge(cloud) == set()
    assert await cloud.balance() == balance


async def test_a_server_that_failed_and_is_started_later_costs_from_that_start(cloud: Cloud) -> None:
    cloud.hypervisor.never_boots = True
    server = await cloud.create()
    await cloud.work()
    cloud.clock.advance(3 * DAY)
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    assert await cloud.status(server) == "error"  # that start failed too, and costs nothing either
    cloud.clock.advance(2 * DAY)
    cloud.hypervisor.never_boots = False
    cloud.hypervisor.boot_seconds = 60
    started_ms = cloud.clock.now_ms()
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    assert await cloud.status(server) == "active"
    cloud.clock.advance(5 * HOUR)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert made[0].from_ms == started_ms
    assert await spent(cloud, server) == cost(NANO, made[-1].to_ms - started_ms)
    await assert_right(cloud)


async def test_a_later_start_of_a_server_that_worked_moves_nothing(cloud: Cloud) -> None:
    posted_ms = cloud.clock.now_ms()
    server = await cloud.have_server(status=Status.STOPPED)
    cloud.clock.advance(DAY)
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.work()
    (rental,) = await rentals_of(cloud, server)
    assert rental.from_ms == posted_ms


async def test_a_rebuilt_server_goes_on_costing_without_a_gap(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.advance(3 * HOUR)
    await charge(cloud)
    before = await rentals_of(cloud, server)
    assert (await cloud.post(f"/api/v1/servers/{server}/rebuild/", {"os_id": 3})).status_code == 200
    cloud.clock.advance(HOUR)
    await cloud.work()
    assert await cloud.status(server) == "active"
    assert await rentals_of(cloud, server) == before
    cloud.clock.advance(3 * HOUR)
    await charge(cloud)
    made = await charges_of(cloud, server)
    assert await spent(cloud, server) == cost(NANO, made[-1].to_ms - made[0].from_ms)
    await assert_right(cloud)


async def test_a_server_that_is_deleted_before_a_worker_makes_it_costs_nothing(cloud: Cloud) -> None:
    server, balance = await cloud.create(), await cloud.balance()
    cloud.clock.advance(HOUR)
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    cloud.clock.advance(DAY)
    assert await charge(cloud) == set()
    assert await cloud.balance() == balance
    await assert_right(cloud)


@pytest.mark.parametrize("call", ["define", "power_on", "is_up"])
async def test_a_server_that_is_deleted_while_a_worker_makes_it_costs_nothing(cloud: Cloud, call: str) -> None:
    server, balance = await cloud.create(), await cloud.balance()
    cloud.hypervisor.boot_seconds = 0
    wrapped = getattr(cloud.hypervisor, call)

    async def delete_first(*arguments: object) -> object:
        setattr(cloud.hypervisor, call, wrapped)
        cloud.clock.advance(2 * HOUR)
        assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
        return await wrapped(*arguments)

    setattr(cloud.hypervisor, call, delete_first)
    await cloud.settle()  # the guest answers before its worker hears of the delete
    assert (await cloud.row(server)).purged_at_ms is not None
    cloud.clock.advance(DAY)
    assert await charge(cloud) == set()
    assert await cloud.balance() == balance
    await assert_right(cloud)


async def test_transfer_beyond_the_plan_is_charged_once_when_the_month_is_over(cloud: Cloud) -> None:
    server = await cloud.have_server()
    has_moved(cloud, 10 * GB, 300 * GB)
    await cloud.sampler().sample()
    await charge(cloud)
    assert await charges_of(cloud, server, "transfer") == []
    to_month_end(cloud)
    june = prices.month_of(cloud.clock.now_ms() - 1)
    await charge(cloud)
    assert await charges_of(cloud, server, "transfer") == []  # a last sample of June may still be on its way
    cloud.clock.advance(660)
    before = await cloud.balance()
    await charge(cloud)
    (rental,) = await rentals_of(cloud, server)
    included = 256 * GB * (june.end_ms - rental.from_ms) // prices.FULL_MONTH_MS
    (entry,) = await charges_of(cloud, server, "transfer")
    assert (entry.from_ms, entry.to_ms, entry.rate_micros) == (june.start_ms, june.end_ms, 10_000)
    assert entry.quantity == 300 * GB - included
    assert entry.amount_micros == entry.quantity * 10_000 // GB
    assert await cloud.balance() == before - entry.amount_micros
    for _ in range(2):
        cloud.clock.advance(DAY)
        await asyncio.gather(charge(cloud), charge(cloud))
    assert await charges_of(cloud, server, "transfer") == [entry]
    await assert_right(cloud)


async def test_transfer_of_a_deleted_server_is_charged_at_once_and_once(cloud: Cloud) -> None:
    server = await cloud.have_server()
    has_moved(cloud, 50 * GB, 10 * GB)
    await cloud.sampler().sample()
    cloud.clock.advance(2 * DAY)
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    deleted_ms = cloud.clock.now_ms()
    await have_connections(cloud)
    await asyncio.gather(charge(cloud), charge(cloud))
    (rental,) = await rentals_of(cloud, server)
    (entry,) = await charges_of(cloud, server, "transfer")
    assert (entry.to_ms, entry.quantity) == (
        deleted_ms,
        50 * GB - 256 * GB * (deleted_ms - rental.from_ms) // prices.FULL_MONTH_MS,
    )
    cloud.clock.advance(45 * DAY)
    await charge(cloud)
    assert await charges_of(cloud, server, "transfer") == [entry]
    await assert_right(cloud)


async def test_transfer_within_the_plan_costs_nothing(cloud: Cloud) -> None:
    server = await cloud.have_server()
    has_moved(cloud, 20 * GB, 20 * GB)  # in and out are not added
    await cloud.sampler().sample()
    cloud.clock.advance(3 * DAY)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await charge(cloud)
    assert await charges_of(cloud, server, "transfer") == []
    await assert_right(cloud)


async def test_a_transfer_whose_mark_was_lost_is_not_charged_twice(cloud: Cloud) -> None:
    server = await cloud.have_server()
    has_moved(cloud, 50 * GB, 0)
    await cloud.sampler().sample()
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await charge(cloud)
    had, balance = await charges_of(cloud, server, "transfer"), await cloud.balance()
    assert len(had) == 1
    await change(cloud, update(traffic), ("charged_at_ms",), charged_at_ms=None)
    await charge(cloud)
    assert (await charges_of(cloud, server, "transfer"), await cloud.balance()) == (had, balance)


async def test_what_is_measured_of_a_deleted_server_is_not_added(cloud: Cloud) -> None:
    server = await cloud.have_server()
    has_moved(cloud, 50 * GB, 0)
    await cloud.sampler().sample()
    cloud.clock.advance(15)

    async def stats(name: str) -> GuestStats:
        assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
        await charge(cloud)
        return GuestStats(2.0, 40, 1 << 30, 90 * GB, 0)

    have_stats(cloud, stats)
    await cloud.sampler().sample()
    (entry,) = await charges_of(cloud, server, "transfer")
    assert entry.quantity > 40 * GB
    cloud.clock.advance(40 * DAY)
    await charge(cloud)
    assert await charges_of(cloud, server, "transfer") == [entry]
    await assert_right(cloud)  # it reckons with the bytes as they are now


async def test_a_server_that_is_deleted_while_it_is_first_measured_has_moved_nothing(cloud: Cloud) -> None:
    server = await cloud.have_server()

    async def stats(name: str) -> GuestStats:
        assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
        return GuestStats(2.0, 40, 1 << 30, 90 * GB, 0)

    have_stats(cloud, stats)
    await cloud.sampler().sample()
    await charge(cloud)
    assert await charges_of(cloud, server, "transfer") == []
    await assert_right(cloud)


async def test_nothing_is_added_to_a_month_whose_transfer_was_charged(cloud: Cloud) -> None:
    server = await cloud.have_server()
    has_moved(cloud, 300 * GB, 0)
    await cloud.sampler().sample()
    to_month_end(cloud)
    cloud.clock.advance(660)
    await charge(cloud)
    had = await charges_of(cloud, server, "transfer")
    assert len(had) == 1
    cloud.clock.advance(-HOUR)  # the host's clock is set right: the month is not over after all
    has_moved(cloud, 400 * GB, 0)
    await cloud.sampler().sample()
    await assert_right(cloud)
    cloud.clock.advance(40 * DAY)
    await charge(cloud)
    assert [entry for entry in await charges_of(cloud, server, "transfer") if entry.from_ms == had[0].from_ms] == had
    await assert_right(cloud)


async def test_a_ledger_row_is_the_sum_of_its_charges(cloud: Cloud) -> None:
    for number in range(3):
        await cloud.have_server(f"web-{number}")
    cloud.clock.advance(DAY)
    await charge(cloud)
    answer = (await cloud.get("/api/v1/account/transactions/?page_size=100")).json()
    usage = [row for row in answer["results"] if row["kind"] == "usage"]
    assert usage
    made: list[Charge] = [entry for server in (1, 2, 3) for entry in await charges_of(cloud, server)]
    totals: dict[int, int] = {}
    for entry in made:
        totals[entry.ledger_id] = totals.get(entry.ledger_id, 0) + entry.amount_micros
    assert {row["id"]: round(-row["amount"] * MICROS) for row in usage} == totals
