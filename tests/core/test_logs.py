"""Log lines: for programs as JSON, each with its request's id, and none with what is nobody's business."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cloud import TINY, Cloud
from tests.idempotency.posts import Stumbling, api_on
from vpsd.core import logs

SERVERS = "/api/v1/servers/"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Setting up logs is for the whole process: put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged as JSON since the last look; a line that is none fails."""
    shown = capsys.readouterr()
    assert shown.out == ""
    return [json.loads(line) for line in shown.err.splitlines()]


def test_a_line_for_programs_has_time_level_logger_message_and_what_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "json")
    logging.getLogger("vpsd.test").info("It is %s.", 'a "line"\nor two', extra={"count": 3, "path": logs})
    logging.getLogger("vpsd.test").debug("not this one")
    (line,) = _lines(capsys)
    assert line["time"].endswith("+00:00")
    assert {name: line[name] for name in ("level", "logger", "message", "request_id", "count")} == {
        "level": "info",
        "logger": "vpsd.test",
        "message": 'It is a "line"\nor two.',
        "request_id": None,
        "count": 3,
    }
    assert set(line) == {"time", "level", "logger", "message", "request_id", "count", "path"}


def test_an_error_for_programs_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("vpsd.test").exception("something is lost")
    (line,) = _lines(capsys)
    assert (line["level"], line["message"]) == ("error", "something is lost")
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("KeyError: 'lost'")


def test_a_line_for_people_has_the_requests_id_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "text")
    log = logging.getLogger("vpsd.test")
    log.warning("outside")
    token = logs.request_id.set("abc")
    log.warning("inside")
    log.info("not this one")
    logs.request_id.reset(token)
    outside, inside = capsys.readouterr().err.splitlines()
    assert outside.endswith(" WARNING vpsd.test: outside")
    assert inside.endswith(" WARNING vpsd.test [abc]: inside")


async def test_every_request_has_a_line_with_its_id_method_path_and_status(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "json")
    me = (await cloud.get("/api/v1/account/me/")).json()["token"]["id"]
    capsys.readouterr()
    asked: list[tuple[str, str, str | None, Any, int]] = [
        ("GET", SERVERS, "alice", None, 200),
        ("HEAD", SERVERS, "alice", None, 200),
        ("POST", SERVERS, "alice", {"name": "web", **TINY}, 201),
        ("POST", SERVERS, "alice", {}, 400),
        ("GET", SERVERS, None, None, 401),
        ("GET", "/nowhere/", "alice", None, 404),
        ("DELETE", SERVERS, "alice", None, 405),
        ("GET", "/health", None, None, 200),
    ]
    for method, path, who, body, status in asked:
        answer = await cloud.ask(method, path, who=who, json=body)
        assert answer.status_code == status
        (line,) = _lines(capsys)
        names = ("logger", "level", "request_id", "method", "path", "status", "address")
        assert [line[name] for name in names] == [
            *("vpsd.access", "info", answer.headers["X-Request-ID"]),
            *(method, path, status, "127.0.0.1"),
        ]
        assert line["duration_ms"] >= 0
        assert (line.get("account_id"), line.get("token_id")) == ((1, me) if who is not None else (None, None))


async def test_an_error_of_vpsds_own_is_logged_in_full_under_the_id_that_was_answered(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "json")
    server_id = await cloud.have_server()
    stumbling = Stumbling(cloud.database)
    stumbling.at_the_end[1] = KeyError("lost")
    async with api_on(cloud, stumbling) as http:
        capsys.readouterr()
        answer = await http.post(f"{SERVERS}{server_id}/stop/")
    error, access = _lines(capsys)
    assert error["request_id"] == access["request_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" in error["error"]
    assert (access["status"], answer.status_code) == (500, 500)


async def test_the_query_is_in_no_line(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("json", "text"):
        logs.configure("debug", form)
        for path in (SERVERS, "/nowhere", "/api/v1/account/me/"):
            await cloud.get(f"{path}?token=sesame&page=x")
        shown = capsys.readouterr().err
        assert shown.count("vpsd.access") == 3
        assert "sesame" not in shown


async def test_a_path_cannot_begin_a_line_of_its_own(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("json", "text"):
        logs.configure("info", form)
        await cloud.get("/%0A2026-01-01%20INFO%20vpsd:%20all%20is%20well%0D%1B[2J")
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        assert "\r" not in shown
        assert "\x1b" not in shown
