"""Every wrong way of asking has its 4xx, and none is a 500."""

import json
from typing import Any

import pytest

from tests.api.tables import lose_table
from tests.cloud import TINY, Cloud

SERVERS = "/api/v1/servers/"
GOOD = {"name": "web", **TINY}
HUGE = [2**63 - 1, 2**63, 2**64, 10**100]


async def test_without_a_valid_token_everything_is_401(cloud: Cloud) -> None:
    for authorization in [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer vps_wrong",
        "Basic YWxpY2U6c2VjcmV0",
        "vps_wrong",
        "Bearer \x00",
        "Bearer é",
    ]:
        headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
        answer = await cloud.http.get(SERVERS, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, authorization
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="vpsd"'
        assert answer.json()["code"] == "unauthenticated"


async def test_the_scheme_may_be_written_in_any_case(cloud: Cloud) -> None:
    answer = await cloud.http.get(SERVERS, headers={"Authorization": f"bearer {cloud.tokens['alice']}"})
    assert answer.status_code == 200


async def test_a_stranger_without_a_token_is_not_told_what_is_wrong_with_the_body(cloud: Cloud) -> None:
    assert (await cloud.post(SERVERS, content=b"{", who=None)).status_code == 401


async def test_what_is_no_json_is_400(cloud: Cloud) -> None:
    for body in [
        b"{",
        b'{"name": }',
        b"nonsense",
        b"NaN",
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"plan_id": 1e999}',
        b'{"plan_id": ' + b"9" * 5000 + b"}",
    ]:
        answer = await cloud.post(SERVERS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body
        assert answer.json()["code"] == "bad_request"
        assert answer.json()["detail"].startswith("The body is not valid JSON")


async def test_json_that_is_no_object_is_400(cloud: Cloud) -> None:
    for body in [b"[]", b'"text"', b"null", b"1", b"true", b"[{}]", b""]:
        answer = await cloud.post(SERVERS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body
        assert answer.json() == {"body": ["Send a JSON object."]}


async def test_another_content_type_is_415(cloud: Cloud) -> None:
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
        "application/jsonx",
    ]:
        answer = await cloud.post(SERVERS, content=b"{}", headers={"Content-Type": content_type})
        assert answer.status_code == 415, content_type
        assert answer.json()["code"] == "unsupported_media_type"
        assert "application/json" in answer.json()["detail"]


async def test_json_may_name_its_charset(cloud: Cloud) -> None:
    answer = await cloud.post(SERVERS, content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert set(answer.json()) == {"name", "plan_id", "os_id", "location"}


async def test_too_large_a_body_is_413(cloud: Cloud) -> None:
    answer = await cloud.post(SERVERS, {"name": "x" * 300_000})
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_changes_refuse_what_create_refuses(cloud: Cloud, method: str) -> None:
    path = f"{SERVERS}{await cloud.create()}/"
    json_type = {"Content-Type": "application/json"}
    assert (await cloud.ask(method, path, content=b"{", headers=json_type)).status_code == 400
    assert (await cloud.ask(method, path, content=b"", headers=json_type)).status_code == 400
    assert (await cloud.ask(method, path, content=b"[]", headers=json_type)).status_code == 400
    assert (await cloud.ask(method, path, content=b"{}", headers={"Content-Type": "text/json"})).status_code == 415
    assert (await cloud.ask(method, path, content=b"1" * 300_000, headers=json_type)).status_code == 413


async def test_a_field_of_the_wrong_type_is_named(cloud: Cloud) -> None:
    cases: list[tuple[str, Any, str]] = [
        ("name", 5, "Expected a string, got a whole number."),
        ("name", None, "Expected a string, got null."),
        ("plan_id", "1", "Expected a whole number, got a string."),
        ("plan_id", True, "Expected a whole number, got true or false."),
        ("plan_id", 1.5, "Expected a whole number, got a number."),
        ("plan_id", 1e300, "Give an id from /api/v1/plans/."),
        ("plan_id", [], "Expected a whole number, got an array."),
        ("plan_id", 0, "Give an id from /api/v1/plans/."),
        ("os_id", -1, "Give an id from /api/v1/operating-systems/."),
        ("location", {}, "Expected a string, got an object."),
        ("location", "us\0west", "NUL characters are not allowed."),
        ("backups_enabled", 1, "Expected true or false, got a whole number."),
        ("backups_enabled", "true", "Expected true or false, got a string."),
        ("backups_enabled", None, "Expected true or false, got null."),
        ("ssh_key_id", "7", "Expected a whole number or null, got a string."),
        ("hostname", 1, "Expected a string or null, got a whole number."),
    ]
    for field, value, message in cases:
        answer = await cloud.post(SERVERS, {**GOOD, field: value})
        assert answer.status_code == 400, (field, value)
        assert answer.json() == {field: [message]}


async def test_a_number_without_a_fraction_is_whole_however_it_is_written(cloud: Cloud) -> None:
    body = b'{"name": "web", "plan_id": 4.0, "os_id": 1e0, "ssh_key_id": null, "location": "us-west"}'
    answer = await cloud.ask("POST", SERVERS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["plan"]["id"], answer.json()["os"]["id"]) == (4, 1)


async def test_a_name_that_breaks_the_rules_is_told_them(cloud: Cloud) -> None:
    names = ["", "-web", "web-", "web_1", "web.", ".web", "a..b", "a" * 64, LONGEST + "a", "wéb", "web "]
    for name in [*names, "web\n", "-", "we b", "web\0"]:
        answer = await cloud.post(SERVERS, {**GOOD, "name": name})
        assert answer.status_code == 400, name
        assert set(answer.json()) == {"name"}
        if "\0" not in name:
            assert answer.json()["name"][0].startswith("A name is labels of letters, digits and hyphens joined by dots")


async def test_a_name_by_the_rules_is_taken_and_is_the_hostname(cloud: Cloud) -> None:
    for name in ["a", "7", "A-b-9", "a--b", "a" * 63, "web.example.com", LONGEST]:
        answer = await cloud.post(SERVERS, {**GOOD, "name": name})
        assert answer.status_code == 201, answer.text
        assert answer.json()["hostname"] == name


LONGEST = ".".join(["a" * 63] * 3 + ["a" * 61])


async def test_a_hostname_by_the_rules_is_taken(cloud: Cloud) -> None:
    for hostname in ["web01.example.com", "a.b", "3com.example", LONGEST]:
        answer = await cloud.post(SERVERS, {**GOOD, "hostname": hostname})
        assert answer.status_code == 201, answer.text
        assert answer.json()["hostname"] == hostname


async def test_a_hostname_that_breaks_the_rules_is_told_them(cloud: Cloud) -> None:
    for hostname in [
        "",
        ".",
        "a..b",
        "a.",
        ".a",
        "-a.b",
        "a-.b",
        "a_b.c",
        "a" * 64,
        LONGEST + "a",
        "a.b\n",
        "ä.example",
    ]:
        answer = await cloud.post(SERVERS, {**GOOD, "hostname": hostname})
        assert answer.status_code == 400, hostname
        assert "RFC 1123" in answer.json()["hostname"][0]


async def test_everything_that_is_wrong_is_named_at_once(cloud: Cloud) -> None:
    answer = await cloud.post(
        SERVERS, {"name": "-", "plan_id": 99, "location": "mars", "ssh_key_id": 5, "hostname": "-", "size": 3}
    )
    assert answer.status_code == 400
    wrong = answer.json()
    assert set(wrong) == {"name", "plan_id", "os_id", "location", "ssh_key_id", "hostname", "size"}
    assert wrong["os_id"] == ["This field is required."]
    assert wrong["size"] == [
        "Unknown field. The fields are name, plan_id, location, os_id, backup_id, snapshot_id, hostname, ssh_key_id, "
        "backups_enabled, freeze_for_backups, tags, protected, placement_group_id, user_data."
    ]
    assert wrong["location"] == ["There is no location 'mars'. The locations are us-west, us-east, eu-central."]
    assert wrong["plan_id"][0].startswith("There is no plan 99. The plans are 1 (Standard VPS), 2 (Performance VPS)")


async def test_a_huge_id_in_a_body_is_400(cloud: Cloud) -> None:
    for field in ["plan_id", "os_id", "ssh_key_id"]:
        for number in HUGE:
            answer = await cloud.post(SERVERS, {**GOOD, field: number})
            assert answer.status_code == 400, (field, number)
            assert set(answer.json()) == {field}


async def test_an_id_that_is_none_is_404(cloud: Cloud) -> None:
    for _ in range(12):
        await cloud.create()
    odd = [0, -1, "abc", "1.0", "1_0", "+1", "%201", "01", "٣", "9" * 5000, "%00", "null", "1e3"]
    for number in [*HUGE, *(-huge - 1 for huge in HUGE), *odd]:
        for method, path in (
            ("GET", f"{SERVERS}{number}/"),
            ("DELETE", f"{SERVERS}{number}/"),
            ("POST", f"{SERVERS}{number}/start/"),
            ("GET", f"{SERVERS}{number}/operations/"),
            ("GET", f"/api/v1/ssh-keys/{number}/"),
        ):
            answer = await cloud.ask(method, path)
            assert answer.status_code == 404, path
            assert set(answer.json()) == {"detail", "code"}
            assert answer.json()["code"] == "not_found"


async def test_an_unknown_path_is_404(cloud: Cloud) -> None:
    for path in ["/", "/api", "/api/v1/", "/api/v2/servers/", "/api/v1/server/", "/api/v1/servers/1/x/"]:
        answer = await cloud.get(path)
        assert answer.status_code == 404, path
        assert answer.json() == {"detail": f"There is nothing at {path}.", "code": "not_found"}


async def test_a_method_that_a_path_has_not_is_405(cloud: Cloud) -> None:
    for method, path, allowed in [
        ("DELETE", SERVERS, {"GET", "POST"}),
        ("POST", f"{SERVERS}1/", {"GET", "PUT", "PATCH", "DELETE"}),
        ("GET", f"{SERVERS}1/start/", {"POST"}),
        ("HEAD", f"{SERVERS}1/start/", {"POST"}),
        ("PUT", "/api/v1/ssh-keys/1/", {"GET", "DELETE"}),
        ("POST", "/api/v1/plans/", {"GET"}),
        ("SURPRISE", SERVERS, {"GET", "POST"}),
    ]:
        answer = await cloud.ask(method, path)
        assert answer.status_code == 405, (method, path)
        assert allowed <= set(answer.headers["Allow"].split(", "))
        if method != "HEAD":
            assert answer.json()["code"] == "method_not_allowed"


async def test_paths_without_the_trailing_slash_work(cloud: Cloud) -> None:
    answer = await cloud.post("/api/v1/servers", GOOD)
    assert answer.status_code == 201
    await cloud.work()
    assert (await cloud.get("/api/v1/servers")).json()["count"] == 1
    assert (await cloud.get("/api/v1/servers/1")).json()["id"] == 1
    assert (await cloud.post("/api/v1/servers/1/stop")).status_code == 200
    assert (await cloud.get("/api/v1/ssh-keys")).status_code == 200


async def test_an_error_of_vpsds_own_tells_nothing_of_its_inside(cloud: Cloud) -> None:
    await lose_table(cloud.database)
    answer = await cloud.get(SERVERS)
    assert answer.status_code == 500
    assert answer.json() == {"detail": "vpsd met an error of its own; the operator's log has it.", "code": "internal"}


async def test_an_answer_names_at_most_20_fields_and_is_little_larger_than_what_was_sent(cloud: Cloud) -> None:
    head_bytes = 200  # what a request has besides its body
    twice = b"{%s}" % b",".join(b'"%d":1,"%d":1' % (number, number) for number in range(50))

    def unknown(count: int) -> dict[str, int]:
        return {f"{number:x}": 1 for number in range(count)}

    for body, wrong in (
        ({**GOOD, **unknown(20)}, 20),
        ({**GOOD, **unknown(21)}, 21),
        ({**GOOD, **unknown(500)}, 500),
        (unknown(500), 504),
        ({**{name: [] for name in GOOD}, **unknown(500)}, 504),
        (twice, 50),
    ):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await cloud.post(SERVERS, content=data, headers={"Content-Type": "application/json"})
        told = answer.json()
        more = [int(message.split()[0]) for message in told.pop("more", [])]
        assert (answer.status_code, len(told), len(told) + sum(more)) == (400, min(20, wrong), wrong)
        assert len(answer.content) < 4 * (head_bytes + len(data))


async def test_a_long_path_is_quoted_in_part(cloud: Cloud) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await cloud.ask(method, "/" + "%01" * 2500)
        assert answer.status_code == 404
        assert len(answer.content) < 1500
