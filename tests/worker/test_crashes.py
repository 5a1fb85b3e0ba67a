"""kill -9 between any two calls to the hypervisor or the backups' target: another worker takes over, and the server
arrives as told.
"""

from collections.abc import Callable

import pytest

from tests.cloud import Cloud
from tests.killed import Killed
from tests.worker.told import assert_arrived, calls_of, delete, sample, told
from vpsd.audit import Audit
from vpsd.hosts.models import HostState
from vpsd.lifecycle import Command
from vpsd.operations.service import LEASE_SECONDS

MOMENTS = ("before_call", "after_call")


def kill_at(number: int) -> Callable[[str], None]:
    """Die at that call, counted from now."""
    seen = 0

    def call(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise Killed

    return call


async def kill(cloud: Cloud, command: Command, moment: str, number: int) -> None:
    """Kill the worker at that call, and see that another one brings the server where it shall be."""
    server = await told(cloud, command)
    strike = kill_at(number)
    cloud.hook(moment, strike)
    cloud.target.before_call = strike
    with pytest.raises(Killed):
        await cloud.work("first")
    cloud.hook(moment, None)
    cloud.target.before_call = None
    assert await cloud.work("second") == 0  # the dead worker's lease still holds
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    await assert_arrived(cloud, server, command, f"killed at call {number}")
    if command is not Command.DELETE:
        await delete(cloud, server)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("command", list(Command))
async def test_a_worker_killed_at_any_call_leaves_nothing_stuck_and_nothing_leaked(
    cloud: Cloud, command: Command, moment: str
) -> None:
    calls = await calls_of(cloud, command)
    assert calls
    for number in range(1, len(calls) + 1):
        await kill(cloud, command, moment, number)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_nor_does_one_on_postgresql_at_any_kind_of_call_in_any_command(cloud: Cloud, moment: str) -> None:
    await cloud.have_second_host(HostState.DISABLED)
    calls = {}
    for command in Command:
        calls[command] = await calls_of(cloud, command)
        await cloud.have_second_host(HostState.DISABLED)
    places = sample(calls)
    assert {command for command, _ in places} == set(Command)
    for command, index in places[MOMENTS.index(moment) :: len(MOMENTS)]:
        await kill(cloud, command, moment, index + 1)
        await cloud.have_second_host(HostState.DISABLED)


async def test_a_rebuild_given_up_once_the_old_disk_is_gone_goes_on_with_the_next_start(cloud: Cloud) -> None:
    server = await told(cloud, Command.REBUILD)

    def die_behind_the_removal(call: str) -> None:
        if call == "remove":
            raise Killed

    cloud.hypervisor.after_call = die_behind_the_removal
    with pytest.raises(Killed):
        await cloud.work("first")
    cloud.hypervisor.after_call = None
    cloud.clock.advance(2 * 3600)
    await cloud.work("second")
    assert await cloud.status(server) == "error"
    assert await Audit(cloud.runtime).run() == []
    assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200
    await cloud.settle()
    await assert_arrived(cloud, server, Command.REBUILD, "started")
