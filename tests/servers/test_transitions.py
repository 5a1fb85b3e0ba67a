"""One writer of status: it goes by the table, and the event that tells of a change is written with it."""

import ast
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.sql import Insert, Update

from tests.cloud import Cloud
from tests.core.test_statements import STATEMENTS
from vpsd.core import db
from vpsd.core.db import Statement
from vpsd.lifecycle import Command, Status
from vpsd.servers import queries
from vpsd.servers.commands import ServerChanges, enqueue
from vpsd.servers.faults import CommandRefused
from vpsd.servers.models import servers
from vpsd.servers.transitions import ended, found, given, transition

_DOOR = "vpsd.servers.transitions"


async def test_a_change_that_the_table_does_not_have_is_refused_and_nothing_is_written(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    for to, cause in (
        (Status.STOPPED, given(Command.STOP)),
        (Status.STARTING, given(Command.START)),
        (Status.STOPPED, ended(Command.STOP)),
        (Status.DELETED, found("nothing there")),
    ):
        with pytest.raises(ValueError, match="does not lead from active"):
            async with cloud.writing() as ctx:
                await transition(ctx, await queries.lock(ctx, server_id), to, cause)
    assert await cloud.status(server_id) == "active"


async def test_who_is_not_a_customer_goes_by_the_table_too(cloud: Cloud) -> None:
    server_id = await cloud.have_server(status=Status.STOPPED)
    with pytest.raises(CommandRefused):
        async with cloud.writing() as ctx:
            await enqueue(ctx, await queries.lock(ctx, server_id), Command.RESUME)
    assert await cloud.status(server_id) == "stopped"
    assert [operation["command"] for operation in await cloud.operations(server_id)] == ["create", "stop"]


async def _changes(cloud: Cloud) -> list[tuple[str, str | None, str | None, str]]:
    """Action, from, to and actor of every event that changed a server's status, oldest first."""
    found = (await cloud.get("/api/v1/account/events/?page_size=1000")).json()["results"]
    return [
        (event["action"], event["transition"]["from"], event["transition"]["to"], event["actor"])
        for event in reversed(found)
        if event["transition"] is not None
    ]


async def test_a_request_has_one_event_which_carries_its_change_and_its_end_has_one_of_its_own(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await cloud.post(f"/api/v1/servers/{server_id}/stop/")
    await cloud.work()
    assert await _changes(cloud) == [
        ("server.create", None, "provisioning", "token"),
        ("server.status", "provisioning", "active", "vpsd"),
        ("server.stop", "active", "stopping", "token"),
        ("server.status", "stopping", "stopped", "vpsd"),
    ]
    all_events = (await cloud.get("/api/v1/account/events/?page_size=1000")).json()["results"]
    assert [event["action"] for event in all_events].count("server.stop") == 1


async def test_the_events_of_a_server_tell_every_status_that_it_had(cloud: Cloud) -> None:
    cloud.set(undelete_hours=1)
    server_id = await cloud.have_server()
    for path in ("stop", "start", "reboot", "rebuild"):
        await cloud.post(f"/api/v1/servers/{server_id}/{path}/", {"os_id": 1} if path == "rebuild" else None)
        await cloud.settle()
    await cloud.ask("DELETE", f"/api/v1/servers/{server_id}/")
    await cloud.settle()
    await cloud.post(f"/api/v1/servers/{server_id}/undelete/")
    await cloud.settle()
    changes = await _changes(cloud)
    assert len(changes) == 14
    for (_, _, reached, _), (_, left, _, _) in itertools.pairwise(changes):
        assert reached == left
    assert changes[-1][2] == await cloud.status(server_id) == "active"


async def test_a_command_that_changes_no_status_has_an_event_without_a_transition(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await cloud.post(f"/api/v1/servers/{server_id}/stop/")
    assert (await cloud.post(f"/api/v1/servers/{server_id}/power/", {"action": "hard_stop"})).status_code == 200
    told = (await cloud.get("/api/v1/account/events/")).json()["results"][0]
    assert (told["action"], told["transition"]) == ("server.hard_stop", None)


def _set_columns(statement: Statement[Any]) -> set[str]:
    """The columns that a statement sets in rows of servers which are there already."""
    sql = statement.compiled(db.SQLITE).sql
    parts = re.findall(r"(?:UPDATE|INSERT INTO) servers\b.*?\bSET (.*?)(?:\bWHERE\b|\bRETURNING\b|$)", sql, re.DOTALL)
    return {column for part in parts for column in re.findall(r'(?:^|, )"?(\w+)"? ?=', part)}


def test_nobody_but_transition_writes_a_servers_status() -> None:
    sets = {name: _set_columns(statement) for name, statement in STATEMENTS.items()}
    assert {name for name, columns in sets.items() if "status" in columns} == {f"{_DOOR}._SET_STATUS"}
    booted, discarded = (sets[f"vpsd.servers.updates.{name}"] for name in ("_SET_BOOTED", "_SET_DISCARDED"))
    assert "provisioned_at_ms" in booted & discarded  # by `values()`, with a `coalesce` and without


def test_a_statement_that_is_made_when_it_is_needed_does_not_write_it_either() -> None:
    """It stands in no module, so what it is made of and what its maker is called with is read off the code."""
    found: dict[str, set[str]] = {}
    for name, module in sorted(sys.modules.items()):
        if name.startswith("vpsd.") and name != _DOOR:
            code = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
            functions = [node for node in ast.walk(code) if isinstance(node, _FUNCTIONS)]
            makers = {function.name: function for function in functions if _writes_servers(function, module)}
            calls = [call for function in functions for call in _calls(function, set(makers))]
            for maker in makers.values():
                found[f"{name}.{maker.name}"] = _words(maker)
            for call in calls:
                found.setdefault(f"{name}: calls", set()).update(_words(call))
    plain = {"_update", "plan_id", "root_password_hash", "updated_at_ms"}
    assert found["vpsd.servers.commands: calls"] == plain | {"changes"}
    assert {name for name, words in found.items() if "status" in words} == set()
    assert "status" not in ServerChanges.__struct_fields__  # the names in `changes`


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _writes_servers(function: ast.AST, module: ModuleType) -> bool:
    """Whether a function makes a statement that changes rows of servers."""
    if not _calls(function, {"Statement"}):
        return False
    names = _words(function)
    values = [getattr(module, name, None) for name in names]
    clauses = [value for value in values if isinstance(value, Update | Insert)]
    about_servers = any(value is servers for value in [*values, *(clause.table for clause in clauses)])
    return about_servers and bool(clauses or {"update", "insert"} & names)


def _calls(function: ast.AST, names: set[str]) -> list[ast.Call]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]


def _words(node: ast.AST) -> set[str]:
    """Every name, attribute, keyword and text in a piece of code."""
    found = set()
    for part in ast.walk(node):
        for field in ("id", "attr", "arg", "value"):
            if isinstance(word := getattr(part, field, None), str):
                found.add(word)
    return found
