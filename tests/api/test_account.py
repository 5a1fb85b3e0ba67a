"""The account section: who am I, and the money, held against sums that were done by hand."""

import re
from datetime import UTC, datetime
from typing import Any

from tests.api.tables import change, put, rows
from tests.cloud import Cloud
from vpsd.accounts import service as accounts
from vpsd.accounts.permissions import KNOWN, Role
from vpsd.accounts.service import NewPerson
from vpsd.billing import credit
from vpsd.billing.models import charges, ledger
from vpsd.catalog.models import plans
from vpsd.metrics.models import traffic

ME = "/api/v1/account/me/"
BALANCE = "/api/v1/account/balance/"
TRANSACTIONS = "/api/v1/account/transactions/"
USAGE = "/api/v1/account/usage/"
CREDIT = 1_000_000


async def _person(cloud: Cloud, email: str, role: Role, first_name: str = "", last_name: str = "") -> int:
    async with cloud.writing("alice") as ctx:
        return (await accounts.add_person(ctx, NewPerson(email, first_name, last_name, role))).id


async def test_an_account_without_people_shows_its_name_alone(cloud: Cloud) -> None:
    assert (await cloud.get(ME)).json()["account"] == {
        "email": None,
        "first_name": "",
        "last_name": "",
        "company_name": "alice",
        "created_at": "2025-06-15",
    }


async def test_an_account_shows_the_tokens_person_else_its_first_owner(cloud: Cloud) -> None:
    await _person(cloud, "member@example.com", Role.MEMBER, "Mo", "Ember")
    assert (await cloud.get(ME)).json()["account"]["email"] is None
    await _person(cloud, "Ann@Example.com", Role.OWNER, "Ann", "Other")
    await _person(cloud, "second@example.com", Role.OWNER, "Sec", "Ond")
    ann = {"email": "ann@example.com", "first_name": "Ann", "last_name": "Other"}
    assert (await cloud.get(ME)).json()["account"] == {**ann, "company_name": "alice", "created_at": "2025-06-15"}
    bob = await _person(cloud, "bob@example.com", Role.READ_ONLY, "Bob", "Builder")
    token = await cloud.token("*:*", person_id=bob)
    shown = (await cloud.get(ME, who=token)).json()
    assert shown["account"] == {
        "email": "bob@example.com",
        "first_name": "Bob",
        "last_name": "Builder",
        "company_name": "alice",
        "created_at": "2025-06-15",
    }
    assert (shown["token"]["person"], shown["token"]["permissions"]) == (
        *("bob@example.com", ["billing:read", "servers:read", "ssh_keys:read"]),  # what the role leaves of *:*
    )


async def test_any_valid_token_may_ask_who_it_is(cloud: Cloud) -> None:
    for permission in KNOWN:
        shown = (await cloud.get(ME, who=await cloud.token(permission))).json()
        assert (shown["token"]["name"], shown["token"]["permissions"]) == (f"alice: {permission}", [permission])
        assert shown["account"]["company_name"] == "alice"
        assert list(shown) == ["account", "token"]


def _exact(text: str, **expected: str) -> None:
    """The first number under each of these names, digit for digit as it goes over the wire."""
    found = {name: re.search(rf'"{name}":(-?[0-9.eE+-]+)[,}}]', text) for name in expected}
    assert {name: match and match[1] for name, match in found.items()} == expected


async def _at(cloud: Cloud, day: int, hour: int, minute: int = 0, month: int = 6) -> None:
    """Move the clock to a moment of 2025."""
    moment = datetime(2025, month, day, hour, minute, tzinfo=UTC)
    cloud.clock.advance(moment.timestamp() - cloud.clock.now_ms() / 1000)


async def test_what_a_nano_costs_hour_by_hour(cloud: Cloud) -> None:
    # 2.00 for 672 hours (2,419,200 s), from 15:06:40 on the 15th of June 2025.
    server_id = await cloud.have_server()
    before = (await cloud.get(BALANCE)).json()
    assert (before["balance"], before["price_monthly"]) == (1000.0, 2.0)

    await _at(cloud, 15, 15, 30)  # 1,400 s: nothing is charged before the hour is over, and usage says what it will be
    await cloud.biller().bill()
    _exact((await cloud.get(BALANCE)).text, balance="1000.00")
    usage = await cloud.get(USAGE)
    # 1,400 / 2,419,200 * 2.00 = 0.0011574; till the end of June it is 1,328,000 s: 1.0978835
    _exact(usage.text, cost="0.001157", forecast="1.097883", hours="0.389", price_monthly="2.00")
    assert usage.json()["servers"] == [
        {
            "server": {"id": server_id, "name": "web"},
            "plan_id": 4,
            "price_monthly": 2.0,
            "hours": 0.389,
            "cost": 0.001157,
            "forecast": 1.097883,
            "bandwidth": {"used": 0.0, "included": 140.529, "cost": 0.0},  # 256 GB * 1,328,000 / 2,419,200
        }
    ]

    for hour in (16, 17, 18):
        await _at(cloud, 15, hour)
        await cloud.biller().bill()
        await cloud.biller().bill()  # twice is once
    # 3,200 s: 2645.50 micros; 6,800 s: 5621.69; 10,400 s: 8597.88. Parts of a micro are dropped.
    _exact((await cloud.get(BALANCE)).text, balance="999.991403", price_monthly="2.00")
    told = await cloud.get(TRANSACTIONS)
    assert re.findall(r'"amount":([^,]+),"balance":([^,]+),', told.text) == [
        ("-0.002976", "999.991403"),
        ("-0.002976", "999.994379"),
        ("-0.002645", "999.997355"),
        ("1000.00", "1000.00"),
    ]
    first = told.json()["results"][-2]
    assert {name: first[name] for name in first if name not in ("id", "uuid")} == {
        "kind": "usage",
        "amount": -0.002645,
        "balance": 999.997355,
        "description": "1 server, 2025-06-15T15:06:40Z to 2025-06-15T16:00:00Z",
        "reference": None,
        "created_at": "2025-06-15T16:00:00Z",
    }
    _exact((await cloud.get(USAGE)).text, cost="0.008597", forecast="1.097883", hours="2.889")


async def test_the_running_balance_goes_on_from_page_to_page(cloud: Cloud) -> None:
    async with cloud.writing("alice") as ctx:
        for number in range(1, 6):
            await credit.add_credit(ctx, -number * CREDIT // 10, "back", f"INV-{number}")
    first = (await cloud.get(f"{TRANSACTIONS}?page_size=4")).json()
    second = (await cloud.get(first["next"])).json()
    entries = [*first["results"], *second["results"]]
    assert [entry["reference"] for entry in entries] == ["INV-5", "INV-4", "INV-3", "INV-2", "INV-1", None]
    assert [entry["balance"] for entry in entries] == [998.5, 999.0, 999.4, 999.7, 999.9, 1000.0]
    assert (first["count"], second["count"]) == (6, 6)


async def test_amounts_are_written_in_full_never_as_floats(cloud: Cloud) -> None:
    async with cloud.database.write() as tx:
        await change(tx, plans, 4, price_monthly_micros=6_720)  # a hundred-thousandth an hour
    await cloud.have_balance(0)
    await cloud.have_balance(100_000)  # 0.1
    await cloud.have_balance(300_000)  # and 0.2
    _exact((await cloud.get(BALANCE)).text, balance="0.30")
    await cloud.have_server()
    for hour in (16, 17):
        await _at(cloud, 15, hour)
        await cloud.biller().bill()
    texts = [(await cloud.get(path)).text for path in (BALANCE, TRANSACTIONS, USAGE, "/api/v1/plans/4/")]
    _exact(texts[0], balance="0.299982", price_monthly="0.00672")
    _exact(texts[1], amount="-0.00001", balance="0.299982")
    _exact(texts[2], cost="0.000018")
    _exact(texts[3], price_monthly="0.00672", price_hourly="0.00")
    for text in texts:
        assert not re.search(r"[0-9][eE][+-]?[0-9]+[,}]", text)
        for amount in re.findall(r'"(?:amount|balance|cost|forecast|price_\w+)":([^,}]+)', text):
            assert re.fullmatch(r"-?\d+\.\d{2,6}", amount), amount


async def test_usage_is_told_month_by_month(cloud: Cloud) -> None:
    await cloud.have_server()
    await _at(cloud, 1, 12, month=7)
    june, july = await cloud.get(f"{USAGE}?month=2025-06"), await cloud.get(USAGE)
    assert [answer.json()["month"] for answer in (june, july)] == ["2025-06", "2025-07"]
    _exact(june.text, cost="1.097883", forecast="1.097883", hours="368.889")
    _exact(july.text, cost="0.035714", forecast="2.00", hours="12.0")  # 12 / 672 * 2.00; July is longer than a month
    may = await cloud.get(f"{USAGE}?month=2025-05")
    _exact(may.text, cost="0.00", forecast="0.00")
    assert may.json()["servers"] == []
    august = await cloud.get(f"{USAGE}?month=2025-08")
    _exact(august.text, cost="0.00", forecast="2.00")


async def test_a_deleted_server_stays_in_its_months_usage_at_what_it_cost(cloud: Cloud) -> None:
    server_id = await cloud.have_server("gone")
    await _at(cloud, 15, 16)
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server_id}/")).status_code == 204
    await cloud.settle()
    await _at(cloud, 20, 0)
    usage = await cloud.get(USAGE)
    _exact(usage.text, cost="0.002645", forecast="0.002645")
    assert usage.json()["servers"][0]["server"] == {"id": server_id, "name": "gone"}
    _exact((await cloud.get(BALANCE)).text, price_monthly="0.00")


async def test_transfer_beyond_the_plan_is_in_usage_before_it_is_charged(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    gigabytes = 1 << 30
    async with cloud.database.write() as tx:
        moved = {"received_bytes": 10 * gigabytes, "sent_bytes": 200 * gigabytes}
        await put(tx, traffic, server_id=server_id, month="2025-06", **moved)
    await _at(cloud, 15, 15, 30)
    usage = await cloud.get(USAGE)
    # 200 - 140.5291 = 59.4709 GB at 0.01, and 0.001157 for the time
    _exact(usage.text, cost="0.595865", forecast="1.692591", used="200.0", included="140.529")
    assert usage.json()["servers"][0]["bandwidth"]["cost"] == 0.594708


async def test_a_month_that_is_none_is_refused_by_name(cloud: Cloud) -> None:
    for month in ("2025-13", "2025-00", "25-06", "2025-6", "", "june", "2025-06-01", "2025-06%0A", "%D9%A2025-06"):
        answer = await cloud.get(f"{USAGE}?month={month}")
        assert (answer.status_code, answer.json()) == (400, {"month": ["Give a month like 2026-11."]}), month


async def test_the_first_and_the_last_month_that_can_be_asked_for(cloud: Cloud) -> None:
    await cloud.have_server()
    for month in ("2000-01", "2199-12"):
        answer = await cloud.get(f"{USAGE}?month={month}")
        assert (answer.status_code, answer.json()["month"]) == (200, month)


async def test_the_balance_says_until_when_it_lasts(cloud: Cloud) -> None:
    assert (await cloud.get(BALANCE)).json() == {
        "balance": 1000.0,
        "currency": "USD",
        "credit_limit": 0.0,
        "price_monthly": 0.0,
        "runs_out_at": None,  # nothing costs anything
        "exhausted_since": None,
        "suspends_at": None,
    }
    await cloud.have_server()
    await _at(cloud, 15, 16)
    await cloud.have_balance(1 * CREDIT)  # half a month of 672 hours: two weeks
    shown = (await cloud.get(BALANCE)).json()
    assert (shown["price_monthly"], shown["runs_out_at"]) == (2.0, "2025-06-29T16:00:00Z")
    async with cloud.writing("alice") as ctx:
        await accounts.set_limits(ctx, await cloud.account(), {LIMIT: 1 * CREDIT})
    shown = (await cloud.get(BALANCE)).json()
    assert (shown["credit_limit"], shown["runs_out_at"]) == (1.0, "2025-07-13T16:00:00Z")
    async with cloud.writing("alice") as ctx:
        await accounts.set_limits(ctx, await cloud.account(), {LIMIT: None})
    shown = (await cloud.get(BALANCE)).json()
    assert (shown["credit_limit"], shown["runs_out_at"]) == (None, None)


LIMIT = "credit_limit_micros"


async def test_an_exhausted_balance_says_since_when_and_what_comes(cloud: Cloud) -> None:
    await cloud.have_server()
    await cloud.have_balance(1)
    await _at(cloud, 15, 16)
    await cloud.biller().bill()
    shown = (await cloud.get(BALANCE)).json()
    assert {name: shown[name] for name in ("balance", "runs_out_at", "exhausted_since", "suspends_at")} == {
        "balance": -0.002644,
        "runs_out_at": None,
        "exhausted_since": "2025-06-15T16:00:00Z",
        "suspends_at": "2025-06-18T16:00:00Z",
    }
    await cloud.have_balance(5 * CREDIT)
    shown = (await cloud.get(BALANCE)).json()
    assert (shown["exhausted_since"], shown["suspends_at"]) == (None, None)


async def test_a_balance_that_lasts_for_ages_is_told_like_any_other(cloud: Cloud) -> None:
    await cloud.have_server()
    await cloud.have_balance(1_000_000 * CREDIT)  # at 2.00 a month beyond the year 9999
    answer = await cloud.get(BALANCE)
    assert answer.status_code == 200, answer.text
    _exact(answer.text, balance="1000000.00")


async def test_money_is_ones_own(cloud: Cloud) -> None:
    await cloud.have_server()
    await _at(cloud, 15, 18)
    await cloud.biller().bill()
    _exact((await cloud.get(BALANCE, who="charlie")).text, balance="1000.00", price_monthly="0.00")
    assert (await cloud.get(TRANSACTIONS, who="charlie")).json()["count"] == 1
    assert (await cloud.get(USAGE, who="charlie")).json()["servers"] == []


async def test_the_books_have_a_charge_for_every_hour(cloud: Cloud) -> None:
    await cloud.have_server()
    await _at(cloud, 15, 18)
    await cloud.biller().bill()
    made = await rows(cloud.database, charges.name)
    assert [charge["amount_micros"] for charge in made] == [2645, 2976, 2976]
    booked: list[Any] = [
        row["amount_micros"] for row in await rows(cloud.database, ledger.name) if row["account_id"] == 1
    ]
    assert booked == [1000 * CREDIT, -8597]
