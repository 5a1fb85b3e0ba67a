"""One writer of status: it goes by the table, and the event that tells of a change is written with it."""

import itertools
import re
from pathlib import Path

import pytest

import vpsd
from tests.cloud import Cloud
from vpsd.lifecycle import Command, Status
from vpsd.servers import queries
from vpsd.servers.commands import enqueue
from vpsd.servers.faults import CommandRefused
from vpsd.servers.transitions import ended, found, given, transition

_PRODUCT = Path(vpsd.__file__).parent


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


def test_nobody_but_transition_writes_a_servers_status() -> None:
    """Read off the code: an UPDATE of servers that names `status` stands in one file."""
    writers = set()
    for path in _PRODUCT.rglob("*.py"):
        if "migrations" in path.parts:
            continue
        text = path.read_text()
        for match in re.finditer(r"update\(servers\)|servers\.update\(\)", text):
            # The statement goes on until the brackets that stand around it are closed.
            if re.search(r'["\(]status["=]', _statement(text, match.start())):
                writers.add(path.relative_to(_PRODUCT).as_posix())
    assert writers == {"servers/transitions.py"}
    # Statements whose columns are made elsewhere take them from these, none of which is the status.
    for name, columns in (("servers/commands.py", "_update("), ("servers/updates.py", "_set(")):
        for line in (_PRODUCT / name).read_text().splitlines():
            assert not (columns in line and '"status"' in line), line


def _statement(text: str, start: int) -> str:
    begin = text.rfind("\n\n", 0, start)
    end = text.find("\n\n", start)
    return text[begin:end]
