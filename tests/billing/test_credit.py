"""The ledger: what an account has is the sum of it, and what the operator books twice stands there once."""

import asyncio
from itertools import pairwise

import pytest

from tests.billing.books import DAY, charge, have_connections
from tests.cloud import Cloud
from vpsd.billing import credit, ledger
from vpsd.core.money import MICROS
from vpsd.core.pages import Page, Position
from vpsd.errors import Invalid


async def add(cloud: Cloud, micros: int, reference: str | None = None, who: str = "alice") -> int:
    async with cloud.writing(who) as ctx:
        return await credit.add_credit(ctx, micros, "paid", reference)


async def test_credit_adds_up_and_may_be_taken_back(cloud: Cloud) -> None:
    assert await add(cloud, 12_500_000) == 1012_500_000
    assert await add(cloud, -1012_500_001) == -1
    assert await cloud.balance() == -1
    assert await cloud.balance("charlie") == 1000 * MICROS


async def test_a_reference_is_booked_once_in_an_account(cloud: Cloud) -> None:
    await add(cloud, 5 * MICROS, "INV-17")
    for micros in (5 * MICROS, 7 * MICROS):
        with pytest.raises(Invalid, match="INV-17 has already been booked for 'alice'; nothing was added"):
            await add(cloud, micros, "INV-17")
    assert await cloud.balance() == 1005 * MICROS
    await add(cloud, 5 * MICROS, "INV-17", who="charlie")
    await add(cloud, MICROS, "INV-18")
    for _ in range(2):  # without one, nobody can tell whether it is the same
        await add(cloud, MICROS)
    assert await cloud.balance() == 1008 * MICROS


async def test_a_reference_that_is_booked_twice_at_once_stands_once_and_the_other_is_told(cloud: Cloud) -> None:
    await have_connections(cloud)
    booked = await asyncio.gather(*(add(cloud, 5 * MICROS, "INV-17") for _ in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in booked].count(Invalid) == 3
    assert await cloud.balance() == 1005 * MICROS


async def test_credit_of_nothing_is_refused(cloud: Cloud) -> None:
    with pytest.raises(Invalid, match="other than 0"):
        await add(cloud, 0)


async def test_every_row_of_the_ledger_says_the_balance_after_it(cloud: Cloud) -> None:
    await cloud.have_server()
    await cloud.have_server(who="charlie")
    for _ in range(3):
        cloud.clock.advance(DAY)
        await charge(cloud)
        await add(cloud, -10 * MICROS)
    async with cloud.reading("alice") as ctx:
        whole = await ledger.entries(ctx, Page(1, 100))
        second_page = (await ledger.entries(ctx, Page(2, 3))).rows
        onwards = (await ledger.entries(ctx, Page(size=3, after=Position(whole.rows[2].id)))).rows
        balances = await ledger.balances(ctx)
    rows = whole.rows
    assert len(rows) == whole.count
    assert second_page == onwards == rows[3:6]  # a page's balances reckon with the rows that are not on it
    assert rows[0].balance_micros == await cloud.balance() == balances[1]
    for later, earlier in pairwise(rows):
        assert later.balance_micros - later.amount_micros == earlier.balance_micros
    assert rows[-1].balance_micros == rows[-1].amount_micros == 1000 * MICROS
