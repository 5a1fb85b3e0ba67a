"""Servers that have just been told a command, whichever it is, and where they arrive."""

import random
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from tests.cloud import Cloud
from vpsd.audit import Audit
from vpsd.backups import marks
from vpsd.core.money import MICROS
from vpsd.errors import Unusable
from vpsd.hosts.models import HostState
from vpsd.lifecycle import Command, Status

K = TypeVar("K")
NOTE = b"what the customer wrote"

TOLD = {
    Command.HARD_STOP: ("power", {"action": "hard_stop"}),
    Command.RESIZE: ("resize", {"plan_id": 3}),
    Command.GROW: ("resize", {"plan_id": 5}),
    Command.REBUILD: ("rebuild", {"os_id": 3}),
}


async def told(cloud: Cloud, command: Command) -> int:
    """A server that has just been told a command."""
    if command is Command.CREATE:
        return await cloud.create()
    if command is Command.MIGRATE:
        await cloud.have_second_host(HostState.DISABLED)  # it is made on the first
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
    elif command is Command.MIGRATE:
        cloud.hypervisor.writes(await cloud.disk(server), 5 << 20, NOTE)
        await cloud.have_second_host()
        for key in (await cloud.others["second"].volumes()).bases:  # it has to be sent anew each time
            await cloud.others["second"].delete_base(key)
        await cloud.migrate(server)
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


async def calls_of(cloud: Cloud, command: Command) -> list[str]:
    """The calls to the host and the backups' target that a command takes."""
    await marks.identify(
        cloud.runtime, cloud.runtime.repository, first_use=True
    )  # what is done once is tried elsewhere
    server = await told(cloud, command)
    calls = await recorded(cloud, cloud.work())
    await delete(cloud, server)
    return calls


async def recorded(cloud: Cloud, work: Awaitable[object]) -> list[str]:
    """The calls to the hosts and the backups' target that some work takes."""
    calls: list[str] = []
    cloud.hook("before_call", calls.append)
    cloud.target.before_call = calls.append
    await work
    cloud.hook("before_call", None)
    cloud.target.before_call = None
    return calls


def sample(calls: Mapping[K, Sequence[str]]) -> list[tuple[K, int]]:
    """Places among the calls of several commands, by a fixed seed: one of each command and of each kind of call."""
    chance = random.Random(1)
    of_kind: dict[str, list[tuple[K, int]]] = {}
    for command, names in calls.items():
        for index, name in enumerate(names):
            of_kind.setdefault(name, []).append((command, index))
    chosen = {chance.choice(places): None for places in of_kind.values()}
    missing = [command for command in calls if command not in {command for command, _ in chosen}]
    return [*chosen, *((command, chance.randrange(len(calls[command]))) for command in missing)]


async def delete(cloud: Cloud, server: int) -> None:
    """Delete a server and its backups, for good, and what the host had to be sent for it."""
    await cloud.have_balance(1000 * MICROS)
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/?now=1")
    await cloud.settle()
    for backup in (await cloud.get("/api/v1/backups/")).json()["results"]:
        assert backup["status"] == "completed"
        assert (await cloud.ask("DELETE", f"/api/v1/backups/{backup['id']}/")).status_code == 204
    await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == []
    for host in cloud.simulators:
        for key in (await host.volumes()).bases:
            with suppress(Unusable):  # another server's disk stands on it
                await host.delete_base(key)


_STOPS = {Command.STOP: Status.STOPPED, Command.HARD_STOP: Status.STOPPED, Command.SUSPEND: Status.SUSPENDED}
_STOPS |= {Command.SOFT_DELETE: Status.DELETED}


async def assert_arrived(cloud: Cloud, server: int, command: Command, how: str) -> None:
    """The server is where the command leads, with one of everything, and nothing is left over."""
    name = cloud.guest(server)
    here, *elsewhere = cloud.simulators
    if command is Command.MIGRATE:
        *elsewhere, here = cloud.simulators
        assert here.content(await cloud.disk(server), 5 << 20, len(NOTE)) == NOTE, how
        assert (await cloud.row(server)).previous_host_id is None, how
    volumes, guests = await here.volumes(), await here.guests()
    for other in elsewhere:
        left = await other.volumes()
        assert not (left.disks | left.seeds | (await other.guests()).keys()), how
    if command is Command.DELETE:
        assert (await cloud.get(f"/api/v1/servers/{server}/")).status_code == 404
        assert (set(guests), set(volumes.disks), set(volumes.seeds)) == (set(), set(), set()), how
        assert await cloud.addresses() == []
    else:
        assert await cloud.status(server) == _STOPS.get(command, Status.ACTIVE), how
        assert (set(guests), set(volumes.seeds)) == ({name}, {name}), how
        assert volumes.disks == {await cloud.disk(server)}, how
        assert not volumes.exports, how
        assert [held.server_id for held in await cloud.addresses()] == [server]
    assert await Audit(cloud.runtime).run() == [], how
