"""The world wins: what happens on the host by itself reaches the rows."""

import msgspec
import pytest
from sqlalchemy import text

from tests.cloud import Cloud
from vpsd.core.db import Statement
from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import PowerState
from vpsd.hypervisor.simulator import Simulator
from vpsd.lifecycle import AT_REST, Command, Status
from vpsd.operations import service as operations
from vpsd.servers import seen
from vpsd.worker.reconcile import CORRECTIONS


async def test_a_guest_that_powers_itself_off_is_stopped(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "stopped"
    assert [o["command"] for o in await cloud.operations(server)] == ["create"]
    event = (await cloud.get("/api/v1/account/events/")).json()["results"][0]
    assert (event["action"], event["actor"]) == ("server.status", "vpsd")
    assert event["transition"] == {"from": "active", "to": "stopped"}


async def test_a_guest_that_reboots_itself_is_told_of_once_and_a_reboot_that_was_asked_for_is_not(cloud: Cloud) -> None:
    server = await cloud.have_server()
    reconcilers = [cloud.reconciler() for _ in range(2)]
    for reconciler in reconcilers:  # of two workers, which hear the same
        reconciler.watch()
    cloud.hypervisor.reboots(cloud.guest(server))
    for reconciler in reconcilers:
        await reconciler.reconcile()
    assert await _reboots(cloud) == [("vpsd", "the guest rebooted by itself")]
    cloud.clock.advance(10)
    cloud.hypervisor.reboots(cloud.guest(server))
    await reconcilers[0].reconcile()
    assert len(await _reboots(cloud)) == 2
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.settle()
    await reconcilers[0].reconcile()
    assert [actor for actor, _ in await _reboots(cloud)] == ["token", "vpsd", "vpsd"]


async def _reboots(cloud: Cloud) -> list[tuple[str, str | None]]:
    found = (await cloud.get("/api/v1/account/events/")).json()["results"]
    return [(event["actor"], event["detail"]) for event in found if event["action"] == "server.reboot"]


@pytest.mark.parametrize("power", [PowerState.CRASHED, PowerState.PAUSED])
async def test_a_guest_that_died_or_was_paused_runs_again(cloud: Cloud, power: PowerState) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.happens(cloud.guest(server), power)
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "starting"
    await cloud.work()
    assert await cloud.status(server) == "active"
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    assert guest.power is PowerState.RUNNING


async def test_a_guest_that_died_under_a_command_of_a_later_vpsd_is_left_to_that(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.post(f"/api/v1/servers/{server}/backup/")
    async with cloud.writing() as ctx:
        teleport = Statement(text("UPDATE operations SET command = 'teleport' WHERE finished_at_ms IS NULL"))
        await ctx.tx.run(teleport)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
    await cloud.settle()
    assert [o["command"] for o in await cloud.operations(server)] == ["create", "teleport"]
    refused = await cloud.post(f"/api/v1/servers/{server}/reboot/")
    assert refused.json()["code"] == "busy"
    assert "Another operation (teleport) on this server is under way" in refused.json()["detail"]


async def test_a_guest_that_was_undefined_is_defined_anew_on_its_own_disk(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.vanishes(cloud.guest(server))
    await cloud.settle()
    assert await cloud.status(server) == "active"
    assert cloud.hypervisor.calls.count("ensure_disk") == 1


async def test_a_lost_disk_is_never_replaced_by_an_empty_one(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.vanishes(cloud.guest(server))
    cloud.hypervisor.loses_disk(await cloud.disk(server))
    await cloud.settle()
    row = await cloud.row(server)
    assert (row.status, row.error) == ("error", "The server's disk is gone from the host.")


async def test_a_guest_that_keeps_dying_is_started_three_times_an_hour_and_no_more(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for _ in range(3):
        cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
        await cloud.settle()
        assert await cloud.status(server) == "active"
        cloud.clock.advance(1)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
    await cloud.settle()
    assert await cloud.status(server) == "error"
    assert "after 3 recoveries within an hour" in ((await cloud.row(server)).error or "")
    await cloud.post(f"/api/v1/servers/{server}/start/")
    await cloud.settle()
    cloud.clock.advance(3600)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_restores_that_fail_cost_a_server_no_recovery(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)

    def is_damaged(call: str) -> None:
        if call == "get":
            raise Unusable("The backup is damaged.")

    for _ in range(5):
        cloud.target.before_call = is_damaged
        await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
        await cloud.work()
        assert await cloud.status(server) == "error"
        cloud.target.before_call = None
        cloud.clock.advance(1)
        await cloud.reconciler().reconcile()
        await cloud.work()
        assert await cloud.status(server) == "active"
        cloud.clock.advance(1)
    for number in range(4):  # those that are its guest's own fault are counted as before
        cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
        await cloud.reconciler().reconcile()
        await cloud.work()
        cloud.clock.advance(1)
        assert await cloud.status(server) == ("active" if number < 3 else "error")


async def test_a_stopped_server_that_somebody_started_is_taken_in(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.RUNNING)
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_nothing_is_touched_while_an_operation_is_open(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.post(f"/api/v1/servers/{server}/stop/")
    cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "stopping"
    assert [o["command"] for o in await cloud.operations(server)] == ["create", "stop"]


async def test_a_look_that_is_older_than_the_row_says_nothing(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)

    async def start_after_the_look(call: str) -> None:
        if call == "guests":
            cloud.hypervisor.after_call = None
            await cloud.reconciler().reconcile()  # another worker's
            assert await cloud.status(server) == "stopped"
            await cloud.post(f"/api/v1/servers/{server}/start/")
            await cloud.work()

    cloud.hypervisor.after_call = start_after_the_look
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "active"


async def test_an_operation_that_began_since_the_look_is_left_its_server(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    async with cloud.writing() as ctx:
        before = await seen.one(ctx, cloud.runtime.host_id, server)
        await operations.add(ctx, server, Command.CONFIGURE)
    assert before is not None
    assert not await cloud.reconciler().correct(before, guest)
    assert await cloud.status(server) == "active"


async def test_a_hostname_changed_while_another_operation_was_open_reaches_the_seed_afterwards(cloud: Cloud) -> None:
    server = await cloud.have_server()
    async with cloud.writing() as ctx:
        await operations.add(ctx, server, Command.RECOVER)
        await operations.claim(ctx, "busy")
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"hostname": "late.example.com"})
    async with cloud.reading() as ctx:
        operation = await operations.open_operation(ctx, server)
    assert operation is not None
    async with cloud.writing() as ctx:
        await operations.finish(ctx, operations.Lease.of(operation), None, None)
    cloud.clock.advance(1)
    await cloud.reconciler().reconcile()
    await cloud.work()
    assert b"late.example.com" in cloud.hypervisor.seed(cloud.guest(server))


async def test_a_host_that_does_not_answer_changes_no_row(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.broken = True
    with pytest.raises(Exception, match="does not answer"):
        await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "active"


def test_only_servers_at_rest_are_judged() -> None:
    assert {status for status, _ in CORRECTIONS} == AT_REST


async def test_a_guest_that_arrives_from_another_host_is_left_alone(cloud: Cloud) -> None:
    server = await cloud.have_server()
    name, here, other = cloud.guest(server), cloud.hypervisor, Simulator(clock=cloud.clock)
    spec = here.spec(name)
    layout = await here.disk_layout(spec.disk)
    assert layout is not None
    other.move_seconds = 60.0
    seed = here.seed(name)
    await other.write_seed(name, seed)
    await other.prepare_disk(spec.disk, msgspec.structs.replace(layout, base=None))
    await here.remove(name)
    await other.define(spec)
    await other.power_on(name)
    await here.prepare_disk(spec.disk, msgspec.structs.replace(layout, base=None))
    await here.write_seed(name, seed)
    await other.start_move(spec, here)
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "active"
    assert [one["command"] for one in await cloud.operations(server)] == ["create"]
    cloud.clock.advance(61)
    guest = await here.guest(name)
    assert guest is not None
    assert (guest.power, guest.moving) == (PowerState.RUNNING, False)
