"""Web pages of other origins may use the API only if a setting names them; those see every answer, errors too."""

from typing import Any

import httpx
import pytest

from tests.api.tables import lose_table
from tests.cloud import TINY, Cloud

SERVERS = "/api/v1/servers/"
PANEL, OTHER, EVIL = "https://panel.example.com", "http://localhost:3000", "https://evil.example"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, idempotency-key"}


def browser(cloud: Cloud, origin: str = PANEL, **settings: Any) -> httpx.AsyncClient:
    """A client that sends what a page of that origin would."""
    transport = httpx.ASGITransport(cloud.app(**{"cors_origins": f"{PANEL}, {OTHER}", **settings}))
    return httpx.AsyncClient(transport=transport, base_url="http://vpsd.test", headers={"Origin": origin})


def of_cors(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith(("access-control", "vary"))}


async def test_it_is_off_by_default(cloud: Cloud) -> None:
    client = browser(cloud, cors_origins="")
    for method, headers in (("GET", {}), ("OPTIONS", ASKED)):
        answer = await client.request(method, SERVERS, headers=headers)
        assert of_cors(answer) == {}
    assert answer.headers["Allow"]  # an OPTIONS is answered as ever


@pytest.mark.parametrize("origin", [PANEL, OTHER])
async def test_a_preflight_is_answered_without_a_token(cloud: Cloud, origin: str) -> None:
    for path in (SERVERS, f"{SERVERS}1/", f"{SERVERS}1/stop/", "/api/v1/openapi.json", "/health", "/nowhere"):
        answer = await browser(cloud, origin).request("OPTIONS", path, headers=ASKED)
        assert (answer.status_code, answer.content) == (204, b"")
        assert of_cors(answer) == {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
            "access-control-allow-headers": "Authorization, Content-Type, Idempotency-Key, X-Request-ID",
            "access-control-expose-headers": "RateLimit, RateLimit-Policy, Retry-After, X-Operation-ID, X-Request-ID",
            "access-control-max-age": "600",
            "vary": "Origin",
        }
        assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "origin",
    [
        EVIL,
        "null",
        "",
        f"{PANEL}.evil.example",
        f"{PANEL}:444",
        PANEL.upper(),
        "http://panel.example.com",
        f"{PANEL}/",
        "é",
    ],
)
async def test_pages_of_other_origins_may_nothing(cloud: Cloud, origin: str) -> None:
    headers = {"Origin": origin.encode(), "Authorization": f"Bearer {cloud.tokens['alice']}".encode()}
    client = browser(cloud)
    answer = await client.get(SERVERS, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, of_cors(answer)) == (200, {"vary": "Origin"})
    preflight = await client.request("OPTIONS", SERVERS, headers={**ASKED, "Origin": EVIL})
    assert of_cors(preflight) == {"vary": "Origin"}


async def test_every_answer_can_be_read_by_the_page_errors_too(cloud: Cloud) -> None:
    client = browser(cloud, rate_limit=7)
    client.headers["Authorization"] = f"Bearer {cloud.tokens['alice']}"
    asked: list[tuple[str, str, dict[str, Any], int]] = [
        ("POST", SERVERS, {"json": {"name": "web", **TINY}}, 201),
        ("POST", SERVERS, {"json": {}}, 400),
        ("GET", f"{SERVERS}99/", {}, 404),
        ("GET", "/nowhere", {}, 404),
        ("PUT", SERVERS, {}, 405),
        ("GET", SERVERS, {"headers": {"Authorization": "Bearer vps_wrong"}}, 401),
        ("DELETE", f"{SERVERS}1/", {}, 204),
        ("POST", SERVERS, {"content": b"x"}, 415),
        ("GET", SERVERS, {}, 429),
    ]
    for method, path, options, status_code in asked:
        answer = await client.request(method, path, **options)
        assert answer.status_code == status_code, (method, path, answer.text)
        assert answer.headers.get_list("Access-Control-Allow-Origin") == [PANEL]
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        assert "access-control-allow-credentials" not in answer.headers
    busy = browser(cloud, address_rate_limit=1)
    answers = [await busy.get("/health") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    await lose_table(cloud.database, "installation")
    broken = await browser(cloud).get("/health")
    assert broken.status_code == 500
    assert {answer.headers["Access-Control-Allow-Origin"] for answer in [*answers, broken]} == {PANEL}


async def test_a_star_is_every_origin(cloud: Cloud) -> None:
    for origin in (PANEL, EVIL, "null"):
        client = browser(cloud, origin, cors_origins="*")
        answer = await client.get(SERVERS)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (401, "*")
        assert "vary" not in answer.headers
        assert (await client.request("OPTIONS", SERVERS, headers=ASKED)).status_code == 204


async def test_who_is_no_browser_notices_nothing(cloud: Cloud) -> None:
    client = browser(cloud)
    del client.headers["Origin"]
    assert of_cors(await client.get("/health")) == {"vary": "Origin"}  # for the caches in between
    assert (await client.request("OPTIONS", SERVERS)).headers["Allow"]
