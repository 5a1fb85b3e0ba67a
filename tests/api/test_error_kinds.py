"""Errors and faults by their kinds: whatever a room adds, there is an answer to it, and words."""

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from types import UnionType
from typing import Any

import msgspec
import pytest

import vpsd
from tests.cloud import Cloud
from tests.idempotency.posts import Stumbling, api_on
from vpsd.api.http.errors import STATUS_CODES, Problem, answer_to, status_code_of
from vpsd.api.vps_org.texts import text
from vpsd.backups.faults import NoSuchBackup, ServerIsDeleted
from vpsd.backups.repository import Damaged, WrongKey
from vpsd.backups.targets import Missing, TargetFull
from vpsd.errors import Fault, VpsdError
from vpsd.hypervisor.protocol import PortsTaken
from vpsd.lifecycle import Status
from vpsd.servers.faults import IsDeleted, IsProtected, UnknownSshKey

SERVERS = "/api/v1/servers/"


def _import_everything() -> None:
    for module in pkgutil.walk_packages(vpsd.__path__, "vpsd."):
        if module.name.startswith("vpsd.migrations.") or module.name.endswith("__main__"):
            continue  # those do something when they are imported
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "libvirt":
                raise


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for below in kind.__subclasses__():
        if below.__module__.startswith("vpsd."):
            yield below
            yield from _below(below)


_import_everything()
ERRORS = sorted(set(_below(VpsdError)), key=lambda kind: kind.__qualname__)
FAULTS = sorted(set(_below(Fault)), key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_kind_of_error_has_a_status_code(kind: type[VpsdError]) -> None:
    above = [base for base in kind.__mro__ if base in STATUS_CODES]
    assert status_code_of(kind) == STATUS_CODES[above[0]]


def test_a_kind_that_nobody_put_into_the_table_is_answered_like_the_one_above_it() -> None:
    class FarTooBusy(PortsTaken):
        """A kind of a kind."""

    class Unheard(VpsdError):
        """A kind of its own."""

    for kind, status_code, code, said in (
        (FarTooBusy, 503, "unavailable", PortsTaken.public or ""),
        (Unheard, 500, "error", "no"),
    ):
        answer = answer_to(kind("no"), text)
        assert (answer.status_code, answer.content) == (status_code, Problem(said, code))


@pytest.mark.parametrize(
    ("error", "status_code", "code"),
    [
        (PortsTaken("no"), 503, "unavailable"),
        (TargetFull("no"), 500, "unusable"),
        (Missing("no"), 500, "unusable"),
        (Damaged("no"), 500, "unusable"),
        (WrongKey("no"), 500, "unusable"),
    ],
)
async def test_a_subclass_that_reaches_a_request_is_answered(
    cloud: Cloud, error: VpsdError, status_code: int, code: str
) -> None:
    server_id = await cloud.have_server()
    database = Stumbling(cloud.database)
    database.at_the_end[1] = error
    async with api_on(cloud, database) as http:
        answer = await http.post(f"{SERVERS}{server_id}/stop/")
    assert (answer.status_code, answer.json()) == (status_code, {"detail": error.public, "code": code})
    assert await cloud.status(server_id) == Status.ACTIVE


def _sample(kind: Any) -> Any:
    """A value that a field of that type may have."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return _sample(inside[0])
    if origin is list:
        return [_sample(inside[0])]
    if origin is tuple:
        return tuple(_sample(one) for one in inside)
    return {int: 17, str: "sample", bool: True, datetime: datetime(2025, 6, 15, tzinfo=UTC)}[kind]


@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_of_fault_has_words_without_paths_of_an_api(kind: type[Fault]) -> None:
    fault = kind(*(_sample(field.type) for field in msgspec.structs.fields(kind)))
    assert text(fault)
    assert text(fault) != repr(fault)
    assert "/api/" not in str(fault)


@pytest.mark.parametrize(
    ("failure", "path"),
    [
        (UnknownSshKey(7), "/api/v1/ssh-keys/"),
        (NoSuchBackup("backup", 7), "/api/v1/backups/"),
        (NoSuchBackup("snapshot", 7), "/api/v1/snapshots/"),
        (ServerIsDeleted("backup", 7, 12), "POST /api/v1/servers/ with backup_id 7"),
        (IsDeleted(12, Status.DELETED, 0), "POST /api/v1/servers/12/undelete/"),
        (IsProtected(12), 'PATCH /api/v1/servers/12/ with {"protected": false}'),
    ],
)
def test_the_dialect_says_where_to_go_on(failure: object, path: str) -> None:
    assert path in text(failure)
    assert "/api/" not in str(failure)


def test_a_kind_made_of_one_that_the_dialect_knows_says_the_same() -> None:
    class StillProtected(IsProtected):
        """A kind of a kind."""

    assert text(StillProtected(12)) == text(IsProtected(12))
