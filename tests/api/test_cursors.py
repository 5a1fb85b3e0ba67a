"""A walk through a list by its cursors: whatever comes and goes meanwhile, each entry once, and an end."""

import base64
import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.api.test_access import PUBLIC_KEY
from tests.api.test_lists import LISTS, pages
from tests.cloud import Cloud
from vpsd.lifecycle import Status
from vpsd.servers.listing import SORTS

SERVERS = "/api/v1/servers/"
NAMES = ["b", "A", "web-10", "c", "B", "web-2", "a"]


def cursor_of(page: dict[str, Any]) -> str:
    """The cursor of a page's `next`."""
    return dict(parse_qsl(urlsplit(str(page["next"])).query))["cursor"]


def forged(cursor: str, *place: Any) -> str:
    """A cursor of the same list with another place."""
    asked = json.loads(base64.urlsafe_b64decode(cursor + "=="))[0]
    return base64.urlsafe_b64encode(json.dumps([asked, *place]).encode()).decode().rstrip("=")


async def have_servers(cloud: Cloud) -> None:
    """Some whose names, places and statuses are partly alike."""
    for number, name in enumerate(NAMES):
        location = ("us-west", "us-east")[number % 2]
        await cloud.create(name, location=location, hostname=f"{name}.example.com", tags=[f"n:{number}"])
        cloud.clock.advance(number % 3)
    await cloud.force_status(2, Status.STOPPED)
    await cloud.force_status(5, Status.ERROR)


def found(listed: list[dict[str, Any]]) -> list[int]:
    return [entry["id"] for page in listed for entry in page["results"]]


async def test_a_walk_that_deletes_as_it_goes_sees_each_once_and_ends(cloud: Cloud) -> None:
    made = [await cloud.create(f"web-{number}") for number in range(7)]
    await cloud.work()
    seen: list[int] = []
    url: str | None = f"{SERVERS}?page_size=2&status=active,stopped"
    while url is not None:
        page = (await cloud.get(url)).json()
        assert page["previous"] is None
        for server in page["results"]:
            seen.append(server["id"])
            assert (await cloud.ask("DELETE", f"{SERVERS}{server['id']}/")).status_code == 204
        await cloud.work()
        url = page["next"]
    assert seen == made
    assert (await cloud.get(SERVERS)).json()["count"] == 0


async def test_when_what_was_left_is_gone_the_walk_ends_with_an_empty_page(cloud: Cloud) -> None:
    for number in range(3):
        await cloud.create(f"web-{number}")
    page = (await cloud.get(f"{SERVERS}?page_size=2")).json()
    for server_id in (2, 3):
        await cloud.ask("DELETE", f"{SERVERS}{server_id}/")
    await cloud.work()
    last = await cloud.get(page["next"])
    assert last.status_code == 200
    assert last.json() == {"count": 1, "next": None, "previous": None, "results": []}


async def test_what_comes_meanwhile_before_the_place_is_not_seen_and_moves_nothing(cloud: Cloud) -> None:
    events = "/api/v1/account/events/"
    for number in range(5):
        await cloud.create(f"web-{number}")
    before = found(await pages(cloud, events))
    first = (await cloud.get(f"{events}?page_size=2")).json()
    await cloud.create("late")  # newest first: it stands on the first page now
    assert found([first, *await pages(cloud, first["next"])]) == before


@pytest.mark.parametrize("sort", [*SORTS, *(f"-{field}" for field in SORTS)])
async def test_every_order_is_walked_whole_and_ends_where_it_should(cloud: Cloud, sort: str) -> None:
    await have_servers(cloud)
    whole = (await cloud.get(f"{SERVERS}?sort={sort}")).json()["results"]
    field = sort.removeprefix("-")

    def key(server: dict[str, Any]) -> tuple[Any, int]:
        value = server[field]
        return value.lower() if isinstance(value, str) else value, server["id"]

    assert whole == sorted(whole, key=key, reverse=sort.startswith("-"))
    assert len(whole) == len(NAMES)
    for size in (1, 2, 3):
        listed = await pages(cloud, f"{SERVERS}?sort={sort}&page_size={size}")
        assert found(listed) == [server["id"] for server in whole]
        assert [page["count"] for page in listed] == [len(NAMES)] * len(listed)
        assert len(listed) == -(-len(NAMES) // size)
    by_number = (await cloud.get(f"{SERVERS}?sort={sort}&page_size=3&page=2")).json()
    assert by_number["results"] == whole[3:6]


async def test_every_list_can_be_walked(cloud: Cloud) -> None:
    await cloud.have_server()
    for what in ("backup", "snapshot"):
        for _ in range(2):
            await cloud.have_copy(1, what)
    for number in range(3):
        await cloud.token("servers:read", who="alice" if number else "charlie")
        await cloud.post("/api/v1/ssh-keys/", {"name": f"key {number}", "public_key": PUBLIC_KEY})
    for noun in LISTS:
        whole = (await cloud.get(f"/api/v1/{noun}/")).json()["results"]
        listed = await pages(cloud, f"/api/v1/{noun}/?page_size=1")
        assert [entry for page in listed for entry in page["results"]] == whole, noun
        assert len(listed) == max(1, len(whole)), noun
        assert all(page["previous"] is None for page in listed)


async def test_a_cursor_takes_another_page_size(cloud: Cloud) -> None:
    await have_servers(cloud)
    cursor = cursor_of((await cloud.get(f"{SERVERS}?page_size=2")).json())
    page = (await cloud.get(f"{SERVERS}?page_size=4&cursor={cursor}")).json()
    assert found([page]) == [3, 4, 5, 6]


async def test_a_cursor_and_a_number_together_are_refused(cloud: Cloud) -> None:
    await have_servers(cloud)
    cursor = cursor_of((await cloud.get(f"{SERVERS}?page_size=2")).json())
    for more in (f"cursor={cursor}&page=1", f"page=2&cursor={cursor}"):
        answer = await cloud.get(f"{SERVERS}?page_size=2&{more}")
        assert (answer.status_code, answer.json()) == (400, {"cursor": ["Send cursor or page, not both."]})


async def test_a_cursor_of_another_list_other_filters_or_another_order_is_refused(cloud: Cloud) -> None:
    await have_servers(cloud)
    cursor = cursor_of((await cloud.get(f"{SERVERS}?page_size=1&location=us-west&sort=name")).json())
    good = f"{SERVERS}?cursor={cursor}&sort=name&location=us-west"  # in whatever order
    assert (await cloud.get(good)).status_code == 200
    for other in (
        f"{SERVERS}?cursor={cursor}",
        f"{SERVERS}?cursor={cursor}&location=us-west",
        f"{SERVERS}?cursor={cursor}&sort=name",
        f"{SERVERS}?cursor={cursor}&location=us-east&sort=name",
        f"{SERVERS}?cursor={cursor}&location=us-west&sort=-name",
        f"{SERVERS}?cursor={cursor}&location=us-west&sort=name&status=active",
        f"{SERVERS}1/operations/?cursor={cursor}",
        f"/api/v1/plans/?cursor={cursor}&location=us-west",
    ):
        answer = await cloud.get(other)
        assert answer.status_code == 400, other
        assert answer.json()["cursor"] == [
            "This is no cursor of this list with these filters in this order. Send the one of next as it came; leave "
            "cursor out to begin anew."
        ]


async def test_nonsense_for_a_cursor_is_refused_by_name(cloud: Cloud) -> None:
    await have_servers(cloud)
    good = {sort: cursor_of((await cloud.get(f"{SERVERS}?page_size=1&sort={sort}")).json()) for sort in SORTS}
    for sort, cursor in good.items():
        kinds: list[Any] = [None, 5, "text", 2**63, -(2**64), 10**30, 1.5, True, [], {}, "a\0b"]
        wrong = [
            forged(cursor, 1, kind) for kind in kinds if (sort, type(kind)) not in _RIGHT or kind in ("a\0b", 2**63)
        ]
        wrong += [forged(cursor, number, None) for number in (0, -1, 2**63, 10**30, "1", None, True, 1.5)]
        wrong += [forged(cursor), forged(cursor, 1, None, 1), cursor[:-3], cursor + "AAAA", cursor.swapcase()]
        wrong += ["", "%00", "%ff", "é", "=", "====", "nonsense", "W10", "bnVsbA", "A" * 2000, "A" * 2001, "x" * 60_000]
        for value in wrong:
            answer = await cloud.get(f"{SERVERS}?sort={sort}&cursor={value}")
            assert answer.status_code == 400, (sort, value, answer.text)
            assert set(answer.json()) == {"cursor"}


_RIGHT = {("id", type(None)), *((sort, str) for sort in ("name", "hostname", "status", "location"))}
_RIGHT |= {("created_at", int), ("updated_at", int)}


async def test_a_cursor_is_of_its_account_alone_whoever_sends_it(cloud: Cloud) -> None:
    await have_servers(cloud)
    mine = await cloud.create("mine", who="charlie")
    cursor = cursor_of((await cloud.get(f"{SERVERS}?page_size=1")).json())
    assert found([(await cloud.get(f"{SERVERS}?cursor={cursor}", who="charlie")).json()]) == [mine]


async def test_an_order_that_is_none_is_refused(cloud: Cloud) -> None:
    for sort in ("", "-", "--name", "Name", "size", "name,id", "id-", "name ", "%00", "plan_id", "account_id"):
        answer = await cloud.get(f"{SERVERS}?sort={sort}")
        assert answer.status_code == 400, sort
        assert set(answer.json()) == {"sort"}


async def test_names_are_ordered_alike_whatever_their_case(cloud: Cloud) -> None:
    await have_servers(cloud)
    listed = (await cloud.get(f"{SERVERS}?sort=name")).json()["results"]
    assert [server["name"] for server in listed] == ["A", "a", "b", "B", "c", "web-10", "web-2"]


async def test_q_looks_in_name_hostname_address_and_tags_whatever_the_case(cloud: Cloud) -> None:
    web = await cloud.create("Web-1", hostname="one.example.com", tags=["env:prod", "blue"])
    db = await cloud.create("db_2".replace("_", "-"), hostname="DB.example.ORG", tags=["env:test", "web_x"])
    await cloud.create("web-of-charlie", who="charlie")
    await cloud.work()
    address = (await cloud.get(f"{SERVERS}{db}/")).json()["ip_address"]
    asked = {
        "WEB": [web, db],  # a name, a tag
        "web-": [web],
        "web_": [db],  # not any character
        "EXAMPLE.org": [db],
        "example.": [web, db],
        "PROD": [web],
        "env:": [web, db],
        "v:te": [db],
        address: [db],
        "127.": [web, db],
        "%25": [],
        "_": [db],
        "\\": [],
        "%5C%25": [],
        '"': [],
        "%22,%22": [],  # of the list that holds the tags, not of a tag
        "[": [],
        "e b": [],
        "nothing": [],
        "é": [],
    }
    for text, expected in asked.items():
        page = (await cloud.get(f"{SERVERS}?q={text}")).json()
        assert (found([page]), page["count"]) == (expected, len(expected)), text
    assert found(await pages(cloud, f"{SERVERS}?q=example&sort=-name&page_size=1")) == [web, db]
    assert found([(await cloud.get(f"{SERVERS}?q=web&status=active&tag=blue")).json()]) == [web]
    for text in ("", "%00", "x" * 254):
        assert set((await cloud.get(f"{SERVERS}?q={text}")).json()) == {"q"}
