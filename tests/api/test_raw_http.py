"""What no client of ours would send, over raw sockets: each is answered as it should be, in JSON, and logged."""

import logging
import re

import msgspec
import pytest

from tests.api.raw_http import CASES, request, send, status_of
from tests.api.serving import serving_app
from tests.cloud import Cloud
from vpsd.api.http.connection import MOST_FIELDS
from vpsd.api.http.errors import CODES

ME = "127.0.0.1"


async def test_every_request_is_answered_as_it_should_be(cloud: Cloud) -> None:
    async with serving_app(cloud.app()) as served:
        got = [(case.name, status_of(await send(served.port, case.data))) for case in CASES]
    assert got == [(case.name, case.status) for case in CASES]


async def test_it_does_not_matter_in_which_pieces_a_request_comes(cloud: Cloud) -> None:
    async with serving_app(cloud.app()) as served:
        for case in CASES:
            if len(case.data) > 300:
                continue
            client = await served.client()
            for place in range(0, len(case.data), 5):
                await client.send(case.data[place : place + 5], rounds=3)
            assert status_of(await client.rest()) == case.status, case.name
            client.close()


async def test_what_is_refused_is_answered_in_json_and_logged_with_its_sender(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vpsd.access")
    async with serving_app(cloud.app(address_rate_limit=0)) as served:
        for case in CASES:
            if case.status not in (400, 408, 413, 414, 415, 431):
                continue
            caplog.clear()
            head, _, body = (await send(served.port, case.data)).partition(b"\r\n\r\n")
            assert b"\r\nconnection: close" in head
            assert b"\r\nx-request-id: " in head
            assert b"\r\ncontent-type: application/json" in head
            problem = msgspec.json.decode(body)
            assert set(problem) == {"detail", "code"}
            assert problem["code"] == CODES[case.status], case.name
            (line,) = [vars(record) for record in caplog.records]
            assert (line["status"], line["address"]) == (case.status, ME)
            assert ME in line["message"]


async def test_malformed_requests_count_for_their_address(cloud: Cloud) -> None:
    async with serving_app(cloud.app(address_rate_limit=2)) as served:
        assert [status_of(await send(served.port, b"\0\r\n\r\n")) for _ in range(3)] == [400, 400, 429]
        assert status_of(await send(served.port, request())) == 429


async def test_nothing_that_follows_a_refused_request_is_looked_at_beyond_the_limit_either(cloud: Cloud) -> None:
    ambiguous = b"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"
    async with serving_app(cloud.app(address_rate_limit=1)) as served:
        assert status_of(await send(served.port, request())) == 200
        answer = await send(served.port, ambiguous + request())
    assert (answer.count(b"HTTP/1.1 429 "), answer.count(b"connection: close")) == (1, 1)


async def test_who_sent_a_head_that_is_too_large_is_known_by_what_was_read_of_it(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vpsd.access")
    fields = [b"X-Forwarded-For: 203.0.113.9", *[b"X: y"] * MOST_FIELDS]
    async with serving_app(cloud.app(trusted_proxies=ME)) as served:
        assert status_of(await send(served.port, request(b"GET / HTTP/1.1", *fields))) == 431
    assert vars(caplog.records[-1])["address"] == "203.0.113.9"


async def test_options_and_405_tell_all_methods_of_a_path(cloud: Cloud) -> None:
    described = (await cloud.get("/api/v1/openapi.json")).json()["paths"]
    assert len(described) > 20
    for path, operations in described.items():
        methods = {name.upper() for name in operations} | {"OPTIONS"}
        methods |= {"HEAD"} if "GET" in methods else set()
        for method, status_code in (("OPTIONS", 204), ("TRACE", 405)):
            answer = await cloud.ask(method, re.sub("{[a-z_]+}", "1", path), who=None)
            assert (answer.status_code, answer.headers["Allow"]) == (status_code, ", ".join(sorted(methods))), path


@pytest.mark.parametrize("path", ["servers/", "servers/1/start/"])
async def test_a_client_that_hangs_up_is_no_failure(cloud: Cloud, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level(logging.DEBUG)
    head = request(
        f"POST /api/v1/{path} HTTP/1.1".encode(),
        *(b"Authorization: Bearer " + cloud.tokens["alice"].encode(), b"Content-Type: application/json"),
        b"Content-Length: 100",
        body=b"{",
    )
    async with serving_app(cloud.app()) as served:
        client = await served.client()
        await client.send(head)
        client.close()
    (line,) = [record for record in caplog.records if record.name == "vpsd.access"]
    assert (line.levelno, vars(line)["status"]) == (logging.DEBUG, 499)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_nothing_that_follows_a_refused_request_is_looked_at(cloud: Cloud) -> None:
    odd = (b"GET //x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n")
    async with serving_app(cloud.app()) as served:
        for refused in odd:
            answer = await send(served.port, refused + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (answer.count(b"HTTP/1.1 400 "), answer.count(b"HTTP/1.1 200 ")) == (1, 0)
