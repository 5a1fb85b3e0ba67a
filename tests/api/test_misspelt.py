"""Nothing misspelt is carried out, and no list is longer or shorter than what was meant."""

import codecs
import json
from typing import Any

import pytest

from tests.api.tables import dump
from tests.api.test_access import IDS, ROUTES, body
from tests.api.test_cursors import found
from tests.cloud import TINY, Cloud
from tests.idempotency.posts import POSTS, ready

SERVERS = "/api/v1/servers/"
JSON = {"Content-Type": "application/json"}
STRICT = [route for route in ROUTES if route[1].startswith("/api/v1/")]
TAKES_NO_BODY = [route for route in STRICT if "requestBody" not in route[2]]


def filled(path: str) -> str:
    return path.format(**dict.fromkeys(IDS, 1))


def parameters(operation: dict[str, Any]) -> list[str]:
    return [found["name"] for found in operation.get("parameters", []) if found.get("in") == "query"]


async def test_no_route_takes_a_parameter_that_it_does_not_know(cloud: Cloud) -> None:
    await cloud.have_server()
    await cloud.may_everything()
    await cloud.get("/api/v1/account/me/")  # notes the use of the token
    before = await dump(cloud.database)
    for method, path, operation in STRICT:
        known = parameters(operation)
        for unknown in ("dryrun", "x", "Page", "limit"):
            answer = await cloud.ask(method, f"{filled(path)}?{unknown}=1", **body(operation))
            assert answer.status_code == 400, (method, path)
            assert set(answer.json()) == {unknown}
            message = answer.json()[unknown][0]
            assert message.startswith("Unknown parameter. ")
            assert all(name in message for name in known)
    assert await dump(cloud.database) == before


async def test_the_description_is_as_strict(cloud: Cloud) -> None:
    answer = await cloud.get("/api/v1/openapi.json?format=yaml", who=None)
    assert answer.json() == {"format": ["Unknown parameter. This request takes none."]}


async def test_monitoring_may_add_to_health_what_it_likes(cloud: Cloud) -> None:
    assert (await cloud.get("/health?cache=4711", who=None)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("GET", f"{SERVERS}?tags=web", "tag"),
        ("GET", f"{SERVERS}?Tag=web", "tag"),
        ("GET", f"{SERVERS}?state=active", "status"),
        ("GET", f"{SERVERS}?limit=5", "page_size"),
        ("GET", f"{SERVERS}?per_page=5", "page_size"),
        ("GET", f"{SERVERS}?page-size=5", "page_size"),
        ("GET", f"{SERVERS}?search=web", "q"),
        ("GET", f"{SERVERS}?order_by=name", "sort"),
        ("GET", f"{SERVERS}?regoin=x", None),
        ("GET", f"{SERVERS}?%00=x", None),
        ("GET", f"{SERVERS}?=x", None),
        ("POST", f"{SERVERS}1/stop/?dryrun=1", "dry_run"),
        ("POST", f"{SERVERS}1/rebuild/?dry-run=1", "dry_run"),
        ("POST", f"{SERVERS}1/stop/?DRY_RUN=1", "dry_run"),
        ("DELETE", f"{SERVERS}1/?Now=1", "now"),
        ("GET", "/api/v1/backups/?backuptype=manual", "backup_type"),
        ("GET", "/api/v1/account/usage/?months=2025-06", "month"),
    ],
)
async def test_the_nearest_known_name_is_told(cloud: Cloud, method: str, path: str, meant: str | None) -> None:
    answer = await cloud.ask(method, path)
    assert answer.status_code == 400
    ((message,),) = answer.json().values()
    assert (f"Did you mean {meant}?" in message) if meant else "Did you mean" not in message


async def test_a_parameter_that_comes_twice_is_refused_even_with_the_same_value(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    before = await dump(cloud.database)
    for method, path, named in (
        ("GET", f"{SERVERS}?tag=web&tag=db", "tag"),
        ("GET", f"{SERVERS}?page=1&page=1", "page"),
        ("POST", f"{SERVERS}{server_id}/stop/?dry_run=1&dry_run=0", "dry_run"),
        ("POST", f"{SERVERS}{server_id}/stop/?dry_run=0&dry%5Frun=0", "dry_run"),
        ("DELETE", f"{SERVERS}{server_id}/?now=0&now=1", "now"),
        ("GET", "/api/v1/account/usage/?month=2025-06&month=2025-06", "month"),
    ):
        answer = await cloud.ask(method, path)
        assert (answer.status_code, answer.json()) == (400, {named: ["It is there more than once. Send it once."]})
    several = await cloud.get(f"{SERVERS}?status=active&status=stopped")
    assert several.json() == {"status": ["It is there more than once. Send it once, with commas between its values."]}
    assert await dump(cloud.database) == before


async def test_everything_wrong_with_a_query_is_named_at_once_up_to_a_limit(cloud: Cloud) -> None:
    answer = await cloud.get(f"{SERVERS}?tags=x&page=0&status=gone&sort=size&q=&sort=name")
    assert set(answer.json()) == {"tags", "page", "status", "sort", "q"}
    many = await cloud.get(SERVERS, params={f"x{number}": "1" for number in range(1000)})
    assert (many.status_code, len(many.json())) == (400, 21)
    assert many.json()["more"] == ["980 more fields are wrong; they are not named here."]
    fields = await cloud.post(SERVERS, {"name": "web", **TINY, **{f"x{number}": 1 for number in range(5000)}})
    assert (fields.status_code, len(fields.json())) == (400, 21)


async def test_who_may_not_is_told_that_and_a_path_that_is_none_stays_one(cloud: Cloud) -> None:
    reader = await cloud.token("billing:read")
    for method, path, operation in STRICT:
        answer = await cloud.ask(method, f"{filled(path)}?x=1", who=None, **body(operation))
        assert answer.status_code == 401, path
    assert (await cloud.get(f"{SERVERS}?x=1", who=reader)).status_code == 403
    assert (await cloud.get("/api/v1/nothing/?x=1")).status_code == 404
    assert (await cloud.get(f"{SERVERS}nothing/?x=1")).status_code == 404
    assert (await cloud.ask("DELETE", f"{SERVERS}?x=1")).status_code == 405
    assert (await cloud.ask("HEAD", f"{SERVERS}?x=1")).status_code == 400


@pytest.mark.parametrize("query", ["tag", "name", "q", "status", "location", "sort", "cursor", "page", "page_size"])
async def test_a_filter_without_a_value_does_not_list_everything(cloud: Cloud, query: str) -> None:
    await cloud.create()
    for text in (query, f"{query}=", f"{query}=&"):
        answer = await cloud.get(f"{SERVERS}?{text}")
        assert (answer.status_code, set(answer.json())) == (400, {query})


async def test_a_body_where_none_is_taken_is_not_lost(cloud: Cloud) -> None:
    server_id = await cloud.create(tags=["web"])
    await cloud.work()
    await cloud.may_everything()
    await cloud.get("/api/v1/account/me/")  # notes the use of the token
    before = await dump(cloud.database)
    stop = f"{SERVERS}{server_id}/stop/"
    in_query = "Send it in the query, not in the body: ?{}=…"
    for method, path, sent, wrong in (
        ("POST", stop, {"dry_run": True}, {"dry_run": [in_query.format("dry_run")]}),
        ("DELETE", f"{SERVERS}{server_id}/", {"now": True}, {"now": [in_query.format("now")]}),
        ("GET", SERVERS, {"tag": "web"}, {"tag": [in_query.format("tag")]}),
        ("POST", stop, {"force": True}, {"force": ["Unknown field. This request takes none."]}),
        ("POST", stop, [], {"body": ["This request takes no body. Leave it out."]}),
        ("POST", stop, "text", {"body": ["This request takes no body. Leave it out."]}),
    ):
        answer = await cloud.ask(method, path, json=sent)
        assert (answer.status_code, answer.json()) == (400, wrong)
    for content, headers in (
        (b"dry_run=1", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"{", JSON),
        (b"\xef\xbb\xbf{}", JSON),
        (b"{}", {}),
        (b" " * 300_000, JSON),
    ):
        answer = await cloud.post(stop, content=content, headers=headers)
        assert (answer.status_code, answer.json()) == (400, {"body": ["This request takes no body. Leave it out."]})
    for method, path, _ in TAKES_NO_BODY:
        answer = await cloud.ask(method, filled(path), json={"x": 1})
        assert (answer.status_code, set(answer.json())) == (400, {"x"}), path
    assert await dump(cloud.database) == before


async def test_an_empty_body_says_nothing_and_is_taken(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    assert (await cloud.get(SERVERS, headers=JSON)).status_code == 200
    assert (await cloud.ask("GET", SERVERS, json={})).status_code == 200
    assert (await cloud.ask("GET", SERVERS, content=b" null", headers=JSON)).status_code == 200
    assert (await cloud.post(f"{SERVERS}{server_id}/stop/", content=b"", headers=JSON)).status_code == 200
    await cloud.work()
    key = {"Idempotency-Key": "one"}
    assert (await cloud.post(f"{SERVERS}{server_id}/start/", {}, headers=key)).status_code == 200


async def test_what_stands_in_the_wrong_place_is_told_the_right_one(cloud: Cloud) -> None:
    server_id = await cloud.create(protected=True)
    answer = await cloud.ask("PATCH", f"{SERVERS}{server_id}/?protected=false", json={"name": "web"})
    assert (answer.status_code, answer.json()) == (400, {"protected": ["Send it in the body, not in the query."]})
    answer = await cloud.post(SERVERS, {"name": "web", **TINY, "dry_run": True})
    assert answer.json() == {"dry_run": ["Send it in the query, not in the body: ?dry_run=…"]}
    answer = await cloud.ask("PATCH", f"{SERVERS}{server_id}/", json={"dry_run": True})
    assert answer.json() == {
        "dry_run": ["A dry run of this request is not possible. Leave dry_run out to carry it out."]
    }


async def test_a_misspelt_field_is_told_the_nearest_one(cloud: Cloud) -> None:
    answer = await cloud.post(SERVERS, {"name": "web", **TINY, "user-data": "x", "backup_enabled": True})
    assert "Did you mean user_data?" in answer.json()["user-data"][0]
    assert "Did you mean backups_enabled?" in answer.json()["backup_enabled"][0]


async def test_a_key_that_a_body_has_twice_is_refused_at_any_depth(cloud: Cloud) -> None:
    server_id = await cloud.create()
    before = await dump(cloud.database)
    once = '"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west"'
    for text, named in (
        (f'{{{once}, "name": "db"}}', {"name"}),
        (f'{{{once}, "name": "web"}}', {"name"}),
        (f'{{{once}, "n\\u0061me": "db"}}', {"name"}),
        (f'{{{once}, "plan_id": 3, "plan_id": 2, "os_id": 3}}', {"plan_id", "os_id"}),
        (f'{{{once}, "tags": [{{"a": 1, "a": 2}}]}}', {"a"}),
        (f'{{{once}, "x": {{"y": {{"z": 1, "z": 1}}}}}}', {"z"}),
        (f'[{{{once}}}, {{"b": 1, "b": 1}}]', {"b"}),
    ):
        answer = await cloud.post(SERVERS, content=text.encode(), headers={**JSON, "Idempotency-Key": "one"})
        assert answer.status_code == 400, text
        assert answer.json() == {name: ["It is there more than once. Send it once."] for name in named}
    patch = b'{"protected": true, "protected": false}'
    answer = await cloud.ask("PATCH", f"{SERVERS}{server_id}/", content=patch, headers=JSON)
    assert set(answer.json()) == {"protected"}
    assert await dump(cloud.database) == before
    fine = f'{{{once}, "tags": ["a", "b"]}}'
    done = await cloud.post(SERVERS, content=fine.encode(), headers={**JSON, "Idempotency-Key": "one"})
    assert done.status_code == 201


@pytest.mark.parametrize(
    "mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE]
)
async def test_a_byte_order_mark_is_called_that(cloud: Cloud, mark: bytes) -> None:
    answer = await cloud.post(SERVERS, content=mark + json.dumps({"name": "web", **TINY}).encode(), headers=JSON)
    assert answer.status_code == 400
    assert answer.json() == {
        "detail": "The body is not valid JSON: it begins with a byte-order mark; send it in UTF-8 without one.",
        "code": "bad_request",
    }


@pytest.mark.parametrize(
    ("charset", "status_code"),
    [
        ("charset=utf-8", 201), ("charset=UTF-8", 201), ('charset="utf-8"', 201), ("profile=x", 201), ("", 201),
        ("charset=latin-1", 415), ("charset=utf-16", 415), ("profile=x; charset=iso-8859-1", 415), ("charset=", 415),
    ],
)  # fmt: skip
async def test_a_body_in_another_charset_is_refused(cloud: Cloud, charset: str, status_code: int) -> None:
    headers = {"Content-Type": f"application/json; {charset}"}
    answer = await cloud.post(SERVERS, content=json.dumps({"name": "web", **TINY}).encode(), headers=headers)
    assert answer.status_code == status_code


@pytest.mark.parametrize("operation", POSTS)
async def test_no_post_is_carried_out_with_a_misspelt_idempotency_key(cloud: Cloud, operation: str) -> None:
    path, sent = await ready(cloud, operation)
    before = await dump(cloud.database)
    answer = await cloud.post(path, sent, headers={"Idempotence-Key": "one"})
    assert answer.status_code == 400
    assert answer.json() == {"idempotence-key": ["Unknown header. Did you mean Idempotency-Key?"]}
    assert await dump(cloud.database) == before


async def test_every_way_to_misspell_the_idempotency_key_is_noticed(cloud: Cloud) -> None:
    for name in (
        *("X-Idempotency-Key", "Idempotency_Key", "IdempotencyKey", "Idempotent-Key", "Idempotancy-Key"),
        *("Indempotency-Key", "Idempotency", "Idempotencykey", "Idem-potency-Key", "Itempotency-Key", "Idempotency-Id"),
    ):
        answer = await cloud.post(SERVERS, {"name": "web", **TINY}, headers={name: "one"})
        assert (answer.status_code, set(answer.json())) == (400, {name.lower()})
    assert (await cloud.get(SERVERS)).json()["count"] == 0


async def test_an_idempotency_key_or_a_token_that_comes_twice_is_refused(cloud: Cloud) -> None:
    token = cloud.tokens["alice"]
    good = [("Authorization", f"Bearer {token}"), *JSON.items(), ("X-API-Key", "x"), ("Sec-Session-Key-Id", "y")]
    text = json.dumps({"name": "web", **TINY}).encode()
    twice = await cloud.http.post(SERVERS, content=text, headers=[*good, *[("Idempotency-Key", "one")] * 2])
    assert (twice.status_code, twice.json()) == (
        400,
        {"Idempotency-Key": ["It is there more than once. Send it once."]},
    )
    two = await cloud.http.post(SERVERS, content=text, headers=[*good, good[0]])
    assert (two.status_code, two.json()["code"]) == (400, "bad_request")
    assert found([(await cloud.get(SERVERS)).json()]) == []
    assert (await cloud.http.post(SERVERS, content=text, headers=good)).status_code == 201


async def test_a_refused_parameter_uses_no_idempotency_key_up(cloud: Cloud) -> None:
    key = {"Idempotency-Key": "one"}
    sent = {"name": "web", **TINY}
    assert (await cloud.post(f"{SERVERS}?dryrun=1", sent, headers=key)).status_code == 400
    first = await cloud.post(SERVERS, sent, headers=key)
    assert first.status_code == 201
    assert (await cloud.post(f"{SERVERS}?dryrun=1", sent, headers=key)).status_code == 400
    assert (await cloud.post(SERVERS, sent, headers=key)).content == first.content


async def test_what_the_official_client_and_the_published_pages_ask_is_known(cloud: Cloud) -> None:
    await cloud.have_server()
    for path in (
        "servers/?page=1&page_size=20",
        "servers/?page=2&page_size=100",
        "servers/?status=active&location=us-west",
        "plans/?location=us-west",
        "backups/?server_id=1&backup_type=manual",
        "snapshots/?server_id=1",
        "locations/",
        "operating-systems/",
        "ssh-keys/",
    ):
        assert (await cloud.get(f"/api/v1/{path}", headers=JSON)).status_code == 200, path
