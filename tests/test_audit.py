"""`vpsd check`: what is unknown, what is missing, and its repair."""

from typing import Any

from sqlalchemy import delete, insert, update

from tests.cloud import Cloud
from vpsd.audit import Audit, Finding
from vpsd.core.db import Statement
from vpsd.hypervisor.names import disk_generation, disk_name
from vpsd.hypervisor.protocol import GuestSpec
from vpsd.lifecycle import Status
from vpsd.network.models import addresses
from vpsd.operations.models import operations
from vpsd.servers.models import Server, servers


async def _run(cloud: Cloud, statement: Any) -> None:
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(statement))


async def _audit(cloud: Cloud, *, fix: bool = False) -> list[Finding]:
    return await Audit(cloud.runtime, fix=fix).run()


async def _mended(cloud: Cloud) -> list[tuple[str, str]]:
    """What is found, seen to be the same without repair, and to be gone after it."""
    found = [(finding.kind, finding.text) for finding in await _audit(cloud)]
    assert [(finding.kind, finding.text) for finding in await _audit(cloud)] == found
    assert all(finding.fixed for finding in await _audit(cloud, fix=True))
    await cloud.settle()
    assert await _audit(cloud) == []
    return found


async def _gone(cloud: Cloud) -> Server:
    """A server that was deleted for good."""
    server = await cloud.have_server("gone")
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/?now=1")
    await cloud.settle()
    return await cloud.row(server)


def _spec(name: str, uuid: str) -> GuestSpec:
    return GuestSpec(name, name, uuid, 1, 256, "base", False, "", "52:54:00:00:00:01", "127.10.0.9", ())


async def test_a_cloud_at_rest_has_nothing_to_find(cloud: Cloud) -> None:
    await cloud.have_server("one")
    await cloud.have_server("two", Status.STOPPED)
    assert await _audit(cloud) == []


async def test_a_guest_and_a_disk_without_a_server_are_found_and_removed(cloud: Cloud) -> None:
    await cloud.have_server()
    gone = await _gone(cloud)
    await cloud.hypervisor.define(_spec(cloud.guest(gone.id), gone.uuid))
    await cloud.hypervisor.write_seed(cloud.guest((await _gone(cloud)).id), b"seed")
    cloud.hypervisor.serial_logs.add(cloud.guest((await _gone(cloud)).id))
    assert await _mended(cloud) == [("guest", "belongs to no server"), *[("volume", "belongs to no server")] * 2]


async def test_what_a_backup_and_a_restore_have_left_is_removed(cloud: Cloud) -> None:
    server, gone = await cloud.have_server(), await _gone(cloud)
    name, row = cloud.guest(server), await cloud.row(server)
    assert row.base is not None
    await cloud.hypervisor.ensure_disk(disk_name(name, disk_generation(row.uuid, "77777777")), row.base, 1 << 30)
    await cloud.hypervisor.export_disk(name, "a-mark", None)
    left = disk_name(cloud.guest(gone.id), disk_generation(gone.uuid, "55555555"))
    await cloud.hypervisor.ensure_disk(left, row.base, 1 << 30)
    assert await _mended(cloud) == [
        ("volume", "belongs to no server"),
        ("disk", "is not the server's any more"),
        ("copy", "was made for a backup that is over"),
    ]
    assert (await cloud.hypervisor.volumes()).disks == {await cloud.disk(server)}


async def test_an_image_that_was_sent_only_in_part_is_removed(cloud: Cloud) -> None:
    cloud.hypervisor.unfinished_bases.add("tiny-123456789abc")
    assert await _mended(cloud) == [("image", "was sent only in part")]


async def test_an_address_held_for_a_server_that_is_gone_is_freed(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await cloud.settle()
    assert await _mended(cloud) == []  # at rest, it is nobody's
    await _run(cloud, update(addresses).values(released_at_ms=None))
    assert await _mended(cloud) == [("address", "is held for server 1, which is gone")]


async def test_an_address_that_a_server_lost_is_held_again(cloud: Cloud) -> None:
    await cloud.have_server()
    await _run(cloud, delete(addresses))
    assert await _mended(cloud) == [("server", "does not hold its address 127.10.0.2")]


async def test_an_active_server_without_a_guest_gets_one(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.vanishes(cloud.guest(server))
    assert await _mended(cloud) == [("server", "has no guest on the host")]
    assert await cloud.status(server) == "active"


async def test_a_deleted_server_that_nobody_cleans_up_is_cleaned_up(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await _run(cloud, delete(operations).where(operations.c.command == "delete"))
    assert await _mended(cloud) == [("server", "is deleted, and nothing is cleaning up after it")]
    assert await cloud.hypervisor.guests() == {}


async def test_a_status_that_nothing_works_on_comes_to_rest(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await _run(cloud, update(servers).values(status="rebooting"))
    assert await _mended(cloud) == [("server", "is rebooting, and nothing is under way")]
    assert await cloud.status(server) == "active"  # its guest runs, so it was taken in again


async def test_a_lost_disk_stays_on_the_list_until_it_is_back(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.loses_disk(await cloud.disk(server))
    found = await _audit(cloud, fix=True)
    assert [finding.text for finding in found] == ["has no disk on the host"]
    assert await cloud.status(server) == "error"
    assert [finding.text for finding in await _audit(cloud)] == ["has no disk on the host"]


async def test_what_an_operation_works_on_is_left_alone(cloud: Cloud) -> None:
    await cloud.create()
    assert await _audit(cloud, fix=True) == []


async def test_only_what_was_done_is_said_to_be_repaired(cloud: Cloud) -> None:
    server, gone = await cloud.have_server(), await _gone(cloud)
    cloud.hypervisor.vanishes(cloud.guest(server))
    await cloud.hypervisor.write_seed(cloud.guest(gone.id), b"seed")

    async def stop_before_its_turn(call: str) -> None:
        if call == "remove":
            cloud.hypervisor.before_call = None
            assert (await cloud.post(f"/api/v1/servers/{server}/stop/")).status_code == 200

    cloud.hypervisor.before_call = stop_before_its_turn
    assert [(finding.text, finding.fixed) for finding in await _audit(cloud, fix=True)] == [
        ("belongs to no server", "removed from the host"),
        ("has no guest on the host", None),
    ]
    assert [operation["command"] for operation in await cloud.operations(server)] == ["create", "stop"]


async def test_an_address_that_another_server_took_meanwhile_is_not_said_to_be_held_again(cloud: Cloud) -> None:
    server, gone = await cloud.have_server(), await _gone(cloud)
    await _run(cloud, delete(addresses))
    await cloud.hypervisor.write_seed(cloud.guest(gone.id), b"seed")

    async def take_it(call: str) -> None:
        if call == "remove":
            cloud.hypervisor.before_call = None
            other = await cloud.create("other")
            await _run(cloud, insert(addresses).values(address="127.10.0.2", server_id=other, assigned_at_ms=0))

    cloud.hypervisor.before_call = take_it
    assert [(finding.name, finding.fixed) for finding in await _audit(cloud, fix=True)] == [
        (cloud.guest(gone.id), "removed from the host"),
        (f"{server} (web)", None),
    ]
