"""How often one may ask: each token, each address, and whoever sends wrong tokens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.cloud import TINY, Cloud
from vpsd.core import limits
from vpsd.core.clock import FakeClock

ME = "/api/v1/account/me/"


class Caller:
    """Asks one vpsd from one address."""

    def __init__(self, cloud: Cloud, app: Any, address: str = "198.51.100.7") -> None:
        self._cloud = cloud
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(address, 4711)), base_url="http://vpsd.test"
        )

    async def ask(self, who: str | None = "alice", path: str = ME, method: str = "GET", **options: Any) -> Any:
        token = self._cloud.tokens.get(who or "", who)
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **options.pop("headers", {})}
        return await self._http.request(method, path, headers=headers, **options)

    async def times(self, number: int, who: str | None = "alice") -> list[int]:
        """The statuses of so many requests."""
        return [(await self.ask(who)).status_code for _ in range(number)]


async def test_every_answer_says_what_is_left(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(rate_limit=120, address_rate_limit=600))
    reader = await cloud.token("*:read")
    good = {"name": "web", **TINY}
    asked: list[tuple[str, str, dict[str, Any], int]] = [
        ("GET", "/api/v1/servers/", {}, 200),
        ("POST", "/api/v1/servers/", {"json": good}, 201),
        ("POST", "/api/v1/servers/", {"json": {}}, 400),
        ("POST", "/api/v1/servers/", {"content": b"{"}, 415),
        ("GET", "/api/v1/servers/4711/", {}, 404),
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/api/v1/servers/", {}, 405),
        ("GET", "/health", {}, 200),
        ("DELETE", "/api/v1/servers/1/", {}, 204),
    ]
    for number, (method, path, options, status_code) in enumerate(asked, 1):
        answer = await caller.ask("alice", path, method, **options)
        assert answer.status_code == status_code, answer.text
        assert answer.headers["RateLimit-Policy"] == '"token";q=120;w=60'
        assert answer.headers["RateLimit"] == f'"token";r={120 - number};t={-(-number // 2)}'
    refused = await caller.ask(reader, "/api/v1/servers/", "POST", json=good)
    assert (refused.status_code, refused.headers["RateLimit"]) == (403, '"token";r=119;t=1')
    # Without a right token the address is counted, whatever is asked for.
    for number, (nobody, path, status_code) in enumerate(
        (
            (None, ME, 401),
            ("vps_wrong", ME, 401),
            (None, "/health", 200),
            (None, "/nowhere", 404),
            (None, "/api/v1/openapi.json", 200),
            ("vps_wrong", "/health", 200),
            (None, "/health//", 400),
        ),
        1,
    ):
        answer = await caller.ask(nobody, path)
        assert answer.status_code == status_code
        assert answer.headers["RateLimit-Policy"] == '"address";q=600;w=60'
        assert answer.headers["RateLimit"].startswith(f'"address";r={600 - number};')


async def test_a_token_that_asks_too_often_is_told_when_to_come_back(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(rate_limit=4))
    assert await caller.times(4) == [200] * 4
    answer = await caller.ask()
    assert answer.status_code == 429
    assert answer.json() == {
        "detail": "This token has sent too many requests. Wait 15 seconds.",
        "code": "too_many_requests",
    }
    assert answer.headers["Retry-After"] == "15"
    assert answer.headers["RateLimit-Policy"] == '"token";q=4;w=60'
    assert answer.headers["RateLimit"] == '"token";r=0;t=60'
    cloud.clock.advance(14.999)
    assert await caller.times(2) == [429] * 2
    cloud.clock.advance(0.001)
    assert await caller.times(2) == [200, 429]
    cloud.clock.advance(60)
    assert await caller.times(5) == [200] * 4 + [429]


async def test_one_tokens_limit_is_not_anothers(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(rate_limit=2))
    second = await cloud.token("*:*")
    assert await caller.times(3) == [200, 200, 429]
    assert await caller.times(3, second) == [200, 200, 429]
    assert await caller.times(3, "charlie") == [200, 200, 429]
    elsewhere = Caller(cloud, cloud.app(rate_limit=2), "203.0.113.9")  # another process counts for itself
    assert await elsewhere.times(3) == [200, 200, 429]


async def test_a_token_cannot_escape_by_changing_its_address(cloud: Cloud) -> None:
    app = cloud.app(rate_limit=2)
    assert await Caller(cloud, app, "198.51.100.1").times(2) == [200, 200]
    assert await Caller(cloud, app, "198.51.100.2").times(1) == [429]


async def test_an_address_that_asks_too_often_waits_but_not_those_with_a_right_token(cloud: Cloud) -> None:
    app = cloud.app(address_rate_limit=3, login_failures=0)
    here, there = Caller(cloud, app, "198.51.100.1"), Caller(cloud, app, "198.51.100.2")
    assert [(await here.ask(who)).status_code for who in (None, "vps_wrong", None)] == [401, 401, 401]
    for nobody in (None, "vps_wrong"):
        for path in (ME, "/health", "/nowhere", "/health//"):
            answer = await here.ask(nobody, path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "20")
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.json() == {
                "detail": "This address has sent too many requests. Wait 20 seconds.",
                "code": "too_many_requests",
            }
    assert [(await here.ask(who)).status_code for who in ("alice", "charlie", "alice")] == [200] * 3
    assert (await here.ask("alice", "/health")).status_code == 200
    assert await there.times(1, None) == [401]
    cloud.clock.advance(20)
    assert await here.times(2, None) == [401, 429]


async def test_nothing_is_asked_of_the_database_for_an_address_that_has_to_wait(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(address_rate_limit=1))
    await caller.ask(None)
    await cloud.database.close()
    for path in (ME, "/health", "/nowhere"):
        answer = await caller.ask(None, path)
        assert answer.status_code == 429


async def test_a_token_does_not_count_for_its_address_while_the_database_is_away(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(address_rate_limit=1))
    await cloud.database.close()
    assert await caller.times(3) == [503] * 3
    assert await caller.times(2, None) == [401, 429]


async def test_whoever_guesses_tokens_has_to_wait(cloud: Cloud) -> None:
    app = cloud.app(login_failures=3)
    here, there = Caller(cloud, app, "198.51.100.1"), Caller(cloud, app, "198.51.100.2")
    assert [(await here.ask(token)).status_code for token in ("vps_1", None, "alice", "vps_3")] == [401, 401, 200, 401]
    for token in ("vps_4", "vps_5", None):
        answer = await here.ask(token)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "200")
        assert answer.json() == {
            "detail": "Too many wrong tokens came from this address. Wait 200 seconds.",
            "code": "too_many_requests",
        }
        assert "WWW-Authenticate" not in answer.headers  # it is not said whether that token was right
    assert await there.times(1, "vps_6") == [401]
    cloud.clock.advance(199.999)
    assert await here.times(1, "vps_7") == [429]
    cloud.clock.advance(0.001)
    assert await here.times(2, "vps_8") == [401, 429]


async def test_who_shares_an_address_with_somebody_who_guesses_is_not_shut_out(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(login_failures=1))
    assert await caller.times(2, "vps_wrong") == [401, 429]
    assert await caller.times(2) == [200, 200]


async def test_a_right_token_is_no_failure_nor_is_one_that_may_too_little(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(login_failures=1))
    reader = await cloud.token("billing:read")
    for _ in range(5):
        assert (await caller.ask(reader, "/api/v1/servers/")).status_code == 403
    assert await caller.times(5) == [200] * 5


@pytest.mark.parametrize("setting", ["rate_limit", "address_rate_limit", "login_failures"])
async def test_a_limit_of_0_is_none_and_says_nothing(cloud: Cloud, setting: str) -> None:
    others = {"rate_limit": 1, "address_rate_limit": 1, "login_failures": 1} | {setting: 0}
    everything_off = Caller(cloud, cloud.app(rate_limit=0, address_rate_limit=0, login_failures=0))
    assert await everything_off.times(20, "vps_wrong") == [401] * 20
    answers = [await everything_off.ask() for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("ratelimit" in name for answer in answers for name in answer.headers)
    caller = Caller(cloud, cloud.app(**others))
    assert ("RateLimit" in (await caller.ask()).headers) == (setting != "rate_limit")
    assert ("RateLimit" in (await caller.ask(None)).headers) == (setting != "address_rate_limit")


async def test_what_was_refused_has_no_effect(cloud: Cloud) -> None:
    caller = Caller(cloud, cloud.app(rate_limit=1))
    assert await caller.times(1) == [200]
    refused = await caller.ask("alice", "/api/v1/servers/", "POST", json={"name": "web", **TINY})
    assert refused.status_code == 429
    assert (await cloud.get("/api/v1/servers/")).json()["count"] == 0


async def test_an_address_has_only_so_many_requests_under_way_whoever_forwards_them(cloud: Cloud) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        await held.wait()
        yield b"{}"

    proxied = {"X-Forwarded-For": "198.51.100.7", "Content-Type": "application/json"}
    app = cloud.app(trusted_proxies="10.0.0.5", connections_per_address=2)
    caller = Caller(cloud, app, "10.0.0.5")
    slow = [caller.ask("alice", "/api/v1/servers/", "POST", content=body(), headers=proxied) for _ in range(2)]
    waiting = [asyncio.create_task(request) for request in slow]
    for _ in range(50):
        await asyncio.sleep(0)
    refused = await caller.ask("alice", headers=proxied)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert (await caller.ask("alice", headers={"X-Forwarded-For": "198.51.100.8"})).status_code == 200
    held.set()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [400, 400]
    assert (await caller.ask("alice", headers=proxied)).status_code == 200


async def test_who_asked_last_is_forgotten_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_KEYS", 3)
    limiter = limits.Limiter(FakeClock(), 1)
    for key in "abc":
        assert limiter.take(key).remaining == 0
    assert limiter.take("a").retry_seconds  # refused, which counts as asking
    assert limiter.take("d").remaining == 0
    assert [bool(limiter.look(key).retry_seconds) for key in "abcd"] == [True, False, True, True]
