"""A host burns whose pool others see: its servers run on their own disks again, and never twice on one."""

import pytest

from tests.cloud import Cloud
from tests.hosts.test_evacuation import settle
from tests.hosts.test_shared_pools import only, server_at
from tests.hosts.test_shared_pools import pair as pair
from vpsd.audit import Audit
from vpsd.backups.evacuation import Evacuated, evacuate
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostState
from vpsd.hypervisor.protocol import PowerState

MARK = b"written right before it burned"


async def burn(cloud: Cloud, host: Host, *, is_off: bool = True) -> None:
    """The host does not answer, and was said to be off; what runs there has ended if that is true."""
    simulator = cloud.others[host.name]
    for name, guest in (await simulator.guests()).items():
        if is_off and guest.is_running:
            simulator.happens(name, PowerState.CRASHED)
    simulator.broken = True
    async with cloud.writing() as ctx:
        await hosts.record_unreachable(ctx, host.id, "no route to host")
        await hosts.change_host(ctx, host.id, state=HostState.FENCED)


async def come_back(cloud: Cloud, host: Host) -> None:
    cloud.others[host.name].broken = False
    async with cloud.writing() as ctx:
        await hosts.record_facts(ctx, host.id, await cloud.others[host.name].facts(), "ok")


async def bring_up_elsewhere(cloud: Cloud, server: int, host: Host) -> Evacuated:
    async with cloud.writing() as ctx:
        return await evacuate(ctx, server, host)


@pytest.fixture
async def written(cloud: Cloud, pair: list[Host]) -> int:
    """A server on the first host that has a backup, and has written since."""
    server = await server_at(cloud, "one")
    await cloud.have_copy(server)
    cloud.others["one"].writes(await cloud.disk(server), 1 << 20, MARK)
    return server


async def test_a_server_runs_on_its_own_disk_where_another_host_sees_it(
    cloud: Cloud, pair: list[Host], written: int
) -> None:
    disk = await cloud.disk(written)
    await burn(cloud, pair[0])
    done = await bring_up_elsewhere(cloud, written, pair[0])
    assert (done.to, done.shared_pool, done.backup_id, done.why) == ("two", "fast", None, None)
    await settle(cloud, pair[1])
    row = await cloud.row(written)
    assert (row.status, row.host_id, row.previous_host_id) == ("active", pair[1].id, pair[0].id)
    there = cloud.others["two"]
    assert (await there.guests())[cloud.guest(written)].power is PowerState.RUNNING
    assert await cloud.disk(written) == disk
    assert there.content(disk, 1 << 20, len(MARK)) == MARK
    async with cloud.reading() as ctx:
        assert [(await hosts.row(ctx, host.id)).used_storage_gb for host in pair] == [0, 2]


async def test_the_old_guest_is_found_when_its_host_is_back_and_never_runs_beside_the_new_one(
    cloud: Cloud, pair: list[Host], written: int
) -> None:
    name, (old, new) = cloud.guest(written), (cloud.others["one"], cloud.others["two"])
    await burn(cloud, pair[0])
    await bring_up_elsewhere(cloud, written, pair[0])
    await settle(cloud, pair[1])
    await come_back(cloud, pair[0])
    with pytest.raises(Exception, match="has it open"):
        await old.power_on(name)  # whoever does that
    await cloud.reconciler(pair[0]).reconcile()
    assert not (await old.guests())[name].is_running
    (found,) = await Audit(cloud.runtime, fix=True).run()
    assert (found.name, found.fixed) == (name, "undefined on the host")
    assert not await old.guests()
    assert (await new.guests())[name].is_running
    assert new.content(await cloud.disk(written), 1 << 20, len(MARK)) == MARK
    assert name in (await new.volumes()).seeds
    assert await Audit(cloud.runtime).run() == []


async def test_where_the_host_was_not_off_the_new_guest_waits_until_the_old_one_has_been_ended(
    cloud: Cloud, pair: list[Host], written: int
) -> None:
    name, (old, new) = cloud.guest(written), (cloud.others["one"], cloud.others["two"])
    await burn(cloud, pair[0], is_off=False)
    await bring_up_elsewhere(cloud, written, pair[0])
    await cloud.work()
    assert not (await new.guests())[name].is_running
    await come_back(cloud, pair[0])
    assert (await old.guests())[name].is_running
    await cloud.reconciler(pair[0]).reconcile()
    assert (await old.guests())[name].power is PowerState.OFF
    await settle(cloud, pair[1])
    assert (await new.guests())[name].is_running
    assert await cloud.status(written) == "active"


async def test_where_nobody_sees_the_pool_any_more_the_latest_backup_is_taken(
    cloud: Cloud, pair: list[Host], written: int
) -> None:
    for host in pair:
        await burn(cloud, host)
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, pair[1].id, state=HostState.DISABLED)  # only out of reach
        await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.ENABLED)
    done = await bring_up_elsewhere(cloud, written, pair[0])
    assert (done.to, done.shared_pool, done.backup_id) == ("simulator", None, 1)


async def test_a_disk_that_is_safe_is_not_given_up_for_a_backup_where_there_is_no_room(
    cloud: Cloud, pair: list[Host], written: int
) -> None:
    await burn(cloud, pair[0])
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.ENABLED)
        await hosts.change_host(ctx, pair[1].id, cpus=0, cpu_ratio=0.01)
    done = await bring_up_elsewhere(cloud, written, pair[0])
    assert done.to is None
    assert str(done.why).startswith("its disk is safe in the pool fast, but at the other hosts: ")


async def test_one_that_has_no_disk_yet_is_made_anywhere(cloud: Cloud, pair: list[Host]) -> None:
    await only(cloud, "one")
    server = await cloud.create()
    await burn(cloud, pair[0])
    await only(cloud, "simulator")
    assert (await bring_up_elsewhere(cloud, server, pair[0])).to == "simulator"
    async with cloud.reading() as ctx:
        local = await hosts.row(ctx, cloud.runtime.host_id)
    await settle(cloud, local)
    assert await cloud.status(server) == "active"
