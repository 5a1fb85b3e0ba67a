"""What becomes of servers without credit: warned, a grace, suspended, back again; nothing is lost unless it is said."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.billing.books import DAY, HOUR, assert_right, charge, charges_of, have_connections
from tests.cloud import Cloud
from tests.explain import explain
from tests.idempotency.posts import Stumbling
from vpsd.accounts import service as accounts
from vpsd.core.clock import iso_utc
from vpsd.core.db import Statement
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import Status
from vpsd.servers import queries
from vpsd.worker.biller import Biller, CreditState, apply

SERVERS = "/api/v1/servers/"
GRACE = 72 * HOUR


async def look(cloud: Cloud) -> None:
    """One look of the biller, and what follows from it."""
    await cloud.biller().bill()
    await cloud.work()


async def run_out(cloud: Cloud) -> None:
    """The next hour uses up the credit."""
    await cloud.have_balance(1)
    cloud.clock.advance(HOUR)
    await cloud.biller().bill()
    assert (await cloud.account()).exhausted_at_ms == cloud.clock.now_ms()


async def suspend(cloud: Cloud) -> None:
    await run_out(cloud)
    cloud.clock.advance(GRACE)
    await look(cloud)


async def events(cloud: Cloud, *actions: str, who: str = "alice") -> list[dict[str, Any]]:
    """Oldest first."""
    answer = (await cloud.get("/api/v1/account/events/?page_size=100", who=who)).json()
    return [event for event in reversed(answer["results"]) if event["action"] in actions]


async def power(cloud: Cloud, server: int) -> PowerState:
    guest = await cloud.hypervisor.guest(cloud.guest(server))
    assert guest is not None
    return guest.power


async def test_an_account_that_runs_out_is_warned_once_and_its_servers_run_on(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    end = iso_utc(cloud.clock.now_ms() + GRACE * 1000)
    for _ in range(7):
        cloud.clock.advance(10 * HOUR)
        await look(cloud)
    (event,) = await events(cloud, "credit.exhausted")
    assert event["actor"] == "vpsd"
    assert event["detail"] == f"Servers are suspended at {end} unless there is credit by then."
    assert await cloud.status(server) == "active"
    assert await power(cloud, server) is PowerState.RUNNING
    balance = (await cloud.get("/api/v1/account/balance/")).json()
    assert balance["suspends_at"] == end


async def test_credit_that_is_taken_back_warns_at_once(cloud: Cloud) -> None:
    await cloud.have_server()
    await cloud.have_balance(0)
    assert (await cloud.account()).exhausted_at_ms == cloud.clock.now_ms()
    await cloud.have_balance(-5)
    await look(cloud)
    assert len(await events(cloud, "credit.exhausted")) == 1


async def test_an_account_without_servers_needs_no_credit_and_no_warning(cloud: Cloud) -> None:
    await cloud.have_balance(0)
    server = await cloud.have_server(who="charlie")
    await cloud.ask("DELETE", f"{SERVERS}{server}/", who="charlie")
    await cloud.have_balance(-1, who="charlie")
    await look(cloud)
    for who in ("alice", "charlie"):
        assert (await cloud.account(who)).exhausted_at_ms is None
        assert await events(cloud, "credit.exhausted", who=who) == []


async def test_servers_are_suspended_when_the_grace_is_over_and_not_a_second_before(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    cloud.clock.advance(GRACE - 1)
    await look(cloud)
    assert await cloud.status(server) == "active"
    cloud.clock.advance(1)
    await look(cloud)
    assert await cloud.status(server) == "suspended"


async def test_a_running_server_is_shut_down_gracefully_and_keeps_disk_and_address(cloud: Cloud) -> None:
    server = await cloud.have_server()
    address = (await cloud.row(server)).ip_address
    await suspend(cloud)
    assert await power(cloud, server) is PowerState.OFF
    assert "request_shutdown" in cloud.hypervisor.calls
    assert not {"power_off", "remove"} & set(cloud.hypervisor.calls)
    assert await cloud.disk(server) in (await cloud.hypervisor.volumes()).disks
    assert [(held.server_id, held.address) for held in await cloud.addresses()] == [(server, address)]
    operation = (await cloud.operations(server))[-1]
    assert (operation["command"], operation["status"]) == ("suspend", "succeeded")
    assert operation["detail"] == "shut down by ACPI"
    (event,) = await events(cloud, "server.suspend")
    assert (event["actor"], event["transition"]) == ("vpsd", {"from": "active", "to": "stopping"})
    detail = (await cloud.get(f"{SERVERS}{server}/")).json()
    assert detail["status"] == "suspended"


async def test_a_stopped_server_is_suspended_too(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    await suspend(cloud)
    assert await cloud.status(server) == "suspended"
    assert [o["command"] for o in await cloud.operations(server)] == ["create", "stop"]  # there was nothing to do
    (event,) = await events(cloud, "server.suspend")
    assert event["transition"] == {"from": "stopped", "to": "suspended"}


async def test_a_suspended_server_goes_on_costing_what_it_holds(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await suspend(cloud)
    before = len(await charges_of(cloud, server))
    cloud.clock.advance(5 * HOUR)
    await look(cloud)
    assert len(await charges_of(cloud, server)) == before + 5
    await assert_right(cloud)


async def test_strangers_and_accounts_without_a_limit_are_left_alone(cloud: Cloud) -> None:
    mine, theirs = await cloud.have_server(), await cloud.have_server(who="charlie")
    async with cloud.writing() as ctx:
        charlie = await accounts.find_account(ctx, "charlie")
        await accounts.set_limits(ctx, charlie, {"credit_limit_micros": None})
    await cloud.have_balance(0, who="charlie")
    await suspend(cloud)
    assert (await cloud.status(mine), await cloud.status(theirs)) == ("suspended", "active")
    assert await cloud.balance("charlie") < 0
    assert await events(cloud, "credit.exhausted", who="charlie") == []


async def test_credit_below_zero_counts_as_far_as_the_limit_goes(cloud: Cloud) -> None:
    server = await cloud.have_server()
    async with cloud.writing() as ctx:
        account = await accounts.find_account(ctx, "alice")
        await accounts.set_limits(ctx, account, {"credit_limit_micros": 2976 * 10})
    await cloud.have_balance(0)
    cloud.clock.advance(5 * HOUR)
    await look(cloud)
    assert (await cloud.account()).exhausted_at_ms is None
    cloud.clock.advance(10 * HOUR)
    await look(cloud)
    assert (await cloud.account()).exhausted_at_ms == cloud.clock.now_ms()
    assert await cloud.status(server) == "active"


@pytest.mark.parametrize("status", [Status.STOPPED, Status.SUSPENDED, Status.ERROR])
async def test_no_server_starts_without_credit(cloud: Cloud, status: Status) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    if status is Status.SUSPENDED:
        await suspend(cloud)
    else:
        await run_out(cloud)
        await cloud.force_status(server, status)
    for path, body in (("start", None), ("rebuild", {"os_id": 3})):  # what is rebuilt runs in the end
        answer = await cloud.post(f"{SERVERS}{server}/{path}/", body)
        assert answer.status_code == 402
        assert answer.json()["code"] == "payment_required"
    assert await cloud.status(server) == status


async def test_a_reboot_is_possible_within_the_grace_and_puts_no_suspension_off(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    assert (await cloud.post(f"{SERVERS}{server}/reboot/")).status_code == 200
    await cloud.work()
    cloud.clock.advance(GRACE)
    answer = await cloud.post(f"{SERVERS}{server}/reboot/")
    assert (answer.status_code, answer.json()["code"]) == (402, "payment_required")
    await look(cloud)
    assert await cloud.status(server) == "suspended"


async def test_a_payment_that_comes_between_the_look_and_the_act_counts(cloud: Cloud) -> None:
    first, second = await cloud.have_server("first"), await cloud.have_server("second")
    await run_out(cloud)
    cloud.clock.advance(GRACE)
    await charge(cloud)
    late = Stumbling(cloud.database)
    late.before[3] = lambda: cloud.have_balance(10**6)  # after the look and the first server
    await Biller(msgspec.structs.replace(cloud.runtime, database=late)).bill()
    assert late.written == 3
    assert [await cloud.status(server) for server in (first, second)] == ["stopping", "active"]
    await cloud.work()
    await look(cloud)
    assert [await cloud.status(server) for server in (first, second)] == ["active", "active"]


async def test_credit_brings_what_ran_back_to_work_and_what_was_stopped_back_to_rest(cloud: Cloud) -> None:
    runs, rests = await cloud.have_server("runs"), await cloud.have_server("rests", status=Status.STOPPED)
    await suspend(cloud)
    assert [await cloud.status(server) for server in (runs, rests)] == ["suspended", "suspended"]
    await cloud.have_balance(0)
    await look(cloud)
    assert await cloud.status(runs) == "suspended"  # nothing is no credit
    cloud.hypervisor.calls.clear()
    await cloud.have_balance(1)
    await look(cloud)
    assert [await cloud.status(server) for server in (runs, rests)] == ["active", "stopped"]
    assert [await power(cloud, server) for server in (runs, rests)] == [PowerState.RUNNING, PowerState.OFF]
    assert cloud.hypervisor.calls.count("power_on") == 1
    assert (await cloud.account()).exhausted_at_ms is None
    assert len(await events(cloud, "credit.restored")) == 1
    assert [(event["target"]["id"], event["transition"]) for event in await events(cloud, "server.resume")] == [
        (runs, {"from": "suspended", "to": "starting"}),
        (rests, {"from": "suspended", "to": "stopped"}),
    ]
    await assert_right(cloud)


async def test_credit_within_the_grace_changes_nothing_for_the_servers(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    await cloud.have_balance(10**6)
    assert (await cloud.account()).exhausted_at_ms is None  # at once
    cloud.clock.advance(GRACE)
    await look(cloud)
    assert await cloud.status(server) == "active"
    assert [o["command"] for o in await cloud.operations(server)] == ["create"]


async def test_credit_added_and_spent_between_two_looks_brings_a_grace_of_its_own(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    cloud.clock.advance(GRACE - HOUR)
    await cloud.biller().bill()
    await cloud.have_balance(1)
    cloud.clock.advance(2 * HOUR)  # the old grace is over, and so is the credit
    await look(cloud)
    assert await cloud.balance() < 0
    assert await cloud.status(server) == "active"
    assert len(await events(cloud, "credit.exhausted")) == 2
    assert (await cloud.account()).exhausted_at_ms == cloud.clock.now_ms()
    cloud.clock.advance(GRACE - 1)
    await look(cloud)
    assert await cloud.status(server) == "active"
    cloud.clock.advance(1)
    await look(cloud)
    assert await cloud.status(server) == "suspended"


async def test_without_a_grace_servers_are_suspended_at_the_first_look(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.set(grace_hours=0)
    await cloud.have_balance(1)
    cloud.clock.advance(HOUR)
    await look(cloud)
    assert await cloud.status(server) == "suspended"
    assert len(await events(cloud, "credit.exhausted")) == 1


async def test_a_suspended_server_that_somebody_starts_is_stopped_again(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await suspend(cloud)
    cloud.clock.advance(1)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.RUNNING)
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "stopping"
    await cloud.work()
    assert await cloud.status(server) == "suspended"
    assert await power(cloud, server) is PowerState.OFF
    await cloud.have_balance(10**6)
    await look(cloud)
    assert await cloud.status(server) == "active"  # what it was before all this


async def test_a_suspended_servers_guest_that_is_off_or_gone_is_left_so(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await suspend(cloud)
    commands = [o["command"] for o in await cloud.operations(server)]
    for befalls in (PowerState.OFF, PowerState.CRASHED):
        cloud.hypervisor.happens(cloud.guest(server), befalls)
        cloud.clock.advance(1)
        await cloud.reconciler().reconcile()
    cloud.hypervisor.vanishes(cloud.guest(server))
    await cloud.reconciler().reconcile()
    assert await cloud.status(server) == "suspended"
    assert [o["command"] for o in await cloud.operations(server)] == commands


async def test_nothing_is_ever_deleted_for_lack_of_money_unless_a_time_is_set(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await suspend(cloud)
    for _ in range(4):
        cloud.clock.advance(15 * DAY)
        await look(cloud)
    assert await cloud.status(server) == "suspended"
    assert (await cloud.row(server)).deleted_at_ms is None
    assert await cloud.disk(server) in (await cloud.hypervisor.volumes()).disks


async def test_where_a_time_is_set_servers_are_deleted_then_and_not_a_second_before(cloud: Cloud) -> None:
    servers = [await cloud.have_server("runs"), await cloud.have_server("rests", status=Status.STOPPED)]
    cloud.set(delete_unpaid_after_days=3)
    await suspend(cloud)
    end = iso_utc(cloud.clock.now_ms() + 3 * DAY * 1000)
    for event in await events(cloud, "server.suspend"):
        assert event["detail"] == f"It is deleted at {end} unless there is credit by then."
    cloud.clock.advance(3 * DAY - 1)
    await look(cloud)
    assert [await cloud.status(server) for server in servers] == ["suspended", "suspended"]
    cloud.clock.advance(1)
    await look(cloud)
    await cloud.settle()
    for server in servers:
        assert (await cloud.row(server)).purged_at_ms is not None
    assert await cloud.hypervisor.guests() == {}
    assert await cloud.addresses() == []
    assert [event["actor"] for event in await events(cloud, "server.delete")] == ["vpsd", "vpsd"]
    cloud.clock.advance(DAY)
    await look(cloud)
    await assert_right(cloud)


async def test_no_downtime_of_the_worker_turns_a_grace_into_a_deletion(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.set(delete_unpaid_after_days=3)
    await run_out(cloud)
    cloud.clock.advance(GRACE + 30 * DAY)  # nobody looked: the customer's server was never suspended
    await look(cloud)
    await look(cloud)
    assert await cloud.status(server) == "suspended"
    cloud.clock.advance(3 * DAY)
    await look(cloud)
    assert (await cloud.row(server)).deleted_at_ms is not None


async def test_credit_in_time_saves_a_suspended_server_from_deletion(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.set(delete_unpaid_after_days=3)
    await suspend(cloud)
    await cloud.have_balance(10**6)
    cloud.clock.advance(3 * DAY)
    await look(cloud)
    assert await cloud.status(server) == "active"


async def test_a_deleted_server_is_not_deleted_again(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    await cloud.settle()
    before = await cloud.row(server)
    cloud.clock.advance(DAY)
    for state in CreditState:
        async with cloud.writing("alice") as ctx:
            await apply(ctx, state, await queries.lock(ctx, server))
    assert await cloud.row(server) == before
    assert await cloud.work() == 0


async def test_a_server_that_is_busy_when_the_grace_ends_is_suspended_at_a_later_look(cloud: Cloud) -> None:
    busy, idle = await cloud.have_server("busy"), await cloud.have_server("idle")
    await run_out(cloud)
    cloud.clock.advance(GRACE - 60)
    await cloud.post(f"{SERVERS}{busy}/reboot/")
    cloud.clock.advance(60)
    await cloud.biller().bill()
    assert [await cloud.status(server) for server in (busy, idle)] == ["rebooting", "stopping"]
    await cloud.work()
    assert [await cloud.status(server) for server in (busy, idle)] == ["active", "suspended"]
    await look(cloud)
    assert [await cloud.status(server) for server in (busy, idle)] == ["suspended", "suspended"]


async def test_a_server_that_was_still_being_made_is_suspended_when_it_is(cloud: Cloud) -> None:
    await cloud.have_server("first")
    await run_out(cloud)
    cloud.clock.advance(GRACE)
    async with cloud.writing() as ctx:
        account = await accounts.find_account(ctx, "alice")
        await accounts.set_limits(ctx, account, {"credit_limit_micros": 10**9})
    late = await cloud.create("late")
    async with cloud.writing() as ctx:
        await accounts.set_limits(ctx, account, {"credit_limit_micros": 0})
    await cloud.biller().bill()
    assert await cloud.status(late) == "provisioning"
    await cloud.work()
    await look(cloud)
    assert await cloud.status(late) == "suspended"


async def test_a_hostname_on_its_way_keeps_no_server_running(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    cloud.clock.advance(GRACE)
    await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"hostname": "new.example.com"})
    await look(cloud)
    await look(cloud)
    assert await cloud.status(server) == "suspended"


async def test_a_host_that_is_away_puts_a_suspension_off_and_does_not_end_it(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await run_out(cloud)
    cloud.clock.advance(GRACE)
    await cloud.biller().bill()
    cloud.hypervisor.broken = True
    for _ in range(100):
        await cloud.work()
        cloud.clock.advance(301)
        await cloud.biller().bill()
    assert await cloud.status(server) == "stopping"
    cloud.hypervisor.broken = False
    await cloud.work()
    assert await cloud.status(server) == "suspended"
    assert [o["command"] for o in await cloud.operations(server)] == ["create", "suspend"]


async def test_two_billers_at_once_warn_once_and_suspend_once(cloud: Cloud) -> None:
    servers = [await cloud.have_server(f"web-{number}") for number in range(3)]
    await have_connections(cloud)
    await cloud.have_balance(1)
    cloud.clock.advance(HOUR)
    await asyncio.gather(*(cloud.biller().bill() for _ in range(4)))
    await asyncio.gather(*(cloud.biller().bill() for _ in range(4)))
    assert len(await events(cloud, "credit.exhausted")) == 1
    cloud.clock.advance(GRACE)
    await asyncio.gather(*(cloud.biller().bill() for _ in range(4)))
    await cloud.work()
    for server in servers:
        assert [o["command"] for o in await cloud.operations(server)] == ["create", "suspend"]
        assert await cloud.status(server) == "suspended"
    assert len(await events(cloud, "server.suspend")) == 3
    await assert_right(cloud)


@pytest.mark.parametrize(
    ("statement", "index"),
    [(queries._OF_SUSPENDED, "ix_servers_suspended"), (queries._PURGE_DUE, "ix_servers_purge_due")],
)
async def test_what_it_asks_every_few_seconds_reads_no_other_servers(
    cloud: Cloud, statement: Statement[int], index: str
) -> None:
    await cloud.create()
    assert index in await explain(cloud.database, statement, {"now_ms": cloud.clock.now_ms()}, "servers")
