"""The description as code generators and fuzzers need it: formats, closed sets, nullability, names, patterns."""

import re
from collections.abc import Iterator
from typing import Any

from tests.api.test_access import DOCUMENT
from tests.cloud import TINY, Cloud
from vpsd.accounts.permissions import KNOWN
from vpsd.api.vps_org.schemas.server_forms import ServerCreate, ServerResize
from vpsd.backups.models import BackupStatus
from vpsd.lifecycle import Command, Status
from vpsd.operations.models import OperationStatus
from vpsd.servers.user_data import UserDataStatus

SERVERS = "/api/v1/servers/"
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def fields() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every field of every object: the object's name, its own, its schema."""
    for name, schema in SCHEMAS.items():
        for field, inner in schema.get("properties", {}).items():
            yield name, field, inner


def parts(part: Any = DOCUMENT) -> Iterator[dict[str, Any]]:
    """Everything in the document that is an object, examples left out."""
    if isinstance(part, list):
        for entry in part:
            yield from parts(entry)
    if isinstance(part, dict):
        yield part
        for key, value in part.items():
            if key not in ("example", "examples", "default"):
                yield from parts(value)


def test_times_and_uuids_are_told_by_their_format() -> None:
    formats = {field: set[str]() for _, field, _ in fields()}
    for name, field, schema in fields():
        if name != "AccountView":  # of an account only the day
            formats[field].add(schema.get("format", ""))
    assert (
        formats["at"] == formats["created_at"] == formats["expires_at"] == formats["exhausted_since"] == {"date-time"}
    )
    assert formats["uuid"] == formats["plan"] - {""} == {"uuid"}
    assert SCHEMAS["AccountView"]["properties"]["created_at"]["format"] == "date"
    texts = {field for _, field, schema in fields() if "string" in schema.get("type", ())}
    assert {field for field in texts if field.endswith("_at")} <= {field for field in texts if "" not in formats[field]}


def test_every_closed_set_is_an_enum_with_a_name() -> None:
    def values(schema: dict[str, Any]) -> set[Any]:
        if "oneOf" in schema:
            assert schema["oneOf"][1] == {"type": "null"}
            return {*values(schema["oneOf"][0]), None}
        return set(SCHEMAS[schema["$ref"].rpartition("/")[2]]["enum"])

    found = {(name, field): schema for name, field, schema in fields()}
    for where, expected in {
        ("OperationView", "status"): set(OperationStatus),
        ("OperationBrief", "status"): set(OperationStatus),
        ("OperationView", "command"): set(Command),
        ("ServerDetail", "status"): set(Status),
        ("BackupView", "status"): set(BackupStatus),
        ("BackupView", "backup_type"): {"manual", "automatic"},
        ("Transaction", "kind"): {"credit", "usage"},
        ("EventView", "actor"): {"token", "operator", "vpsd"},
        ("ServerPower", "action"): {"start", "stop", "restart", "hard_stop"},
        ("Health", "status"): {"ok", "degraded"},
        ("HypervisorHealth", "status"): {"connecting", "ok", "degraded", "unavailable"},
        ("HypervisorHealth", "storage"): {"ok", "low", "full", "failing", None},
        ("BackupsHealth", "status"): {"unknown", "ok", "unused", "missing", "unavailable", "elsewhere"},
    }.items():
        assert values(found[where]) == expected, where
    assert set(SCHEMAS["UserDataStatus"]["enum"]) == set(UserDataStatus)
    for name in ("TokenCreate", "TokenView"):
        assert values(found[name, "permissions"]["items"]) == set(KNOWN)
    enums = [part for part in parts() if isinstance(part.get("enum"), list)]
    assert all(part["type"] == "string" and SCHEMAS[part["title"]] is part for part in enums)


def test_every_code_of_an_answer_is_one_of_the_enum() -> None:
    codes = SCHEMAS["ErrorCode"]["enum"]
    assert SCHEMAS["Problem"]["properties"]["code"] == {"$ref": "#/components/schemas/ErrorCode"}
    shown = re.findall(r"'code': '(\w+)'", str(DOCUMENT))
    assert {"not_found", "busy", "protected", "wrong_status", "no_capacity"} & set(shown) <= set(codes)
    assert set(shown) <= set(codes)
    assert {"internal", "error", "method_not_allowed", "over_quota", "too_large"} <= set(codes)


def test_what_may_be_null_is_said_as_json_schema_says_it_today() -> None:
    assert not [part for part in parts() if "nullable" in part or "anyOf" in part]
    hostname = SCHEMAS["ServerFromBackup"]["properties"]["hostname"]
    assert hostname["type"] == ["string", "null"]
    assert "pattern" in hostname
    before = SCHEMAS["EventTransition"]["properties"]["from"]
    assert before["oneOf"] == [{"$ref": "#/components/schemas/ServerStatus"}, {"type": "null"}]


def test_patterns_use_nothing_that_re2_refuses() -> None:
    patterns = [part["pattern"] for part in parts() if isinstance(part.get("pattern"), str)]
    assert len(patterns) > 5
    for pattern in patterns:
        assert not re.search(r"\(\?|\\[1-9ZzAbB]", pattern), pattern
        assert pattern.startswith("^"), pattern
        assert pattern.endswith("$"), pattern


async def test_a_line_end_is_refused_all_the_same(cloud: Cloud) -> None:
    for body in ({"name": "web\n"}, {"hostname": "web.example.com\n"}, {"tags": ["web\n"]}):
        answer = await cloud.post(SERVERS, {"name": "web", **TINY, **body})
        assert (answer.status_code, set(answer.json())) == (400, set(body))
    assert (await cloud.get("/api/v1/account/usage/?month=2026-11%0A")).status_code == 400
    assert (await cloud.get(f"{SERVERS}?sort=name%0A")).status_code == 400


def test_names_tell_what_they_are_for() -> None:
    assert all(schema["title"] == name for name, schema in SCHEMAS.items())
    assert not {"State", "Status", "Command", "Power", "Me", "Usage", "Kind", "Price"} & set(SCHEMAS)
    assert not [name for name in SCHEMAS if re.search(r"[^A-Za-z]|\d", name)]


def test_tags_are_unique_and_declared_with_a_description() -> None:
    declared = [tag["name"] for tag in DOCUMENT["tags"]]
    used = {tag for part in parts(DOCUMENT["paths"]) if "operationId" in part for tag in part["tags"]}
    assert len(declared) == len(set(declared))
    assert used == set(declared)
    assert all(tag["description"] for tag in DOCUMENT["tags"])


async def test_a_body_with_none_or_two_of_what_it_needs_one_of_is_refused(cloud: Cloud) -> None:
    server_id = await cloud.create()
    for shape, path, base, choices in (
        (ServerCreate, SERVERS, {"name": "web", "plan_id": 4, "location": "us-west"}, {"os_id": 1, "backup_id": 1}),
        (ServerResize, f"{SERVERS}{server_id}/resize/", {}, {"plan_id": 1, "plan": "1" * 36}),
    ):
        found = {choice["$ref"].rpartition("/")[2] for choice in SCHEMAS[shape.__name__]["oneOf"]}
        assert found == set(shape.exactly_one_of.values())
        for field, name in shape.exactly_one_of.items():
            assert field in SCHEMAS[name]["required"]
            assert not set(shape.exactly_one_of) - {field} & set(SCHEMAS[name]["properties"])
        for body in (base, {**base, **choices}):
            answer = await cloud.post(path, body)
            assert answer.status_code == 400, body
            assert set(answer.json()) & {*choices, "os_id"}, answer.text
