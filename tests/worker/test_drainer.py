"""A host is drained: a few servers at a time leave it, whoever asked and whichever worker does it."""

import pytest

from tests.cloud import Cloud
from tests.worker.test_moves import Hook
from vpsd.audit import Audit
from vpsd.core.context import OPERATOR
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostHealth, HostState
from vpsd.lifecycle import Command, Status
from vpsd.operations import service as operations
from vpsd.servers import draining
from vpsd.servers.draining import Stage
from vpsd.worker.drainer import Drainer


async def drain(cloud: Cloud, *, cold: bool = False) -> None:
    """Ask for it, as the command does."""
    async with cloud.writing() as ctx:
        await draining.begin(ctx, await hosts.row(ctx, cloud.runtime.host_id), cold=cold)
    await cloud.have_second_host()


async def stages(cloud: Cloud) -> dict[str, tuple[Stage, str | None]]:
    """How far each server on the first host is, as the command tells."""
    async with cloud.reading() as ctx:
        host = await hosts.row(ctx, cloud.runtime.host_id)
        left = await draining.look(ctx, host)
    async with cloud.runtime.rolled_back(OPERATOR) as ctx:
        left = await draining.find_refused(ctx, host, left)
    return {one.name: (one.stage, one.why) for one in left}


@pytest.fixture
async def drainer(cloud: Cloud) -> Drainer:
    """That of the first host, in a cloud in which servers are made there."""
    await cloud.have_second_host(HostState.DISABLED)
    return Drainer(cloud.runtime)


async def test_all_servers_leave_as_many_at_once_as_the_settings_say(cloud: Cloud, drainer: Drainer) -> None:
    running = [await cloud.have_server(f"web-{number}") for number in range(3)]
    stopped = await cloud.have_server("off", Status.STOPPED)
    await drainer.look()  # nobody has asked for it
    assert await stages_of_moves(cloud) == []
    await drain(cloud)
    under_way = []
    for _ in range(5):
        await drainer.look()
        await drainer.look()
        under_way.append(len(await stages_of_moves(cloud)))
        await cloud.work()
    assert under_way == [2, 2, 0, 0, 0]
    async with cloud.reading() as ctx:
        first, second = await hosts.list_hosts(ctx)
    assert (first.used_servers, second.used_servers, first.state) == (0, 4, HostState.DISABLED)
    assert [await cloud.status(server) for server in (*running, stopped)] == ["active"] * 3 + ["stopped"]
    assert await Audit(cloud.runtime).run() == []
    assert await stages(cloud) == {}


async def stages_of_moves(cloud: Cloud) -> list[int]:
    async with cloud.reading() as ctx:
        busy = await operations.busy_servers(ctx)
    return [server for server, command in busy.items() if command == Command.MIGRATE]


async def test_what_could_not_be_moved_stays_with_the_reason_and_is_tried_when_it_is_asked_for_again(
    cloud: Cloud, drainer: Drainer
) -> None:
    await cloud.have_server("web")
    await cloud.have_server("large", plan_id=3)
    await drain(cloud)
    async with cloud.writing() as ctx:
        second = await hosts.find_host_named(ctx, "second")
        await hosts.change_host(ctx, second.id, memory_mb=600, memory_ratio=1.0)
    Hook(cloud, "cold")  # they cannot move while they run
    for _ in range(3):
        await drainer.look()
        await cloud.work()
    found = await stages(cloud)
    assert found["large"] == (Stage.STAYS, "No other host takes the server now (second: too little memory_mb).")
    stage, why = found["web"]
    assert stage is Stage.STAYS
    assert str(why).startswith("It cannot move while it runs, and it may not be stopped for that. These hosts")
    assert len([one for one in await cloud.operations(1) if one["command"] == "migrate"]) == 1
    cloud.clock.advance(1)
    await drain(cloud, cold=True)
    await drainer.look()
    await cloud.work()
    assert set(await stages(cloud)) == {"large"}
    assert await cloud.status(1) == "active"


async def test_what_is_under_way_is_waited_for_and_a_drain_that_was_ended_moves_nothing_more(
    cloud: Cloud, drainer: Drainer
) -> None:
    server = await cloud.have_server()
    await drain(cloud)
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await drainer.look()
    assert await stages(cloud) == {"web": (Stage.WAITS, "reboot is under way")}
    await cloud.work()
    assert await stages(cloud) == {"web": (Stage.WAITS, None)}
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, draining_since_ms=None)
    await drainer.look()
    assert await stages_of_moves(cloud) == []


async def test_a_host_that_does_not_answer_is_not_drained(cloud: Cloud, drainer: Drainer) -> None:
    await cloud.have_server()
    await drain(cloud)
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, cloud.runtime.host_id, "no route to host")
        assert (await hosts.row(ctx, cloud.runtime.host_id)).health == HostHealth.UNREACHABLE
    await drainer.look()
    assert await stages_of_moves(cloud) == []
