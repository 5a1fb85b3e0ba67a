"""`billing.verify` finds what was tampered with: ledger, charges, rentals, the meter's place, the bytes."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, update

from tests.billing.books import (
    DAY,
    HOUR,
    announce,
    assert_right,
    change,
    charge,
    charges_of,
    checked,
    has_moved,
    rentals_of,
    resize,
)
from tests.cloud import Cloud
from vpsd.billing import prices
from vpsd.billing.models import Charge, charges, ledger, rentals
from vpsd.catalog.service import Catalog
from vpsd.core.money import MICROS
from vpsd.core.units import HOUR_MS
from vpsd.metrics.models import traffic
from vpsd.servers.models import servers

GB = 1 << 30


async def _charged(cloud: Cloud) -> int:
    """A server whose books are right, until somebody comes."""
    server = await cloud.have_server()
    cloud.clock.advance(5 * HOUR)
    await charge(cloud)
    await assert_right(cloud)
    return server


async def _add_to_ledger(cloud: Cloud, amount_micros: int, kind: str = "usage") -> int:
    values: dict[str, Any] = {
        "id": 1000,  # PostgreSQL's own numbers are far from there
        "uuid": cloud.ids.uuid(),
        "account_id": 1,
        "kind": kind,
        "amount_micros": amount_micros,
        "description": "forged",
        "reference": None,
        "created_at_ms": cloud.clock.now_ms(),
    }
    await change(cloud, insert(ledger), tuple(values), **values)
    return 1000


async def _add_charge(cloud: Cloud, like: Charge, **changes: Any) -> None:
    values = {**msgspec.structs.asdict(like), "id": 1000, **changes}
    await change(cloud, insert(charges), tuple(values), **values)


async def test_right_books_have_no_difference_before_and_after_anything_is_charged(cloud: Cloud) -> None:
    await assert_right(cloud)
    await cloud.create()
    await assert_right(cloud)
    await cloud.work()
    await assert_right(cloud)
    cloud.clock.advance(3 * HOUR)
    await assert_right(cloud)  # what is not charged yet is no difference
    await charge(cloud)
    await assert_right(cloud)


async def test_a_strangers_tampered_books_are_not_ones_own(cloud: Cloud) -> None:
    await _charged(cloud)
    await _add_to_ledger(cloud, -5)
    assert (await checked(cloud)).difference_micros == -5
    stranger = await checked(cloud, "charlie")
    assert (stranger.difference_micros, stranger.problems) == (0, [])


async def test_a_usage_row_without_charges_is_found(cloud: Cloud) -> None:
    await _charged(cloud)
    row = await _add_to_ledger(cloud, -77)
    found = await checked(cloud)
    assert found.difference_micros == -77
    assert found.problems == [f"ledger row {row} says -77, and its charges come to 0"]


async def test_a_usage_row_with_another_sum_than_its_charges_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    last = (await charges_of(cloud, server))[-1]
    row = await _add_to_ledger(cloud, -900)
    await _add_charge(cloud, last, ledger_id=row, from_ms=last.to_ms, to_ms=last.to_ms + 1, amount_micros=899)
    found = await checked(cloud)
    assert found.difference_micros == -900
    assert f"ledger row {row} says -900, and its charges come to -899" in found.problems


async def test_a_charge_beyond_the_meters_place_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    last = (await charges_of(cloud, server))[-1]
    row = await _add_to_ledger(cloud, -10)
    await _add_charge(cloud, last, ledger_id=row, from_ms=last.to_ms, to_ms=last.to_ms + 1000, amount_micros=10)
    found = await checked(cloud)
    assert found.difference_micros == -10
    assert found.problems == [f"server {server}: the meter does not stand where its charges end"]


async def test_a_charge_within_another_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    second = (await charges_of(cloud, server))[1]
    row = await _add_to_ledger(cloud, 0)
    await _add_charge(cloud, second, ledger_id=row, from_ms=second.from_ms + 1, amount_micros=0)
    found = await checked(cloud)
    assert f"server {server}: charged from {second.from_ms + 1}, and before that until {second.to_ms}" in found.problems


async def test_an_hour_that_the_meter_passed_over_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    (rental,) = await rentals_of(cloud, server)
    skipped_ms = rental.charged_until_ms
    await change(cloud, update(rentals), ("charged_until_ms",), charged_until_ms=skipped_ms + HOUR_MS)
    found = await checked(cloud)
    assert found.difference_micros in (2976, 2977)  # 2.00 / 672 more than was charged
    assert found.problems == [f"server {server}: the meter does not stand where its charges end"]
    cloud.clock.advance(3 * HOUR)
    await charge(cloud)
    found = await checked(cloud)
    assert f"server {server}: charged from {skipped_ms + HOUR_MS}, and before that until {skipped_ms}" in (
        found.problems
    )


@pytest.mark.parametrize("hours", [1, 10**6])
async def test_a_place_that_was_set_back_is_found(cloud: Cloud, hours: int) -> None:
    server = await _charged(cloud)
    (rental,) = await rentals_of(cloud, server)
    back_ms = max(rental.from_ms, rental.charged_until_ms - hours * HOUR_MS)
    await change(cloud, update(rentals), ("charged_until_ms",), charged_until_ms=back_ms)
    found = await checked(cloud)
    assert found.difference_micros < 0
    assert found.problems == [f"server {server}: the meter does not stand where its charges end"]


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_changed_place_in_an_earlier_rental_is_found_too(cloud: Cloud, hours: int) -> None:
    server = await _charged(cloud)
    await resize(cloud, server, 3)
    cloud.clock.advance(5 * HOUR)
    await charge(cloud)
    await assert_right(cloud)
    earlier, _ = await rentals_of(cloud, server)
    values = {"charged_until_ms": earlier.charged_until_ms + hours * HOUR_MS}
    await change(cloud, update(rentals).where(rentals.c.id == earlier.id), tuple(values), **values)
    assert (await checked(cloud)).problems != []


async def test_a_rental_with_a_gap_is_found(cloud: Cloud, offered: Catalog) -> None:
    server = await _charged(cloud)
    await announce(cloud, offered, 3 * MICROS, cloud.clock.now_ms() + 10 * HOUR_MS)
    earlier, later = await rentals_of(cloud, server)
    assert earlier.to_ms is not None
    values = {"from_ms": later.from_ms + 60_000, "charged_until_ms": later.from_ms + 60_000}
    await change(cloud, update(rentals).where(rentals.c.id == later.id), tuple(values), **values)
    found = await checked(cloud)
    said = f"server {server}: rental {earlier.id} ends at {earlier.to_ms}, and {later.id} begins at"
    assert found.problems == [f"{said} {earlier.to_ms + 60_000}"]


async def test_rentals_that_overlap_are_found(cloud: Cloud, offered: Catalog) -> None:
    server = await _charged(cloud)
    await announce(cloud, offered, 3 * MICROS, cloud.clock.now_ms() + 10 * HOUR_MS)
    _, later = await rentals_of(cloud, server)
    values = {"from_ms": later.from_ms - 1, "charged_until_ms": later.from_ms - 1}
    await change(cloud, update(rentals).where(rentals.c.id == later.id), tuple(values), **values)
    assert len((await checked(cloud)).problems) == 1


async def test_a_rental_that_ended_before_its_server_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    await change(cloud, update(rentals), ("to_ms",), to_ms=cloud.clock.now_ms())
    found = await checked(cloud)
    assert found.problems == [f"server {server}: its rental and its life do not end together"]


async def test_a_rental_that_outlives_its_server_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    await change(cloud, update(servers), ("deleted_at_ms",), deleted_at_ms=cloud.clock.now_ms())
    found = await checked(cloud)
    assert found.problems == [f"server {server}: its rental and its life do not end together"]


async def test_a_server_that_worked_without_a_rental_is_found(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await change(cloud, update(rentals), ("confirmed_at_ms",), confirmed_at_ms=None)
    assert (await checked(cloud)).problems == [f"server {server} worked and was never rented"]


@pytest.mark.parametrize("price", [0, 1_999_999, 2_000_001, 5_000_000])
async def test_another_price_than_was_charged_is_found(cloud: Cloud, price: int) -> None:
    await cloud.have_server()
    cloud.clock.advance(20 * DAY)  # so that a millionth a month comes to one
    await charge(cloud)
    await change(cloud, update(rentals), ("price_monthly_micros",), price_monthly_micros=price)
    assert (await checked(cloud)).difference_micros * (price - 2_000_000) >= 0
    assert (await checked(cloud)).difference_micros != 0 or abs(price - 2_000_000) == 1


async def test_a_server_that_is_said_to_be_older_than_its_charges_is_found(cloud: Cloud) -> None:
    server = await _charged(cloud)
    (rental,) = await rentals_of(cloud, server)
    await change(cloud, update(rentals), ("from_ms",), from_ms=rental.from_ms - HOUR_MS)
    found = await checked(cloud)
    assert found.difference_micros > 0
    assert f"server {server}: charged from {rental.from_ms}, and before that until {rental.from_ms - HOUR_MS}" in (
        found.problems
    )


async def _transferred(cloud: Cloud, gigabytes: int) -> int:
    server = await cloud.have_server()
    has_moved(cloud, gigabytes * GB, 0)
    await cloud.sampler().sample()
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await charge(cloud)
    await assert_right(cloud)
    return server


async def test_bytes_that_were_changed_after_they_were_charged_are_found(cloud: Cloud) -> None:
    await _transferred(cloud, 10)
    await change(cloud, update(traffic), ("received_bytes",), received_bytes=20 * GB)
    assert (await checked(cloud)).difference_micros == 100_000


async def test_transfer_that_was_passed_over_is_found(cloud: Cloud) -> None:
    server = await _transferred(cloud, 0)
    await change(cloud, update(traffic), ("received_bytes",), received_bytes=GB)
    month = prices.month_of(cloud.clock.now_ms()).name
    assert (await checked(cloud)).problems == [f"server {server}: its transfer of {month} was not charged"]


async def test_credit_is_believed_and_what_calls_itself_usage_is_not(cloud: Cloud) -> None:
    await _charged(cloud)
    await _add_to_ledger(cloud, 5 * MICROS, kind="credit")  # booked in whatever way: it happened
    await assert_right(cloud)
