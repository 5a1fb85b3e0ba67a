"""The clock is set, or the machine sleeps: nothing is stuck, lost, given up or done twice because of it."""

import logging
import random
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from tests.api.tables import change, rows
from tests.billing.books import DAY, HOUR, assert_right, charges_of
from tests.cloud import Cloud
from tests.killed import Killed
from tests.worker.test_crashes import kill_at
from tests.worker.told import told
from vpsd.accounts.models import accounts
from vpsd.audit import Audit
from vpsd.backups.models import backups
from vpsd.core.db import Statement
from vpsd.core.jumps import ClockJumps
from vpsd.errors import Unavailable
from vpsd.hypervisor.protocol import GuestStats, PowerState
from vpsd.lifecycle import Command, Status
from vpsd.network.models import addresses
from vpsd.operations import service as operations
from vpsd.operations.models import operations as operation_table
from vpsd.operations.service import LEASE_SECONDS
from vpsd.servers.models import servers
from vpsd.servers.schedule import next_backup_slot_ms
from vpsd.worker import clock_jumps
from vpsd.worker.biller import Biller

SERVERS = "/api/v1/servers/"
JUMPS = [-HOUR, -20, 2 * HOUR]
QUIET = 15 * 60
RESTS = {Command.STOP: Status.STOPPED, Command.HARD_STOP: Status.STOPPED, Command.SUSPEND: Status.SUSPENDED}
RESTS |= {Command.SOFT_DELETE: Status.DELETED, Command.DELETE: Status.DELETING}


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_clock_that_is_set_right_after_a_claim_gives_up_nothing(cloud: Cloud, seconds: int) -> None:
    server, runner = await cloud.create(), cloud.runner()
    claimed = await runner._claim()
    assert claimed is not None
    cloud.clock.jump(seconds)
    await runner.work(*claimed)
    assert await cloud.status(server) == Status.ACTIVE


@pytest.mark.parametrize("command", list(Command))
async def test_a_clock_that_is_set_at_every_call_costs_no_operation_anything(cloud: Cloud, command: Command) -> None:
    server, chance = await told(cloud, command), random.Random(command)

    def is_set(_: str) -> None:
        cloud.clock.jump(chance.choice(JUMPS))

    cloud.hypervisor.after_call = cloud.target.before_call = is_set
    await cloud.settle()
    cloud.hypervisor.after_call = cloud.target.before_call = None
    made = [one for one in await rows(cloud.database, "operations") if one["command"] == command]
    assert [(one["status"], one["attempts"]) for one in made] == [("succeeded", 1)]
    assert "did not" not in (made[0]["detail"] or "")  # shut down by ACPI in its time
    assert (await cloud.row(server)).status_detail is None  # nor is a boot said to have been silent
    assert await cloud.status(server) == RESTS.get(command, Status.ACTIVE)
    assert await Audit(cloud.runtime).run() == []


@pytest.mark.parametrize("seconds", JUMPS)
@pytest.mark.parametrize("command", [Command.CREATE, Command.RESTORE, Command.DELETE])
async def test_what_a_dead_worker_had_is_taken_over_whatever_the_clock_shows(
    cloud: Cloud, command: Command, seconds: int
) -> None:
    server = await told(cloud, command)
    cloud.hypervisor.before_call = kill_at(1 if command is Command.DELETE else 2)
    with pytest.raises(Killed):
        await cloud.work("first")
    cloud.hypervisor.before_call = None
    cloud.clock.jump(seconds)
    assert await cloud.work("second") == 0  # it may live, and would renew its lease now
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.work("second")
    assert await cloud.status(server) == RESTS.get(command, Status.ACTIVE)
    assert (await cloud.hypervisor.guest(cloud.guest(server)) is None) == (command is Command.DELETE)


async def test_a_worker_that_lives_keeps_what_it_has_when_the_machine_has_slept(cloud: Cloud) -> None:
    server = await cloud.create()
    async with cloud.writing() as ctx:
        mine = await operations.claim(ctx, "lives")
    assert mine is not None
    cloud.clock.jump(2 * HOUR)
    assert await cloud.work("other") == 0
    async with cloud.writing() as ctx:
        await operations.renew(ctx, operations.Lease.of(mine))
    cloud.clock.advance(LEASE_SECONDS - 1)
    assert await cloud.work("other") == 0
    async with cloud.writing() as ctx:
        await operations.hold_lease(ctx, operations.Lease.of(mine))
    assert await cloud.status(server) == "provisioning"


@pytest.mark.parametrize("seconds", JUMPS)
async def test_what_waits_for_its_next_try_has_it_in_time_and_is_not_given_up(cloud: Cloud, seconds: int) -> None:
    server = await cloud.create()
    cloud.hypervisor.broken = True
    for _ in range(3):
        await cloud.work()
        cloud.clock.advance(30)
    cloud.clock.jump(seconds)
    await cloud.work()
    cloud.hypervisor.broken = False
    cloud.clock.advance(30)
    await cloud.work()
    assert await cloud.status(server) == "active"


async def test_a_boot_has_all_of_its_time_when_the_clock_is_set_forward(cloud: Cloud) -> None:
    cloud.hypervisor.boot_seconds, cloud.hypervisor.has_agent = 30, False
    server = await cloud.create()

    def is_set(call: str) -> None:
        if call == "is_up":
            cloud.hypervisor.after_call = None
            cloud.clock.jump(2 * HOUR)

    cloud.hypervisor.after_call = is_set
    await cloud.work()
    row = await cloud.row(server)
    assert (row.status, row.status_detail) == ("active", None)


async def test_a_try_that_fails_after_the_clock_was_set_forward_is_not_the_last(cloud: Cloud) -> None:
    server = await cloud.create()

    def fails_late(call: str) -> None:
        if call == "define":
            cloud.hypervisor.before_call = None
            cloud.clock.jump(2 * HOUR)
            cloud.hypervisor.broken = True

    cloud.hypervisor.before_call = fails_late
    await cloud.work()
    assert await cloud.status(server) == "provisioning"
    cloud.hypervisor.broken = False
    cloud.clock.advance(30)
    await cloud.work()
    assert await cloud.status(server) == "active"


async def test_a_clock_that_was_an_hour_ahead_gives_no_operation_an_hour_more(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.clock.jump(-HOUR)
    cloud.hypervisor.broken = True
    cloud.set(boot_timeout_seconds=30)
    for _ in range(61):
        await cloud.work()
        cloud.clock.advance(60)
    await cloud.work()
    assert await cloud.status(server) == "error"


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_deletion_is_done_at_once_whatever_the_clock_was_set_to(cloud: Cloud, seconds: int) -> None:
    server = await cloud.have_server()
    assert (await cloud.ask("DELETE", f"{SERVERS}{server}/?now=1")).status_code == 204
    cloud.clock.jump(seconds)
    await cloud.work()
    assert await cloud.hypervisor.guest(cloud.guest(server)) is None


@pytest.mark.parametrize("seconds", JUMPS)
async def test_what_happens_on_the_host_is_noticed_whatever_the_clock_was_set_to(cloud: Cloud, seconds: int) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    cloud.clock.jump(seconds)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    await reconciler.reconcile()
    assert await cloud.status(server) == "stopped"


async def test_a_reboot_is_told_of_although_one_by_a_clock_that_was_ahead_was_told_of_before(cloud: Cloud) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    reconciler.watch()
    for seconds in (0, -HOUR):
        cloud.clock.jump(seconds)
        cloud.hypervisor.reboots(cloud.guest(server))
        await reconciler.reconcile()
    events = (await cloud.get("/api/v1/account/events/")).json()["results"]
    assert [one["action"] for one in events].count("server.reboot") == 2


async def test_recoveries_of_a_clock_that_was_ahead_do_not_count(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.clock.jump(1000 * DAY)
    for number in range(4):
        if number == 3:
            cloud.clock.jump(-1000 * DAY)
        cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
        await cloud.reconciler().reconcile()
        await cloud.work()
        cloud.clock.advance(1)
    assert await cloud.status(server) == "active"


async def test_a_paused_guest_is_resumed_as_soon_as_by_a_clock_that_nobody_sets(cloud: Cloud) -> None:
    server, reconciler = await cloud.have_server(), cloud.reconciler()
    cloud.hypervisor.storage.fails = True
    cloud.hypervisor.meets_its_storage(cloud.guest(server))
    await reconciler.reconcile()
    cloud.hypervisor.storage.fails = False
    cloud.clock.jump(-HOUR)
    cloud.clock.advance(60)
    await reconciler.reconcile()
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    assert guest.power is PowerState.RUNNING


async def test_a_guest_is_asked_for_its_keys_although_the_clock_was_set_back(cloud: Cloud) -> None:
    await cloud.have_server()
    asked: list[str] = []
    cloud.hypervisor.guest_run = lambda name, _argv, _stdin: asked.append(name)
    reader = cloud.guest_reader()
    await reader.look()
    cloud.clock.jump(-HOUR)
    cloud.clock.advance(3)
    await reader.look()
    assert len(asked) == 2


@pytest.mark.parametrize("seconds", JUMPS)
async def test_the_books_are_right_and_nothing_is_charged_by_a_clock_that_was_just_set(
    cloud: Cloud, seconds: int
) -> None:
    server, biller = await cloud.have_server(), cloud.biller()
    cloud.clock.advance(3 * HOUR)
    await biller.bill()
    before = await charges_of(cloud, server)
    cloud.clock.jump(seconds)
    await biller.bill()
    assert await charges_of(cloud, server) == before
    cloud.clock.jump(-seconds)  # it was wrong only for a moment
    for _ in range(8):
        cloud.clock.advance(HOUR / 2)
        await biller.bill()
    made = await charges_of(cloud, server)
    assert len(made) > len(before)
    assert all(one.to_ms == later.from_ms for one, later in pairwise(made))
    assert made[-1].to_ms == cloud.clock.now_ms() // 3_600_000 * 3_600_000
    await assert_right(cloud)


async def test_a_clock_that_is_years_ahead_for_a_moment_suspends_deletes_and_expires_nothing(cloud: Cloud) -> None:
    server, deleted = await cloud.have_server(), await cloud.have_server("deleted")
    backup = await cloud.have_copy(server)
    await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"backups_enabled": True})
    cloud.set(undelete_hours=24, events_keep_days=30)
    await cloud.ask("DELETE", f"{SERVERS}{deleted}/")
    await cloud.work()
    biller, scheduler, pruner = cloud.biller(), cloud.backup_scheduler(), cloud.event_pruner()
    async with cloud.database.write() as tx:  # as if it were an automatic one
        await change(tx, backups, backup["id"], expires_at_ms=cloud.clock.now_ms() + DAY * 1000)
    tables = ("servers", "backups", "ledger", "operations", "events")
    before = [await rows(cloud.database, table) for table in tables]
    cloud.clock.jump(900 * DAY)
    await pruner.prune()  # it may be the first to notice
    for _ in range(3):
        cloud.clock.advance(QUIET / 3 - 1)
        await biller.bill()
        await scheduler.schedule()
        await cloud.work()
    cloud.clock.jump(-900 * DAY)
    await biller.bill()
    await scheduler.schedule()
    assert [await rows(cloud.database, table) for table in tables] == before


async def _automatic(cloud: Cloud) -> int:
    return int((await cloud.get("/api/v1/backups/?backup_type=automatic")).json()["count"])


async def _pass(cloud: Cloud, scheduler: Any, seconds: float) -> None:
    while seconds > 0:
        cloud.clock.advance(min(600, seconds))
        seconds -= 600
        await scheduler.schedule()
        await cloud.work()


async def _backed_up(cloud: Cloud) -> int:
    """A server, in the moment in which its first automatic backup was made."""
    server, scheduler = await cloud.have_server(), cloud.backup_scheduler()
    await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"backups_enabled": True})
    slot_ms = next_backup_slot_ms(cloud.settings, (await cloud.row(server)).uuid, cloud.clock.now_ms())
    cloud.clock.advance((slot_ms - cloud.clock.now_ms()) / 1000 + 1)
    await scheduler.schedule()
    await cloud.work()
    assert await _automatic(cloud) == 1
    return server


@pytest.mark.parametrize("seconds", [*JUMPS, -26 * HOUR, 26 * HOUR])
async def test_there_is_one_backup_a_day_whatever_the_clock_was_set_to(cloud: Cloud, seconds: int) -> None:
    await _backed_up(cloud)
    scheduler = cloud.backup_scheduler()
    cloud.clock.jump(seconds)
    await _pass(cloud, scheduler, 10 * HOUR)
    made = await _automatic(cloud)
    assert made == (2 if seconds == 26 * HOUR else 1)  # a day has passed by that clock: one is made up for
    await _pass(cloud, scheduler, 28 * HOUR)
    assert await _automatic(cloud) == made + 1


async def test_a_backup_that_a_clock_far_ahead_has_put_off_is_made_in_the_next_slot(cloud: Cloud) -> None:
    cloud.clock.jump(100 * DAY)
    server = await _backed_up(cloud)
    cloud.clock.jump(-100 * DAY)
    await cloud.backup_scheduler().schedule()
    due_ms = (await cloud.row(server)).next_backup_at_ms
    assert due_ms is not None
    assert 0 < due_ms - cloud.clock.now_ms() <= 36 * HOUR * 1000


async def test_at_a_start_what_lies_ahead_of_the_clock_is_set_right(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    server = await cloud.create()

    def away(call: str) -> None:
        if call != "take":  # the first of all; what follows has an address already
            raise Unavailable("away")

    cloud.hypervisor.before_call = away
    await cloud.work()
    far_ms = cloud.clock.now_ms() + 1000 * DAY * 1000
    async with cloud.database.write() as tx:
        times = {"run_at_ms": far_ms, "deadline_at_ms": far_ms, "lease_until_ms": far_ms, "lease_owner": "dead"}
        await change(tx, operation_table, 1, **times)
        await change(tx, servers, server, suspended_at_ms=far_ms, next_backup_at_ms=far_ms)
        await change(tx, accounts, 1, exhausted_at_ms=far_ms)
        await tx.run(Statement(update(addresses), ("released_at_ms",)), released_at_ms=far_ms)
    await clock_jumps.look_at_start(cloud.runtime)
    now_ms = cloud.clock.now_ms()
    (operation,) = await rows(cloud.database, "operations")
    assert operation["run_at_ms"] == now_ms
    assert operation["deadline_at_ms"] == now_ms + 60 * 60_000
    assert operation["lease_until_ms"] == now_ms + LEASE_SECONDS * 1000
    row = await cloud.row(server)
    assert row.next_backup_at_ms is not None
    assert now_ms < row.next_backup_at_ms <= now_ms + DAY * 1000
    assert row.suspended_at_ms == (await cloud.account()).exhausted_at_ms == now_ms
    assert [one["released_at_ms"] for one in await rows(cloud.database, "addresses")] == [now_ms]
    assert "the clock was set" not in caplog.text
    cloud.clock.jump(-HOUR)
    await clock_jumps.look_at_start(cloud.runtime)
    assert "the clock was set 3" in caplog.text


async def test_figures_and_a_tokens_use_are_written_anew_when_the_clock_was_set_back(cloud: Cloud) -> None:
    server, sampler = await cloud.have_server(), cloud.sampler()
    cloud.hypervisor.guest_stats = GuestStats(cpu_seconds=1.0, memory_used_mb=10)
    await sampler.sample()
    cloud.clock.jump(-HOUR)
    cloud.hypervisor.guest_stats = GuestStats(cpu_seconds=2.0, memory_used_mb=20)
    await sampler.sample()
    assert (await cloud.get(f"{SERVERS}{server}/")).json()["resource_usage"]["memory_used"] == 20
    (used,) = {one["last_used_at_ms"] for one in await rows(cloud.database, "tokens") if one["account_id"] == 1}
    assert used == cloud.clock.now_ms()


async def test_requests_are_answered_whatever_the_clock_was_set_to(cloud: Cloud) -> None:
    cloud.set(rate_limit=10, address_rate_limit=10)
    for seconds in (-HOUR, -DAY, 2 * HOUR):
        for path, who in (("/health", None), (SERVERS, "alice")):
            assert (await cloud.get(path, who=who)).status_code == 200
        cloud.clock.jump(seconds)
    assert (await cloud.get("/health", who=None)).status_code == 200


async def test_a_process_that_starts_with_its_clock_ahead_does_nothing_final_at_once(cloud: Cloud) -> None:
    await cloud.have_server()
    cloud.clock.jump(2 * HOUR)
    runtime = msgspec.structs.replace(cloud.runtime, jumps=ClockJumps(cloud.clock))  # as a new process
    await clock_jumps.look_at_start(runtime)
    before = await rows(cloud.database, "ledger")
    await Biller(runtime).bill()
    assert await rows(cloud.database, "ledger") == before
    assert runtime.jumps.told_seconds is None
    cloud.clock.advance(QUIET)
    await Biller(runtime).bill()
    assert await rows(cloud.database, "ledger") != before


async def test_a_jump_is_logged_once_and_told_for_an_hour(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def told_of() -> Any:
        return (await cloud.get("/health", who=None)).json()["clock"]

    assert await told_of() == {"status": "ok", "set_by_seconds": None}
    cloud.clock.jump(4.9)  # as NTP does: no news
    assert await told_of() == {"status": "ok", "set_by_seconds": None}
    assert not caplog.records
    cloud.clock.jump(-HOUR)
    for _ in range(2):
        assert await told_of() == {"status": "set", "set_by_seconds": -HOUR}
        await cloud.work()
    (record,) = caplog.records
    assert record.getMessage().startswith("the clock was set 3600 s back: ")
    cloud.clock.advance(HOUR - 1)
    assert (await told_of())["status"] == "set"
    cloud.clock.advance(1)
    assert await told_of() == {"status": "ok", "set_by_seconds": None}
