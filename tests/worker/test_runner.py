"""Leases, fences, retries, deadlines, successors: each guard has a test that fails without it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from tests.api.tables import rows
from tests.cloud import Cloud
from tests.worker.told import assert_arrived, told
from vpsd.core.context import Ctx
from vpsd.core.db import Statement, Tx
from vpsd.errors import Busy, Misconfigured, Unavailable, Unusable
from vpsd.hosts.models import Address
from vpsd.hypervisor.protocol import Hypervisor
from vpsd.lifecycle import ENDS_GUEST, Command, Status
from vpsd.operations import service as operations
from vpsd.operations.service import LEASE_SECONDS, MAX_ATTEMPTS, Failure, Lease, LostLease
from vpsd.runtime import Hypervisors


async def test_an_operation_that_a_live_worker_has_is_not_taken(cloud: Cloud) -> None:
    await cloud.create()
    async with cloud.writing() as ctx:
        assert await operations.claim(ctx, "first") is not None
        assert await operations.claim(ctx, "second") is None
    cloud.clock.advance(LEASE_SECONDS - 1)
    async with cloud.writing() as ctx:
        assert await operations.claim(ctx, "second") is None


async def test_a_lease_that_ran_out_is_taken_over_and_its_old_holder_cannot_save(cloud: Cloud) -> None:
    await cloud.create()
    async with cloud.writing() as ctx:
        first = await operations.claim(ctx, "first")
    assert first is not None
    cloud.clock.advance(LEASE_SECONDS + 1)
    async with cloud.writing() as ctx:
        second = await operations.claim(ctx, "second")
    assert second is not None
    assert second.id == first.id
    stale = Lease.of(first)
    saves: list[Callable[[Ctx], Awaitable[object]]] = [
        lambda ctx: operations.save_step(ctx, stale, "power_on", 0.5),
        lambda ctx: operations.report(ctx, stale, 0.5, "still here"),
        lambda ctx: operations.renew(ctx, stale),
        lambda ctx: operations.hold_lease(ctx, stale),
        lambda ctx: operations.reschedule(ctx, stale, Failure("sorry", "sorry"), 0),
        lambda ctx: operations.finish(ctx, stale, None, None),
    ]
    for save in saves:
        with pytest.raises(LostLease):
            async with cloud.writing() as ctx:
                await save(ctx)
    async with cloud.writing() as ctx:
        await operations.save_step(ctx, Lease.of(second), "power_on", 0.5)


async def test_a_process_that_is_alone_takes_over_at_once_and_who_held_the_lease_cannot_save(cloud: Cloud) -> None:
    await cloud.create()
    async with cloud.writing() as ctx:
        first = await operations.claim(ctx, "first")
        assert first is not None
        await operations.end_leases(ctx)
        second = await operations.claim(ctx, "second")
    assert second is not None
    assert second.id == first.id
    with pytest.raises(LostLease):
        async with cloud.writing() as ctx:
            await operations.save_step(ctx, Lease.of(first), "power_on", 0.5)


async def test_what_a_worker_did_after_it_lost_its_lease_is_not_saved(cloud: Cloud) -> None:
    server = await cloud.create()

    async def lose_lease(call: str) -> None:
        if call != "power_on":
            return
        cloud.hypervisor.before_call = None
        cloud.clock.advance(LEASE_SECONDS + 1)
        cloud.hypervisor.low_ports = False
        assert await cloud.work("second") == 1
        assert (await cloud.row(server)).ssh_port == 2222

    cloud.hypervisor.before_call = lose_lease
    assert await cloud.runner("first").run_once()
    assert (await cloud.row(server)).ssh_port == 2222
    assert await cloud.status(server) == "active"
    assert [o["status"] for o in await cloud.operations(server)] == ["succeeded"]


async def test_a_long_step_keeps_its_lease(cloud: Cloud) -> None:
    await cloud.create()
    defining, renewed = asyncio.Event(), asyncio.Event()

    async def tick(seconds: float) -> None:
        assert seconds < LEASE_SECONDS / 2
        if defining.is_set():  # the second beat: the first has renewed the lease
            renewed.set()
            await asyncio.Event().wait()
        await defining.wait()
        cloud.clock.advance(LEASE_SECONDS - 1)

    async def wait_for_renewal(call: str) -> None:
        if call != "define":
            return
        defining.set()
        await renewed.wait()
        cloud.clock.advance(2)  # past the first lease, within the renewed one
        assert await cloud.work("second") == 0

    cloud.hypervisor.before_call = wait_for_renewal
    assert await cloud.runner("first", tick=tick).run_once()
    assert await cloud.status(1) == "active"
    assert [o["attempts"] for o in await cloud.operations(1)] == [1]


def _hang(call: str) -> None:
    """What a QEMU that does not answer has libvirt say."""
    if call in ("take", "request_shutdown"):
        raise Unavailable("cannot acquire state change lock")


@pytest.mark.parametrize("command", sorted(ENDS_GUEST))
async def test_a_guest_that_hangs_is_ended_although_it_cannot_be_marked(
    cloud: Cloud, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    server = await told(cloud, command)
    cloud.hypervisor.before_call = _hang
    await cloud.settle()
    cloud.hypervisor.before_call = None
    await assert_arrived(cloud, server, command, "its QEMU hangs")
    done = [one for one in await rows(cloud.database, "operations") if one["command"] == command]
    assert [(one["status"], one["attempts"]) for one in done] == [("succeeded", 1)]
    assert f"{command} of server {server} goes on with a guest that is not marked as its own" in caplog.text


@pytest.mark.parametrize("command", sorted(set(Command) - ENDS_GUEST))
async def test_nothing_else_is_done_to_a_guest_that_cannot_be_marked(cloud: Cloud, command: Command) -> None:
    await told(cloud, command)
    cloud.hypervisor.calls.clear()
    cloud.hypervisor.before_call = _hang
    assert await cloud.work() == 1
    looks = ("move_progress", "guest") if command is Command.MIGRATE else ()
    assert [call for call in cloud.hypervisor.calls if call not in ("take", *looks)] == []


async def test_a_guest_that_is_to_run_again_keeps_its_power_while_the_button_fails(cloud: Cloud) -> None:
    await told(cloud, Command.REBOOT)

    def fail(call: str) -> None:
        if call == "request_shutdown":
            raise Unavailable("cannot acquire state change lock")

    cloud.hypervisor.before_call = fail
    assert await cloud.work() == 1
    assert cloud.hypervisor.calls[-1] == "request_shutdown"


async def test_a_host_that_does_not_answer_is_asked_again_with_growing_pauses(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.hypervisor.broken = True
    pauses = []
    for _ in range(7):
        assert await cloud.work() == 1
        started = cloud.clock.now_ms()
        while not (due := await _due(cloud)):
            cloud.clock.advance(1)
        assert due
        pauses.append((cloud.clock.now_ms() - started) // 1000)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    (operation,) = await cloud.operations(server)
    assert operation["status"] == "queued"
    assert operation["attempts"] == 7
    assert operation["error"] == Unavailable.public
    assert await cloud.causes(server) == ["The simulated host does not answer."]
    cloud.hypervisor.broken = False
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def _due(cloud: Cloud) -> bool:
    async with cloud.reading() as ctx:
        operation = await operations.open_operation(ctx, 1)
    assert operation is not None
    return operation.run_at_ms <= cloud.clock.now_ms()


async def test_attempts_come_to_an_end_and_the_server_rests_in_error_saying_why(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.hypervisor.broken = True
    for _ in range(MAX_ATTEMPTS + 5):
        await cloud.work()
        cloud.clock.advance(31)
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert detail["status"] == "error"
    assert detail["error"] == f"Given up after {MAX_ATTEMPTS} attempts: {Unavailable.public}"
    assert await cloud.causes(server) == [
        f"Given up after {MAX_ATTEMPTS} attempts: The simulated host does not answer."
    ]
    (operation,) = await cloud.operations(server)
    assert (operation["status"], operation["attempts"]) == ("failed", MAX_ATTEMPTS)


async def test_a_deadline_ends_an_operation_that_nobody_could_finish(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.hypervisor.broken = True
    await cloud.work()
    cloud.clock.advance(3600 + 1)
    cloud.hypervisor.broken = False
    await cloud.work()
    assert await cloud.status(server) == "error"
    assert (await cloud.operations(server))[0]["error"].startswith("Given up after 1 attempts: ")


async def test_what_was_asked_for_while_no_worker_ran_is_done_however_late(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.clock.advance(24 * 3600)
    await cloud.work()
    assert await cloud.status(server) == "active"


async def test_an_operation_that_kills_every_worker_is_given_up(cloud: Cloud) -> None:
    server = await cloud.create()
    for _ in range(MAX_ATTEMPTS):
        async with cloud.writing() as ctx:
            assert await operations.claim(ctx, "doomed") is not None
        cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.work()
    assert await cloud.status(server) == "error"
    assert (await cloud.row(server)).error == f"Given up after {MAX_ATTEMPTS} attempts: the worker died"


async def test_what_cannot_be_had_is_not_tried_again(cloud: Cloud) -> None:
    server = await cloud.create()

    def refuse(call: str) -> None:
        if call == "ensure_disk":
            raise Unusable("The pool is full.")

    cloud.hypervisor.before_call = refuse
    await cloud.work()
    assert (await cloud.row(server)).error == Unusable.public
    assert await cloud.causes(server) == ["The pool is full."]
    assert [o["attempts"] for o in await cloud.operations(server)] == [1]


async def test_a_server_in_error_can_be_started_again_and_goes_on_where_it_stopped(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.hypervisor.never_boots = True
    await cloud.work()
    assert await cloud.status(server) == "error"
    cloud.hypervisor.never_boots = False
    answer = await cloud.post(f"/api/v1/servers/{server}/start/")
    assert answer.json()["server"]["status"] == "starting"
    await cloud.settle()
    assert await cloud.status(server) == "active"
    assert (await cloud.row(server)).error is None


async def test_a_boot_that_does_not_answer_is_tried_once_more_and_then_left_off(cloud: Cloud) -> None:
    cloud.hypervisor.never_boots = True
    server = await cloud.create()
    await cloud.work()
    assert cloud.hypervisor.calls.count("power_on") == 2
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    assert guest.power == "off"
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert detail["status"] == "error"
    assert detail["error"].startswith("The guest did not answer within 240 seconds of power-on, twice")
    assert detail["ip_address"] is None


async def test_a_guest_that_ignores_the_power_button_loses_its_plug_and_the_record_says_so(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.ignores_acpi = True
    await cloud.post(f"/api/v1/servers/{server}/stop/")
    await cloud.work()
    assert await cloud.status(server) == "stopped"
    assert (await cloud.operations(server))[-1]["detail"] == "did not shut down by ACPI within 90 s: powered off"


async def test_a_graceful_stop_is_recorded_as_one(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    assert (await cloud.operations(server))[-1]["detail"] == "shut down by ACPI"


async def test_a_host_that_may_not_open_low_ports_uses_high_ones(cloud: Cloud) -> None:
    cloud.hypervisor.low_ports = False
    server = await cloud.have_server()
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    assert detail["ssh"] == "ssh -p 2222 root@127.10.0.2"
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    assert [(f.host_port, f.guest_port) for f in guest.forwards] == [(2222, 22), (8080, 80), (8443, 443)]


async def test_delete_takes_over_from_a_create_that_no_worker_has_begun(cloud: Cloud) -> None:
    server = await cloud.create()
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    assert "define" not in cloud.hypervisor.calls
    assert await cloud.addresses() == []


async def test_delete_takes_over_from_a_boot_that_a_worker_is_waiting_for(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.hypervisor.never_boots = True
    # The boot waits in no time, a database takes some: it shall not have given up before the heartbeat has been there.
    settings = msgspec.structs.replace(cloud.settings, boot_timeout_seconds=3600)
    cloud.runtime = msgspec.structs.replace(cloud.runtime, settings=settings)
    beats = asyncio.Event()

    async def tick(seconds: float) -> None:
        await beats.wait()
        await asyncio.sleep(0)

    waiting = asyncio.Event()

    def notice(call: str) -> None:
        if call == "is_up":
            waiting.set()

    cloud.hypervisor.before_call = notice
    work = asyncio.create_task(cloud.runner("first", tick=tick).run_once())
    await waiting.wait()
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    beats.set()
    await work
    cloud.hypervisor.before_call = None
    await cloud.settle()
    assert cloud.hypervisor.calls.count("power_on") == 1
    assert await cloud.hypervisor.guests() == {}
    assert await cloud.addresses() == []


async def test_delete_takes_over_from_a_worker_that_died_before_anything_more_is_done(cloud: Cloud) -> None:
    server = await cloud.create()
    async with cloud.writing() as ctx:
        assert await operations.claim(ctx, "dead") is not None
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    assert "define" not in cloud.hypervisor.calls
    assert await cloud.addresses() == []
    assert (await cloud.row(server)).purged_at_ms is not None


async def test_delete_goes_on_trying_until_the_host_is_back(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.broken = True
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    for _ in range(MAX_ATTEMPTS + 10):
        await cloud.work()
        cloud.clock.advance(301)
    assert len(await cloud.addresses()) == 1  # held until nothing can listen on it any more
    cloud.hypervisor.broken = False
    await cloud.settle()
    assert await cloud.addresses() == []
    assert await cloud.hypervisor.guests() == {}


async def test_an_error_of_vpsds_own_is_tried_again_and_told(cloud: Cloud) -> None:
    server = await cloud.create()

    def stumble(call: str) -> None:
        if call == "define":
            raise KeyError("bug")

    cloud.hypervisor.before_call = stumble
    await cloud.work()
    (operation,) = await cloud.operations(server)
    assert operation["status"] == "queued"
    assert operation["error"] == "vpsd met an error of its own; the operator can see which."
    assert await cloud.causes(server) == ["internal error: KeyError('bug')"]
    cloud.hypervisor.before_call = None
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_a_reboot_leaves_the_guest_running_with_the_new_hostname_in_its_seed(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"hostname": "new.example.com"})
    answer = await cloud.post(f"/api/v1/servers/{server}/reboot/")  # pushes the seed's rewriting aside
    assert answer.status_code == 200
    await cloud.settle()
    assert b"new.example.com" in cloud.hypervisor.seed(cloud.guest(server))
    assert [(o["command"], o["status"]) for o in await cloud.operations(server)] == [
        ("create", "succeeded"),
        ("configure", "cancelled"),
        ("reboot", "succeeded"),
    ]


async def test_a_new_hostname_is_in_the_seed_before_anybody_reboots(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"hostname": "new.example.com"})
    await cloud.work()
    assert b"new.example.com" in cloud.hypervisor.seed(cloud.guest(server))
    assert await cloud.status(server) == "active"


async def test_two_workers_share_the_work_and_nothing_is_done_twice(cloud: Cloud) -> None:
    servers = [await cloud.create(f"web-{number}") for number in range(6)]
    await asyncio.gather(cloud.work("first"), cloud.work("second"))
    for server in servers:
        assert await cloud.status(server) == "active"
        assert [o["attempts"] for o in await cloud.operations(server)] == [1]
    assert len({held.address for held in await cloud.addresses()}) == 6


class _Late:
    """A transaction that looked before another one's operation was there."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._has_looked = False

    async def first(self, statement: Statement[Any], /, **values: Any) -> Any:
        if not self._has_looked:
            self._has_looked = True
            return None
        return await self._tx.first(statement, **values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


async def test_only_one_operation_can_be_open_on_a_server(cloud: Cloud) -> None:
    server = await cloud.have_server()
    async with cloud.writing() as ctx:
        await operations.add(ctx, server, Command.STOP)
    with pytest.raises(Busy):
        async with cloud.writing() as ctx:
            await operations.add(ctx, server, Command.REBOOT)
    # The index says so too, to those who come at the same moment.
    with pytest.raises(Busy):
        async with cloud.writing() as ctx:
            late = msgspec.structs.replace(ctx, tx=_Late(ctx.tx))
            await operations.add(late, server, Command.REBOOT)


async def test_a_used_up_address_pool_is_said_and_waits_for_an_address(cloud: Cloud) -> None:
    cloud.runtime = msgspec.structs.replace(
        cloud.runtime, settings=msgspec.structs.replace(cloud.settings, address_pool="127.10.0.0/30")
    )
    first, second = await cloud.create("first"), await cloud.create("second")
    await cloud.work()
    assert await cloud.status(first) == "active"
    (operation,) = await cloud.operations(second)
    assert operation["error"] == "No address is left for the server; the operator can add some."
    assert "VPSD_ADDRESS_POOL" in ((await cloud.causes(second))[0] or "")
    await cloud.ask("DELETE", f"/api/v1/servers/{first}/")
    await cloud.settle()
    assert await cloud.status(second) == "active"


async def test_a_host_whose_address_cannot_be_used_has_its_servers_wait_until_it_can(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    def has_no_driver(_: Address) -> Hypervisor:
        raise Misconfigured("no driver can use that address")

    server = await cloud.create()
    usable = cloud.runtime
    cloud.runtime = msgspec.structs.replace(usable, hypervisors=Hypervisors(has_no_driver))
    await cloud.work()
    (operation,) = await cloud.operations(server)
    assert (operation["status"], operation["attempts"]) == ("queued", 1)
    assert (
        await cloud.row(server)
    ).status_detail == "Waiting for its host, which cannot be used now. It is tried again by itself."
    assert not caplog.records
    cloud.runtime = usable
    cloud.clock.advance(60)
    await cloud.work()
    assert await cloud.status(server) == "active"


async def test_a_command_of_a_later_vpsd_is_left_to_it_and_holds_nobody_up(cloud: Cloud) -> None:
    first, second = await cloud.create("first"), await cloud.create("second")
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(text(f"UPDATE operations SET command = 'teleport' WHERE server_id = {first}")))
    await cloud.work()
    assert await cloud.status(second) == "active"
    assert [row["status"] for row in await rows(cloud.database, "operations")] == ["queued", "succeeded"]
