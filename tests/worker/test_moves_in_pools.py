"""A server is moved between hosts that see the same pool: its disk stays where it is, whatever dies on the way."""

from contextlib import suppress

import pytest

from tests.cloud import Cloud
from tests.hosts.test_shared_pools import pair as pair
from tests.hosts.test_shared_pools import server_at
from tests.killed import Killed
from tests.worker.told import NOTE
from vpsd.audit import Audit
from vpsd.errors import Unusable
from vpsd.hosts.models import Host
from vpsd.operations.service import LEASE_SECONDS


async def about_to_move(cloud: Cloud, way: str) -> int:
    server = await server_at(cloud, "one")
    cloud.others["one"].writes(await cloud.disk(server), 5 << 20, NOTE)
    if way == "cold":

        def refuse(call: str) -> None:
            if call == "start_move":
                raise Unusable("These hosts are too different.")

        cloud.others["one"].in_call = refuse
    await cloud.migrate(server, host="two", cold=way == "cold")
    return server


async def assert_moved(cloud: Cloud, pair: list[Host], server: int) -> None:
    """It runs at the second host, on the disk that it had; nothing else is anywhere."""
    name, disk, (one, two) = cloud.guest(server), await cloud.disk(server), (cloud.others["one"], cloud.others["two"])
    row = await cloud.row(server)
    assert (row.status, row.host_id) == ("active", pair[1].id)
    assert (await two.guests())[name].is_running
    assert not await one.guests()
    volumes = await two.volumes()
    assert volumes.disks == {disk}
    assert volumes.seeds == {name}
    assert two.content(disk, 5 << 20, len(NOTE)) == NOTE
    assert await Audit(cloud.runtime).run() == []


@pytest.mark.parametrize("way", ["live", "cold"])
async def test_a_server_moves_within_a_pool_and_keeps_its_disk(cloud: Cloud, pair: list[Host], way: str) -> None:
    server = await about_to_move(cloud, way)
    await cloud.settle()
    await assert_moved(cloud, pair, server)
    assert len(cloud.others["one"].sent + cloud.others["two"].sent) == 1


@pytest.mark.parametrize("way", ["live", "cold"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_worker_killed_at_any_call_of_such_a_move_loses_no_disk(
    cloud: Cloud, pair: list[Host], way: str
) -> None:
    for number in range(1, 60):
        server = await about_to_move(cloud, way)
        seen, is_killed = 0, False

        def kill(_: str, number: int = number) -> None:
            nonlocal seen, is_killed
            seen += 1
            if seen == number:
                is_killed = True
                raise Killed

        for host in cloud.others.values():
            host.before_call = kill
        with suppress(Killed):
            await cloud.work("first")
        for host in cloud.others.values():
            host.before_call = None
        cloud.clock.advance(LEASE_SECONDS + 1)
        for _ in range(4):
            await cloud.settle()
        await assert_moved(cloud, pair, server)
        await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
        await cloud.settle()
        assert not (await cloud.others["one"].volumes()).disks
        if not is_killed:
            return
    pytest.fail("a move has no end")
