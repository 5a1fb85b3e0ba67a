"""A host burns: what it had is brought up elsewhere from backups, and never runs twice when it comes back."""

import pytest

from tests.cloud import Cloud
from vpsd.audit import Audit
from vpsd.backups.evacuation import Evacuated, evacuate
from vpsd.errors import Misconfigured
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostState
from vpsd.hypervisor.protocol import Hypervisor, PowerState
from vpsd.lifecycle import Status
from vpsd.operations import service as operations

MARK = b"written before the backup"


@pytest.fixture
async def second(cloud: Cloud) -> Host:
    """Another host, without servers so far."""
    async with cloud.writing() as ctx:
        host = await hosts.add_host(ctx, "second", "simulator", uri="simulator://second")
        await hosts.change_host(ctx, host.id, state=HostState.DISABLED)
    return host


async def burn(cloud: Cloud) -> None:
    """The first host is off, and everybody knows."""
    cloud.hypervisor.broken = True
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, cloud.runtime.host_id, "no route to host")
        await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.FENCED)
        for host in await hosts.list_hosts(ctx):
            if host.id != cloud.runtime.host_id:
                await hosts.change_host(ctx, host.id, state=HostState.ENABLED)


async def bring_up_elsewhere(cloud: Cloud, server: int) -> Evacuated:
    async with cloud.writing() as ctx:
        host = await hosts.row(ctx, cloud.runtime.host_id)
        return await evacuate(ctx, server, host)


async def settle(cloud: Cloud, host: Host) -> None:
    """Let everything come to rest that does not need the host that is off."""
    for _ in range(10):
        await cloud.work()
        await cloud.reconciler(host).reconcile()
        cloud.clock.advance(40)


async def come_back(cloud: Cloud) -> None:
    cloud.hypervisor.broken = False
    async with cloud.writing() as ctx:
        await hosts.record_facts(ctx, cloud.runtime.host_id, await cloud.hypervisor.facts(), "ok")


async def test_a_server_runs_elsewhere_with_what_its_latest_backup_holds(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.writes(await cloud.disk(server), 1 << 20, MARK)
    await cloud.have_copy(server, "snapshot")
    cloud.hypervisor.writes(await cloud.disk(server), 1 << 20, b"written after it......")
    before = await cloud.balance()
    await burn(cloud)
    done = await bring_up_elsewhere(cloud, server)
    assert (done.to, done.why, done.backup_id) == ("second", None, 1)
    await settle(cloud, second)
    assert (await cloud.status(server), (await cloud.row(server)).host_id) == ("active", second.id)
    there = cloud.others["second"]
    assert (await there.guests())[cloud.guest(server)].power is PowerState.RUNNING
    assert there.content(await cloud.disk(server), 1 << 20, len(MARK)) == MARK
    assert await cloud.balance() == before
    async with cloud.reading() as ctx:
        used = {room.id: room.used_vcpus for room in await hosts.rooms(ctx)}
    assert used == {cloud.runtime.host_id: 0, second.id: 1}


async def test_when_the_host_comes_back_its_old_guest_never_runs_beside_the_new_one(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    await burn(cloud)
    await bring_up_elsewhere(cloud, server)
    await settle(cloud, second)
    await come_back(cloud)
    assert (await cloud.hypervisor.guests())[cloud.guest(server)].power is PowerState.RUNNING
    await cloud.reconciler().reconcile()
    assert (await cloud.hypervisor.guests())[cloud.guest(server)].power is PowerState.OFF
    assert (await cloud.others["second"].guests())[cloud.guest(server)].power is PowerState.RUNNING
    assert await cloud.status(server) == "active"
    (found,) = await Audit(cloud.runtime, fix=True).run()
    assert (found.name, found.fixed) == (cloud.guest(server), "removed from the host")
    assert not await cloud.hypervisor.guests()
    assert not (await cloud.hypervisor.volumes()).disks
    assert await Audit(cloud.runtime).run() == []


async def test_what_is_left_behind_is_kept_where_it_may_be_all_that_there_is(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    await burn(cloud)
    await bring_up_elsewhere(cloud, server)
    await settle(cloud, second)
    await come_back(cloud)
    await cloud.reconciler().reconcile()
    cloud.others["second"].vanishes(cloud.guest(server))
    cloud.others["second"].loses_disk(await cloud.disk(server))
    findings = [one for one in await Audit(cloud.runtime, fix=True).run() if one.name == cloud.guest(server)]
    assert [(one.fixed, "look which is right" in one.text) for one in findings] == [(None, True)]
    assert (await cloud.hypervisor.volumes()).disks


async def test_a_server_without_a_backup_stays_and_comes_back_with_its_host(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await burn(cloud)
    assert (await bring_up_elsewhere(cloud, server)).why == "it has no backup"
    assert (await cloud.row(server)).host_id == cloud.runtime.host_id
    await come_back(cloud)
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_a_stopped_server_stays_stopped_and_starts_where_it_is_by_now(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    await cloud.have_copy(server)
    await burn(cloud)
    assert (await bring_up_elsewhere(cloud, server)).to == "second"
    await settle(cloud, second)
    assert await cloud.status(server) == "stopped"
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await settle(cloud, second)
    assert await cloud.status(server) == "active"
    assert (await cloud.others["second"].guests()).keys() == {cloud.guest(server)}


async def test_one_that_was_being_made_is_made_elsewhere(cloud: Cloud, second: Host) -> None:
    server = await cloud.create()
    await burn(cloud)
    await cloud.work()
    assert await cloud.status(server) == "provisioning"
    done = await bring_up_elsewhere(cloud, server)
    assert (done.to, done.backup_id) == ("second", None)
    await settle(cloud, second)
    assert await cloud.status(server) == "active"
    assert (await cloud.others["second"].guests()).keys() == {cloud.guest(server)}


async def test_where_no_host_has_room_a_server_stays_and_it_is_said_why(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    await burn(cloud)
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, second.id, location="us-east")
    assert "no host for new servers at us-west" in str((await bring_up_elsewhere(cloud, server)).why)
    async with cloud.reading() as ctx:
        assert (await hosts.room(ctx, cloud.runtime.host_id)).used_vcpus == 1


async def test_an_evacuation_that_is_repeated_moves_nothing_twice(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    await burn(cloud)
    await bring_up_elsewhere(cloud, server)
    assert (await bring_up_elsewhere(cloud, server)).why == "it is not on that host any more"


async def test_servers_of_a_placement_group_stay_apart_when_they_are_brought_up_elsewhere(
    cloud: Cloud, second: Host
) -> None:
    group = (await cloud.post("/api/v1/placement-groups/", {"name": "database"})).json()["id"]
    server = await cloud.create("db-1", placement_group_id=group)
    await cloud.work()
    await cloud.have_copy(server)
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, second.id, state=HostState.ENABLED)
    await cloud.create("db-2", placement_group_id=group)
    await burn(cloud)
    assert "a server of that placement group already" in str((await bring_up_elsewhere(cloud, server)).why)
    assert (await cloud.row(server)).host_id == cloud.runtime.host_id


async def test_a_host_with_an_address_that_cannot_be_used_does_not_keep_the_audit_from_the_others(
    cloud: Cloud, second: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = cloud.runtime.hypervisors.at

    def refuse(host: Host) -> Hypervisor:
        if host.id == second.id:
            raise Misconfigured("no driver can work with that address")
        return at(host)

    monkeypatch.setattr(cloud.runtime.hypervisors, "at", refuse)
    (found,) = await Audit(cloud.runtime).run()
    assert (found.name, found.text) == ("second", "cannot be looked at: no driver can work with that address")


async def test_a_worker_that_still_has_a_job_at_the_host_saves_nothing_any_more(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    async with cloud.writing() as ctx:
        claimed = await operations.claim(ctx, "late")
    assert claimed is not None
    await burn(cloud)
    await bring_up_elsewhere(cloud, server)
    with pytest.raises(operations.LostLease):
        async with cloud.writing() as ctx:
            await operations.hold_lease(ctx, operations.Lease.of(claimed))
    await settle(cloud, second)
    assert (await cloud.status(server), (await cloud.row(server)).host_id) == ("active", second.id)


async def test_an_old_guest_is_off_at_once_also_while_the_new_one_is_made(cloud: Cloud, second: Host) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    await burn(cloud)
    await bring_up_elsewhere(cloud, server)
    await come_back(cloud)
    async with cloud.reading() as ctx:
        assert await operations.open_operation(ctx, server) is not None
    await cloud.reconciler().reconcile()
    assert (await cloud.hypervisor.guests())[cloud.guest(server)].power is PowerState.OFF
