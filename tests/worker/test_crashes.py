"""kill -9 between any two calls to the hypervisor or the backups' target: another worker takes over, and the server
arrives as told.
"""

from collections.abc import Callable

import pytest

from tests.cloud import Cloud
from tests.killed import Killed
from vpsd.audit import Audit
from vpsd.backups import marks
from vpsd.core.money import MICROS
from vpsd.lifecycle import Command, Status
from vpsd.operations.service import LEASE_SECONDS

TOLD = {
    Command.HARD_STOP: ("power", {"action": "hard_stop"}),
    Command.RESIZE: ("resize", {"plan_id": 3}),
    Command.GROW: ("resize", {"plan_id": 5}),
    Command.REBUILD: ("rebuild", {"os_id": 3}),
}


def kill_at(number: int) -> Callable[[str], None]:
    """Die at that call, counted from now."""
    seen = 0

    def call(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise Killed

    return call


async def _told(cloud: Cloud, command: Command) -> int:
    """A server that has just been told a command."""
    if command is Command.CREATE:
        return await cloud.create()
    server = await cloud.have_server(status=Status.STOPPED if command is Command.START else Status.ACTIVE)
    if command in (Command.DELETE, Command.SOFT_DELETE, Command.UNDELETE):
        cloud.set(undelete_hours=0 if command is Command.DELETE else 1)
        assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
        if command is Command.UNDELETE:
            await cloud.work()
            assert (await cloud.post(f"/api/v1/servers/{server}/undelete/")).status_code == 200
    elif command is Command.CONFIGURE:
        await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"hostname": "new.example.com"})
    elif command in (Command.SUSPEND, Command.RESUME):
        await _suspend(cloud)
        if command is Command.RESUME:
            await cloud.work()
            await cloud.have_balance(1000 * MICROS)
            await cloud.biller().bill()
    elif command is Command.BACKUP:
        assert (await cloud.post("/api/v1/backups/", {"server_id": server})).status_code == 201
    elif command is Command.BACKUP_DAILY:
        await cloud.have_copy(server)
        await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"backups_enabled": True})
        cloud.clock.advance(86_400)
        await cloud.backup_scheduler().schedule()
    elif command is Command.RESTORE:
        backup = await cloud.have_copy(server)
        assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    elif command is Command.RECOVER:
        cloud.hypervisor.vanishes(cloud.guest(server))
        await cloud.reconciler().reconcile()
    else:
        await cloud.offer(5, storage_gb=5)
        path, body = TOLD.get(command, (command, None))
        answer = await cloud.post(f"/api/v1/servers/{server}/{path}/", body)
        assert answer.status_code == 200, answer.text
    return server


async def _suspend(cloud: Cloud) -> None:
    await cloud.have_balance(0)
    cloud.clock.advance(cloud.settings.grace_hours * 3600)
    await cloud.biller().bill()


async def _calls_of(cloud: Cloud, command: Command) -> int:
    await marks.identify(
        cloud.runtime, cloud.runtime.repository, first_use=True
    )  # what is done once is tried elsewhere
    server = await _told(cloud, command)
    before = len(cloud.hypervisor.calls) + len(cloud.target.calls)
    await cloud.work()
    calls = len(cloud.hypervisor.calls) + len(cloud.target.calls) - before
    await _delete(cloud, server)
    return calls


async def _delete(cloud: Cloud, server: int) -> None:
    await cloud.have_balance(1000 * MICROS)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/?now=1")
    await cloud.settle()
    for backup in (await cloud.get("/api/v1/backups/")).json()["results"]:
        assert backup["status"] == "completed"
        assert (await cloud.ask("DELETE", f"/api/v1/backups/{backup['id']}/")).status_code == 204
    await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == []


@pytest.mark.parametrize("moment", ["before_call", "after_call"])
@pytest.mark.parametrize("command", list(Command))
async def test_a_worker_killed_at_any_call_leaves_nothing_stuck_and_nothing_leaked(
    cloud: Cloud, command: Command, moment: str
) -> None:
    stops = {Command.STOP: Status.STOPPED, Command.HARD_STOP: Status.STOPPED, Command.SUSPEND: Status.SUSPENDED}
    stops |= {Command.SOFT_DELETE: Status.DELETED}
    arrives = stops.get(command, Status.ACTIVE)
    calls = await _calls_of(cloud, command)
    assert calls > 0
    for number in range(1, calls + 1):
        server = await _told(cloud, command)
        kill = kill_at(number)
        setattr(cloud.hypervisor, moment, kill)
        cloud.target.before_call = kill
        with pytest.raises(Killed):
            await cloud.work("first")
        setattr(cloud.hypervisor, moment, None)
        cloud.target.before_call = None
        assert await cloud.work("second") == 0  # the dead worker's lease still holds
        cloud.clock.advance(LEASE_SECONDS + 1)
        await cloud.settle()
        name = cloud.guest(server)
        volumes = await cloud.hypervisor.volumes()
        guests = await cloud.hypervisor.guests()
        if command is Command.DELETE:
            assert (await cloud.get(f"/api/v1/servers/{server}/")).status_code == 404
            assert (set(guests), set(volumes.disks), set(volumes.seeds)) == (set(), set(), set())
            assert await cloud.addresses() == []
        else:
            assert await cloud.status(server) == arrives, f"killed at call {number}"
            assert (set(guests), set(volumes.seeds)) == ({name}, {name})
            assert volumes.disks == {await cloud.disk(server)}
            assert not volumes.exports
            assert [held.server_id for held in await cloud.addresses()] == [server]
            await _delete(cloud, server)
        assert await Audit(cloud.runtime).run() == []
