"""The API's description: committed as it is, well formed, and true to what goes over the wire."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from jsonschema import Draft202012Validator, FormatChecker

from tests.api.test_access import DOCUMENT, ROUTES
from tests.cloud import Cloud
from vpsd.api.app import openapi_json
from vpsd.api.http.forms import Form
from vpsd.api.vps_org.schemas.account import TokenCreate
from vpsd.api.vps_org.schemas.backups import BackupCreate, CopyLabel, SnapshotCreate
from vpsd.api.vps_org.schemas.operator import ServerMigrate
from vpsd.api.vps_org.schemas.placement_groups import PlacementGroupCreate, PlacementGroupPatch
from vpsd.api.vps_org.schemas.server_forms import (
    ServerCreate,
    ServerPatch,
    ServerPower,
    ServerRebuild,
    ServerResize,
    ServerUpdate,
)
from vpsd.api.vps_org.schemas.ssh_keys import SshKeyCreate

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(__file__).parent / "examples"


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """What a reference leads to; anything else as it is."""
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: dict[str, Any] = DOCUMENT["components"][kind][name]
    return found


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what the document says, the formats of its texts included."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return bool(Draft202012Validator(whole, format_checker=FORMATS).is_valid(value))


def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(date.fromisoformat(value))


def _is_time(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value))


def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value


FORMATS = FormatChecker(())
for _name, _check in (("date", _is_date), ("date-time", _is_time), ("uuid", _is_uuid)):
    FORMATS.checks(_name, ValueError)(_check)


def contents(operation: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [operation.get("requestBody", {}), *map(resolved, operation["responses"].values())]
    return [part["content"]["application/json"] for part in parts if "content" in part]


def test_the_committed_description_is_the_true_one() -> None:
    assert (ROOT / "openapi.json").read_bytes() == openapi_json(), "run `make openapi` and commit openapi.json"


async def test_it_is_served_to_everyone(cloud: Cloud) -> None:
    answer = await cloud.get("/api/v1/openapi.json", who=None)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/vnd.oai.openapi+json"
    described, committed = answer.json(), json.loads(openapi_json())
    assert described.pop("servers") == [{"url": "http://vpsd.test"}]  # as the sender knows it
    assert committed.pop("servers") == [{"url": "http://127.0.0.1:8000"}]  # as it is by default
    assert described == committed


def test_paths_are_written_as_published() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert all(path.endswith("/") for path in DOCUMENT["paths"] if not path.startswith("/health"))
    servers = {(method, path) for method, path, _ in ROUTES if path.startswith("/api/v1/servers/")}
    one = "/api/v1/servers/{server_id}/"
    assert servers == {
        *(("GET", "/api/v1/servers/"), ("POST", "/api/v1/servers/"), ("GET", f"{one}operations/")),
        *((method, one) for method in ("GET", "PUT", "PATCH", "DELETE")),
        *(
            ("POST", f"{one}{command}/")
            for command in ("start", "stop", "reboot", "power", "resize", "rebuild", "undelete")
        ),
        *(("POST", f"{one}{copy}/") for copy in ("backup", "snapshot")),
    }


def test_every_operation_is_complete() -> None:
    names = [operation["operationId"] for _, _, operation in ROUTES]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for _, path, operation in ROUTES:
        assert operation["summary"]
        assert operation["description"]
        assert len(operation["tags"]) == 1
        assert set(operation["tags"]) <= tags
        parameters = [resolved(entry) for entry in operation.get("parameters", [])]
        assert [entry["name"] for entry in parameters if entry["in"] == "path"] == re.findall(r"{(\w+)}", path)
        assert all(entry["description"] for entry in parameters)
        assert all(resolved(answer)["description"] for answer in operation["responses"].values())


def test_the_status_codes_are_those_that_can_happen() -> None:
    codes = {operation["operationId"]: " ".join(operation["responses"]) for _, _, operation in ROUTES}
    assert codes == {
        "health": "200 429 503",
        "health_live": "200 429 503",
        "health_ready": "200 429 503",
        "server_list": "200 400 401 403 414 429 503",
        "server_create": "200 201 400 401 402 403 409 413 414 415 422 429 503",
        "server_get": "200 400 401 403 404 429 503",
        "server_update": "200 400 401 403 404 413 415 429 503",
        "server_patch": "200 400 401 403 404 413 415 429 503",
        "server_delete": "204 400 401 403 404 409 414 429 503",
        "server_undelete": "200 400 401 402 403 404 409 414 422 429 503",
        "server_start": "200 400 401 402 403 404 409 414 422 429 503",
        "server_stop": "200 400 401 403 404 409 414 422 429 503",
        "server_reboot": "200 400 401 402 403 404 409 414 422 429 503",
        "server_power": "200 400 401 402 403 404 409 413 414 415 422 429 503",
        "server_resize": "200 400 401 402 403 404 409 413 414 415 422 429 503",
        "server_rebuild": "200 400 401 402 403 404 409 413 414 415 422 429 503",
        "server_operations": "200 400 401 403 404 414 429 503",
        "backup_of_server": "201 400 401 403 404 409 413 415 422 429 503",
        "snapshot_of_server": "201 400 401 403 404 409 413 415 422 429 503",
        "backup_list": "200 400 401 403 414 429 503",
        "backup_create": "201 400 401 403 404 409 413 415 422 429 503",
        "backup_get": "200 400 401 403 404 429 503",
        "backup_restore": "200 400 401 402 403 404 409 414 422 429 503",
        "backup_delete": "204 400 401 403 404 429 503",
        "snapshot_list": "200 400 401 403 414 429 503",
        "snapshot_create": "201 400 401 403 404 409 413 415 422 429 503",
        "snapshot_get": "200 400 401 403 404 429 503",
        "snapshot_restore": "200 400 401 402 403 404 409 414 422 429 503",
        "snapshot_delete": "204 400 401 403 404 429 503",
        "ssh_key_list": "200 400 401 403 414 429 503",
        "ssh_key_create": "201 400 401 403 409 413 415 422 429 503",
        "ssh_key_get": "200 400 401 403 404 429 503",
        "ssh_key_delete": "204 400 401 403 404 429 503",
        "placement_group_list": "200 400 401 403 414 429 503",
        "placement_group_create": "201 400 401 403 409 413 415 422 429 503",
        "placement_group_get": "200 400 401 403 404 429 503",
        "placement_group_patch": "200 400 401 403 404 413 415 429 503",
        "placement_group_delete": "204 400 401 403 404 429 503",
        "plan_list": "200 400 401 403 414 429 503",
        "plan_get": "200 400 401 403 404 429 503",
        "operating_system_list": "200 400 401 403 414 429 503",
        "location_list": "200 400 401 403 414 429 503",
        "account_me": "200 400 401 429 503",
        "token_list": "200 400 401 403 414 429 503",
        "token_create": "201 400 401 403 409 413 415 422 429 503",
        "token_delete": "204 400 401 403 404 414 429 503",
        "event_list": "200 400 401 403 414 429 503",
        "account_balance": "200 400 401 403 429 503",
        "transaction_list": "200 400 401 403 414 429 503",
        "account_usage": "200 400 401 403 414 429 503",
        "server_migrate": "200 400 401 403 404 409 413 414 415 422 429 503",
        "operation_get": "200 400 401 403 404 429 503",
    }


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    found = {tuple(pair) for pair in re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', text)}
    there = {(kind, name) for kind in ("schemas", "responses", "parameters") for name in DOCUMENT["components"][kind]}
    assert found == there


def test_every_example_fits_its_schema() -> None:
    checked = 0
    for _, _, operation in ROUTES:
        for content in contents(operation):
            examples = [entry["value"] for entry in content.get("examples", {}).values()]
            for example in [content["example"]] if "example" in content else examples:
                assert fits(example, content["schema"]), (operation["operationId"], example)
                checked += 1
    assert checked > 50


def test_the_examples_of_bodies_are_accepted() -> None:
    forms: list[tuple[str, Any]] = [
        ("server_create", ServerCreate),
        ("server_update", ServerUpdate),
        ("server_patch", ServerPatch),
        ("server_power", ServerPower),
        ("server_resize", ServerResize),
        ("server_rebuild", ServerRebuild),
        ("backup_of_server", CopyLabel),
        ("snapshot_of_server", CopyLabel),
        ("backup_create", BackupCreate),
        ("snapshot_create", SnapshotCreate),
        ("ssh_key_create", SshKeyCreate),
        ("placement_group_create", PlacementGroupCreate),
        ("placement_group_patch", PlacementGroupPatch),
        ("token_create", TokenCreate),
        ("server_migrate", ServerMigrate),
    ]
    bodies = {
        operation["operationId"]: operation["requestBody"] for _, _, operation in ROUTES if "requestBody" in operation
    }
    assert set(bodies) == {name for name, _ in forms}
    for name, shape in forms:
        form: Form[Any] = Form(shape, bodies[name]["content"]["application/json"]["example"])
        form.validate()


def test_the_examples_are_the_published_ones_and_what_vpsd_adds() -> None:
    by_name = {operation["operationId"]: operation for _, _, operation in ROUTES}
    for path in EXAMPLES.glob("*.json"):
        answers = by_name[path.stem]["responses"]
        ours = next(answers[code] for code in ("201", "200") if code in answers)["content"]["application/json"]
        example = ours["example"] if "example" in ours else ours["examples"]["done"]["value"]
        _assert_same(example, msgspec.json.decode(path.read_bytes()))


def _assert_same(ours: Any, published: Any) -> None:
    if isinstance(published, dict):
        for key, value in published.items():
            if key not in ("ip_address", "ipv6_address"):  # ours are those of a single machine
                _assert_same(ours[key], value)
    elif isinstance(published, list):
        for mine, theirs in zip(ours, published, strict=True):
            _assert_same(mine, theirs)
    else:
        assert ours == published


async def test_what_goes_over_the_wire_fits_the_description(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    ids = {f"{what}_id": (await cloud.have_copy(server_id, what))["id"] for what in ("backup", "snapshot")}
    ids["group_id"] = (await cloud.post("/api/v1/placement-groups/", {"name": "database"})).json()["id"]
    await cloud.may_everything()
    for method, path, operation in ROUTES:
        if method == "GET" and "key_id" not in path:
            answer = await cloud.get(path.format(server_id=server_id, plan_id=1, operation_id=1, **ids))
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert fits(answer.json(), schema), answer.text
    for path, code in (("/api/v1/servers/?page=0", "400"), ("/api/v1/servers/99/", "404")):
        answer = await cloud.get(path)
        operation = DOCUMENT["paths"][path.split("?")[0].replace("99", "{server_id}")]["get"]
        assert fits(answer.json(), resolved(operation["responses"][code])["content"]["application/json"]["schema"])
