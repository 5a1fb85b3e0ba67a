"""An older copy of the database put back: the host has servers that no row speaks for, and their names come again."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import text, update

from tests.api.tables import rows
from tests.cloud import Cloud
from vpsd.audit import Audit
from vpsd.core.db import Statement
from vpsd.hosts.models import HostHealth
from vpsd.hypervisor.names import disk_generation, disk_name
from vpsd.hypervisor.protocol import Forward, GuestSpec
from vpsd.lifecycle import Status
from vpsd.servers.models import servers
from vpsd.worker.host_watcher import HostWatcher

SERVERS = "/api/v1/servers/"
LOST = "99999999-7a57-4a0c-9f0c-6a1b6d2e9f11"  # the uuid of a server that the present database does not know


async def have_lost(cloud: Cloud, server_id: int, *, generation: int = 0, address: str = "127.10.0.200") -> Any:
    """A running server on the host that has no row; all that there is of it."""
    name, host = cloud.guest(server_id), cloud.hypervisor
    disk = disk_name(name, generation)
    await cloud.have_server("another")  # there is a base on the host
    base = sorted((await host.volumes()).bases)[0]
    await host.ensure_disk(disk, base, 1 << 30)
    host.writes(disk, 0, b"somebody's")
    await host.write_seed(name, b"somebody's")
    mac = "52:54:00:00:00:01"
    await host.define(GuestSpec(name, disk, LOST, 1, 256, base, False, "", mac, address, (Forward(22, 22),)))
    await host.power_on(name)
    return await lost(cloud, server_id, disk)


async def lost(cloud: Cloud, server_id: int, disk: str) -> Any:
    name, host = cloud.guest(server_id), cloud.hypervisor
    return await host.guest(name), host.seed(name), host.content(disk, 0, 30), name in (await host.volumes()).seeds


@pytest.mark.parametrize("generation", [0, disk_generation(LOST, "12345678")])
async def test_a_new_server_with_the_id_of_a_lost_one_does_not_touch_it_and_costs_nothing(
    cloud: Cloud, generation: int
) -> None:
    before = await have_lost(cloud, 2, generation=generation)
    disk = disk_name(cloud.guest(2), generation)
    balance = await cloud.balance()
    assert await cloud.create("new") == 2  # nobody has looked at the host yet
    await cloud.settle()
    detail = (await cloud.get(f"{SERVERS}2/")).json()
    assert (detail["status"], detail["error"]) == ("error", "The host already has a guest of that name.")
    assert (await cloud.post(f"{SERVERS}2/start/")).status_code == 200
    await cloud.settle()
    assert await cloud.status(2) == "error"
    assert await lost(cloud, 2, disk) == before
    found = {(finding.kind, finding.name): finding for finding in await Audit(cloud.runtime, fix=True).run()}
    assert "older copy of the database" in found["guest", cloud.guest(2)].text
    assert all(finding.fixed is None for finding in found.values())
    assert (await cloud.post(f"{SERVERS}2/rebuild/", {"os_id": 1})).status_code == 200
    await cloud.settle()
    assert (await cloud.ask("DELETE", f"{SERVERS}2/")).status_code == 204
    await cloud.settle()
    assert (await cloud.get(f"{SERVERS}2/")).status_code == 404
    assert await lost(cloud, 2, disk) == before
    assert (await cloud.hypervisor.volumes()).disks == {await cloud.disk(1), disk}
    assert await cloud.balance() == balance


async def test_a_new_server_does_not_get_the_address_that_a_lost_one_has(cloud: Cloud) -> None:
    host = cloud.hypervisor
    await have_lost(cloud, 7, address="127.10.0.3")
    server = await cloud.create("new")
    await cloud.settle()
    row = await cloud.row(server)
    assert (row.status, row.ip_address, row.ssh_port) == ("active", "127.10.0.4", 22)
    held = [one["address"] for one in await rows(cloud.database, "addresses")]
    assert sorted(held) == ["127.10.0.2", "127.10.0.4"]
    async with cloud.writing() as ctx:  # what it has been told since is its own, and is not changed
        await ctx.tx.run(Statement(text("UPDATE addresses SET address = '127.10.0.3' WHERE address = '127.10.0.4'")))
    await cloud.post(f"{SERVERS}{server}/reboot/")
    await cloud.work()
    assert await cloud.status(server) == "rebooting"
    await host.power_off(cloud.guest(7))
    await cloud.settle()
    assert await cloud.status(server) == "active"
    guest = await host.guest(cloud.guest(server))
    assert guest is not None
    assert guest.address == "127.10.0.3"


async def test_a_server_whose_place_on_the_host_is_anothers_is_not_taken_for_running(cloud: Cloud) -> None:
    before = await have_lost(cloud, 2)
    server = await cloud.create("stopped")
    await cloud.settle()
    for status in (Status.STOPPED, Status.SUSPENDED, Status.DELETED):
        await cloud.force_status(server, status)
        cloud.clock.advance(1)
        await cloud.reconciler().reconcile()
        assert await cloud.status(server) == status
    assert await lost(cloud, server, cloud.guest(server)) == before


async def test_new_servers_get_ids_above_all_that_the_host_has(cloud: Cloud) -> None:
    await have_lost(cloud, 41)
    await cloud.hypervisor.write_seed(cloud.guest(57), b"of a guest that is undefined")
    cloud.runtime.host.status = HostHealth.CONNECTING
    watcher = HostWatcher(cloud.runtime, lambda _: None, lambda _: None)
    for _ in range(2):
        await watcher.look()
    assert await cloud.have_server("new") == 58
    cloud.runtime.host.status = HostHealth.UNREACHABLE
    await watcher.look()
    assert await cloud.have_server("newer") == 59


async def test_the_first_server_gets_an_id_above_all_that_the_host_has(cloud: Cloud) -> None:
    await cloud.hypervisor.write_seed(cloud.guest(3), b"seed")
    cloud.runtime.host.status = HostHealth.CONNECTING
    await HostWatcher(cloud.runtime, lambda _: None, lambda _: None).look()
    assert await cloud.create() == 4


async def test_check_tells_lost_servers_from_ownerless_guests_and_never_removes_them(cloud: Cloud) -> None:
    before = await have_lost(cloud, 41)
    await cloud.hypervisor.write_seed(cloud.guest(57), b"seed")
    for _ in range(2):
        found = await Audit(cloud.runtime, fix=True).run()
        assert [(one.kind, one.name, one.fixed) for one in found] == [
            ("guest", cloud.guest(41), None),
            ("volume", cloud.guest(57), None),
        ]
        assert all("older copy of the database" in one.text for one in found)
    assert await lost(cloud, 41, cloud.guest(41)) == before


@pytest.mark.parametrize("last", ["rebuild", "restore", "delete"])
async def test_a_server_that_an_older_vpsd_made_goes_on_working(cloud: Cloud, last: str) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    await _make_old(cloud, server)
    await cloud.post(f"{SERVERS}{server}/reboot/")
    await cloud.settle()
    assert (await cloud.status(server), await cloud.disk(server)) == ("active", cloud.guest(server))
    assert await Audit(cloud.runtime).run() == []
    if last == "delete":
        await cloud.ask("DELETE", f"{SERVERS}{server}/?now=1")
    elif last == "rebuild":
        await cloud.post(f"{SERVERS}{server}/rebuild/", {"os_id": 1})
    else:
        await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
    await cloud.settle()
    volumes = await cloud.hypervisor.volumes()
    assert volumes.disks == (set() if last == "delete" else {await cloud.disk(server)})
    assert cloud.guest(server) not in volumes.disks
    assert await Audit(cloud.runtime).run() == []


async def _make_old(cloud: Cloud, server: int) -> None:
    """A disk that is named like its guest, and a guest that nobody has put a mark on."""
    name, host, disk = cloud.guest(server), cloud.hypervisor, await cloud.disk(server)
    row = await cloud.row(server)
    assert row.base is not None
    spec = host.spec(name)
    await host.remove(name, [disk])
    await host.ensure_disk(name, row.base, 1 << 30)
    await host.write_seed(name, b"seed")
    await host.define(msgspec.structs.replace(spec, disk=name))
    await host.power_on(name)
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(update(servers).where(servers.c.id == server).values(disk=0)))
