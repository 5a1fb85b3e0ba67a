"""The outermost layer: every answer has the id of its request, and a sane one of the sender's is kept."""

from typing import Any

from tests.api.tables import lose_table
from tests.api.test_limits import Caller
from tests.cloud import TINY, Cloud
from vpsd.core.ids import Ids

SERVERS = "/api/v1/servers/"


def _id(answer: Any) -> str:
    """The one id of an answer."""
    (found,) = answer.headers.get_list("X-Request-ID")
    return str(found)


async def test_every_answer_has_an_id_of_its_own_errors_too(cloud: Cloud) -> None:
    too_often = Caller(cloud, cloud.app(rate_limit=1))
    await too_often.ask()
    answers = [
        (200, await cloud.get("/health", who=None)),
        (200, await cloud.get("/api/v1/openapi.json", who=None)),
        (200, await cloud.get(SERVERS)),
        (200, await cloud.ask("HEAD", SERVERS)),
        (201, await cloud.post(SERVERS, {"name": "web", **TINY})),
        (204, await cloud.ask("DELETE", f"{SERVERS}1/")),
        (400, await cloud.post(SERVERS, {})),
        (400, await cloud.post(SERVERS, content=b"{", headers={"Content-Type": "application/json"})),
        (401, await cloud.get(SERVERS, who=None)),
        (403, await cloud.get(SERVERS, who=await cloud.token("billing:read"))),
        (404, await cloud.get(f"{SERVERS}99/")),
        (404, await cloud.get("/nowhere")),
        (405, await cloud.ask("DELETE", SERVERS)),
        (413, await cloud.post(SERVERS, {"name": "x" * 300_000})),
        (415, await cloud.post(SERVERS, content=b"{}")),
        (429, await too_often.ask()),
    ]
    assert [answer.status_code for _, answer in answers] == [status_code for status_code, _ in answers]
    ids = [_id(answer) for _, answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(len(request_id) == len(Ids().uuid()) for request_id in ids)
    await lose_table(cloud.database)
    broken = await cloud.get(SERVERS)
    assert (broken.status_code, len(_id(broken))) == (500, 36)


async def test_a_sane_id_of_the_senders_is_kept(cloud: Cloud) -> None:
    for sane in ("a", "0", "4f1d7c1e-5a2b-4c3d-8e9f-0a1b2c3d4e5f", "Trace.1_2-3", "x" * 64):
        for path in (SERVERS, "/nowhere", "/health"):
            assert _id(await cloud.get(path, headers={"X-Request-ID": sane})) == sane


async def test_an_id_that_should_not_stand_in_a_log_is_replaced(cloud: Cloud) -> None:
    for odd in (
        b"",
        b" ",
        b"a b",
        b"a\nb",
        b"a\n",
        b"a\r\nSet-Cookie: x",
        b"x" * 65,
        b"a;b",
        b"\xc3\xa9",
        b"\x1b[2J",
        b"a\0",
    ):
        answer = await cloud.get(SERVERS, headers={"X-Request-ID": odd})
        assert answer.status_code == 200
        assert len(_id(answer)) == 36, odd
        assert odd.decode("latin-1") not in (_id(answer), *answer.headers.values())


async def test_the_id_of_a_request_is_found_in_its_event(cloud: Cloud) -> None:
    kept = await cloud.post(SERVERS, {"name": "web", **TINY}, headers={"X-Request-ID": "mine"})
    made = await cloud.post(SERVERS, {"name": "web", **TINY}, headers={"X-Request-ID": "not mine"})
    events = (await cloud.get("/api/v1/account/events/")).json()["results"]
    assert [event["request_id"] for event in events[:2]] == [_id(made), "mine"]
    assert _id(kept) == "mine"


async def test_what_is_answered_to_a_token_is_kept_by_no_proxy_and_no_browser(cloud: Cloud) -> None:
    order, key = {"name": "web", **TINY}, {"Idempotency-Key": "one"}
    answers = [await cloud.post(SERVERS, order, headers=key) for _ in range(2)]  # the second is a kept one
    answers += [await cloud.get(path) for path in (SERVERS, f"{SERVERS}4711/", "/api/v1/account/tokens/")]
    answers += [await cloud.post(SERVERS, {}), await cloud.ask("HEAD", SERVERS)]
    assert [answer.status_code for answer in answers] == [201, 201, 200, 404, 200, 400, 200]
    assert {answer.headers.get("Cache-Control") for answer in answers} == {"no-store"}
    assert "Cache-Control" not in (await cloud.get("/health", who=None)).headers
