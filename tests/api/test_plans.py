"""Plans: what they are, what they cost, and where there is room for them."""

import re

from tests.cloud import Cloud
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog

PLANS = "/api/v1/plans/"
EVERYWHERE = ["us-west", "us-east", "eu-central"]


async def test_a_plan_has_these_fields_and_exact_prices(cloud: Cloud) -> None:
    answer = await cloud.get(f"{PLANS}3/")
    assert answer.text == (
        '{"id":3,"uuid":"' + answer.json()["uuid"] + '","name":"Starter VPS","slug":"starter","vcpus":1,"memory":2048,'
        '"storage":40,"bandwidth":1024,"price_monthly":5.00,"price_hourly":0.007,"available":true,'
        '"locations":["us-west","us-east","eu-central"],"description":"Perfect for small projects and testing"}'
    )
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", answer.json()["uuid"])


async def test_every_plans_prices_are_exact(cloud: Cloud) -> None:
    text = (await cloud.get(PLANS)).text
    assert re.findall(r'"slug":"(\w+)".*?"price_monthly":([^,]+),"price_hourly":([^,]+),', text) == [
        ("standard", "10.00", "0.015"),
        ("performance", "20.00", "0.03"),
        ("starter", "5.00", "0.007"),
        ("nano", "2.00", "0.003"),
    ]


async def test_the_list_and_the_detail_say_the_same(cloud: Cloud) -> None:
    listed = (await cloud.get(PLANS)).json()["results"]
    assert [plan["id"] for plan in listed] == [1, 2, 3, 4]
    assert [(await cloud.get(f"{PLANS}{plan['id']}/")).json() for plan in listed] == listed
    assert len({plan["uuid"] for plan in listed}) == 4
    assert all(plan["available"] and plan["locations"] == EVERYWHERE for plan in listed)


async def test_a_location_narrows_the_list_to_what_there_is_room_for(cloud: Cloud) -> None:
    for code in EVERYWHERE:
        assert (await cloud.get(f"{PLANS}?location={code}")).json()["count"] == 4
    await cloud.have_host(memory_mb=3000)
    assert [plan["id"] for plan in (await cloud.get(f"{PLANS}?location=us-west")).json()["results"]] == [3, 4]
    listed = (await cloud.get(PLANS)).json()["results"]
    assert [(plan["available"], plan["locations"]) for plan in listed] == [(False, [])] * 2 + [(True, EVERYWHERE)] * 2
    page = (await cloud.get(f"{PLANS}?location=us-west&page_size=1&page=1")).json()
    assert (page["count"], page["results"][0]["id"]) == (2, 3)
    assert page["next"] == "http://vpsd.test/api/v1/plans/?location=us-west&page_size=1&page=2"


async def test_a_location_that_there_is_not_is_refused_by_name(cloud: Cloud) -> None:
    for odd in ("mars", "", "US-WEST", "%00"):
        answer = await cloud.get(f"{PLANS}?location={odd}&page=0")
        assert answer.status_code == 400
        assert set(answer.json()) == {"location", "page"}
    message = "There is no location 'mars'. The locations are us-west, us-east, eu-central."
    assert (await cloud.get(f"{PLANS}?location=mars")).json() == {"location": [message]}


async def test_a_plan_that_there_is_not_is_404(cloud: Cloud) -> None:
    for odd in ("99", "0", "-1", "01", "starter", str(2**63), "9" * 400):
        answer = await cloud.get(f"{PLANS}{odd}/")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), odd


async def test_a_plan_that_is_no_longer_offered_is_off_the_list_and_still_told(cloud: Cloud, offered: Catalog) -> None:
    before = (await cloud.get(f"{PLANS}1/")).json()
    fewer = Catalog(offered.plans[1:], offered.operating_systems, offered.locations[1:])
    async with cloud.writing() as ctx:
        await catalog.apply(ctx, fewer)
    listed = (await cloud.get(PLANS)).json()["results"]
    assert [plan["id"] for plan in listed] == [2, 3, 4]
    assert listed[0]["locations"] == ["us-east", "eu-central"]
    assert (await cloud.get(f"{PLANS}1/")).json() == {**before, "available": False, "locations": []}
    assert (await cloud.get(f"{PLANS}?location=us-west")).json()["results"] == []
