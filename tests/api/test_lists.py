"""Lists: pages, filters, order."""

from typing import Any
from urllib.parse import urlsplit

from tests.cloud import Cloud
from vpsd.lifecycle import Status

LISTS = ["servers", "ssh-keys", "plans", "operating-systems", "locations", "servers/1/operations"]
LISTS += ["backups", "snapshots", "account/tokens", "account/events", "account/transactions"]


async def pages(cloud: Cloud, path: str) -> list[dict[str, Any]]:
    """Every page from this one on, by its own `next`."""
    found = []
    url: str | None = path
    while url is not None:
        answer = await cloud.get(url)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        assert len(found) < 100, "the walk does not end"
        url = found[-1]["next"]
    return found


async def test_servers_come_newest_last_page_by_page(cloud: Cloud) -> None:
    made = [await cloud.create(f"web-{number}") for number in range(5)]
    found = await pages(cloud, "/api/v1/servers/?page_size=2")
    assert [[entry["id"] for entry in page["results"]] for page in found] == [made[:2], made[2:4], made[4:]]
    assert [page["count"] for page in found] == [5, 5, 5]


async def test_who_asks_by_number_is_led_on_by_numbers_that_keep_the_filters(cloud: Cloud) -> None:
    for number in range(5):
        await cloud.create(f"web-{number}")
    path = "/api/v1/servers/?status=provisioning&page_size=2&location=us-west&page=2"
    page = (await cloud.get(path)).json()
    base = "http://vpsd.test/api/v1/servers/?status=provisioning&page_size=2&location=us-west"
    assert page["next"] == f"{base}&page=3"
    assert page["previous"] == f"{base}&page=1"
    last = (await cloud.get(page["next"])).json()
    assert last["next"] is None
    assert last["previous"] == f"{base}&page=2"
    assert urlsplit(page["next"]).path.endswith("/servers/")


async def test_every_list_has_pages(cloud: Cloud) -> None:
    await cloud.create()
    for noun in LISTS:
        answer = await cloud.get(f"/api/v1/{noun}/")
        assert answer.status_code == 200, noun
        assert list(answer.json()) == ["count", "next", "previous", "results"]
        assert len(answer.json()["results"]) == answer.json()["count"]
        assert answer.json()["next"] is None
        assert answer.json()["previous"] is None


async def test_every_wrong_number_is_named_at_once(cloud: Cloud) -> None:
    await cloud.create()
    for value in ["0", "-1", "abc", "", "1.5", "%00", "1 0", "9" * 5000, "null", "true"]:
        for noun in LISTS:
            answer = await cloud.get(f"/api/v1/{noun}/?page={value}&page_size={value}")
            assert answer.status_code == 400, (value, noun)
            assert set(answer.json()) == {"page", "page_size"}


async def test_a_page_beyond_the_last_is_empty_and_leads_back_to_the_last(cloud: Cloud) -> None:
    await cloud.create()
    for number in [2, 3, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**100]:
        for noun in LISTS:
            answer = await cloud.get(f"/api/v1/{noun}/?page={number}")
            assert answer.status_code == 200, (number, noun)
            found = answer.json()
            assert (found["results"], found["next"]) == ([], None)
            last = (await cloud.get(found["previous"])).json()
            assert (len(last["results"]), last["previous"]) == (last["count"], None)


async def test_a_page_holds_a_thousand_at_most_and_a_hundred_by_default(cloud: Cloud) -> None:
    answer = await cloud.get("/api/v1/servers/?page_size=1001")
    assert answer.json() == {"page_size": ["Give a whole number from 1 to 1000."]}
    assert (await cloud.get("/api/v1/servers/?page_size=1000")).status_code == 200
    for number in range(101):
        await cloud.create(f"web-{number}")
    page = (await cloud.get("/api/v1/servers/")).json()
    assert page["count"] == 101
    assert len(page["results"]) == 100


async def test_a_filter_that_is_none_lists_what_there_is(cloud: Cloud) -> None:
    answer = await cloud.get("/api/v1/servers/?status=aktiven&location=mars&page=0&page_size=9999")
    assert answer.status_code == 400
    wrong = answer.json()
    assert set(wrong) == {"status", "location", "page", "page_size"}
    assert all(status in wrong["status"][0] for status in Status)
    assert "us-west, us-east, eu-central" in wrong["location"][0]


async def test_a_status_is_one_of_the_statuses(cloud: Cloud) -> None:
    for value in [
        "",
        "null",
        "ACTIVE",
        "active,",
        ",",
        "active, stopped",
        "active;stopped",
        "active,%00",
        "%00",
        "%ff",
    ]:
        answer = await cloud.get(f"/api/v1/servers/?status={value}")
        assert answer.status_code == 400, value
        assert set(answer.json()) == {"status"}


async def test_a_location_is_one_of_the_locations(cloud: Cloud) -> None:
    for value in ["", "%00", "%ff", "US-WEST", "x" * 10_000]:
        answer = await cloud.get(f"/api/v1/servers/?location={value}")
        assert answer.status_code == 400, value
        assert set(answer.json()) == {"location"}


async def test_every_status_can_be_asked_for(cloud: Cloud) -> None:
    for status in list(Status):
        answer = await cloud.get(f"/api/v1/servers/?status={status}")
        assert answer.status_code == 200, status
        assert answer.json()["results"] == []


async def test_filters_narrow_and_combine(cloud: Cloud) -> None:
    west = await cloud.have_server("west")
    east = await cloud.create("east", location="us-east")
    asked = {
        "status=active": [west],
        "status=provisioning": [east],
        "location=us-east": [east],
        "location=us-west&status=active": [west],
        "location=us-west&status=provisioning": [],
        "location=eu-central": [],
        "status=active,provisioning": [west, east],
        "status=provisioning,provisioning,stopped": [east],
        "status=stopped,error": [],
        f"status={','.join(Status)}": [west, east],
        f"status={'active,' * 30}provisioning": [west, east],
    }
    for query, expected in asked.items():
        page = (await cloud.get(f"/api/v1/servers/?{query}")).json()
        assert [entry["id"] for entry in page["results"]] == expected, query
        assert page["count"] == len(expected)


async def test_the_catalogue_has_the_published_ids(cloud: Cloud) -> None:
    plans = {plan["id"]: plan for plan in (await cloud.get("/api/v1/plans/")).json()["results"]}
    assert [plans[1][key] for key in ("name", "vcpus", "memory", "storage", "bandwidth")] == [
        "Standard VPS", 2, 4096, 80, 2048,
    ]  # fmt: skip
    assert plans[2]["name"] == "Performance VPS"
    systems = {
        system["id"]: system["name"] for system in (await cloud.get("/api/v1/operating-systems/")).json()["results"]
    }
    assert (systems[3], systems[5]) == ("Debian 12", "Ubuntu 22.04 LTS")
    places = [place["code"] for place in (await cloud.get("/api/v1/locations/")).json()["results"]]
    assert places == ["us-west", "us-east", "eu-central"]


async def test_the_catalogue_has_pages_too(cloud: Cloud) -> None:
    assert [len(page["results"]) for page in await pages(cloud, "/api/v1/plans/?page_size=3")] == [3, 1]
