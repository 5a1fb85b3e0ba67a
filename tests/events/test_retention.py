"""Events are kept, unless the operator says for how long; then what is older goes, and nothing else can."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from tests.api.tables import rows
from tests.billing.books import change
from tests.cloud import Cloud
from vpsd.core.clock import FakeClock
from vpsd.core.context import OPERATOR
from vpsd.events import service as events
from vpsd.events.retention import _BATCH, _PAUSE_SECONDS, prune

DAY = 86_400


async def told(cloud: Cloud) -> list[dict[str, Any]]:
    return await rows(cloud.database, "events")


async def test_what_is_older_is_deleted_and_the_account_is_told(cloud: Cloud) -> None:
    await cloud.create("old")
    old = await told(cloud)
    cloud.clock.advance(10 * DAY)
    await cloud.create("new")
    kept = (await told(cloud))[len(old) :]
    assert await prune(cloud.runtime, 10, OPERATOR) == 0
    cloud.clock.advance(0.001)
    assert await prune(cloud.runtime, 10, OPERATOR) == len(old)
    now = await told(cloud)
    assert now[: len(kept)] == kept
    alice, charlie = (await cloud.account("alice")).id, (await cloud.account("charlie")).id
    of = {account: sum(event["account_id"] == account for event in old) for account in (alice, charlie)}
    assert [(event["account_id"], event["action"], event["actor"], event["detail"]) for event in now[len(kept) :]] == [
        (account, "event.prune", "operator", f"{of[account]} from before 2025-06-15T15:06:40Z")
        for account in (alice, charlie)
    ]
    assert (await cloud.get("/api/v1/account/events/")).json()["results"][0]["action"] == "event.prune"


async def test_many_are_deleted_in_batches(cloud: Cloud) -> None:
    account = await cloud.account()
    event = {**dict.fromkeys(events._ADD.columns or ()), "account_id": account.id, "actor": "vpsd", "action": "x"}
    async with cloud.writing() as ctx:
        await ctx.tx.many(events._ADD, [{**event, "at_ms": number} for number in range(2 * _BATCH)])
    count = len(await told(cloud))
    cloud.clock.advance(2 * DAY)
    left: list[int] = []

    class Pauses(FakeClock):
        async def sleep(self, seconds: float) -> None:
            assert seconds == _PAUSE_SECONDS
            left.append(len(await rows(cloud.database, "events")))

    runtime = msgspec.structs.replace(cloud.runtime, clock=Pauses(cloud.clock.now_ms()))
    assert await prune(runtime, 1, OPERATOR) == count > 2 * _BATCH
    told_of = len(await rows(cloud.database, "events"))  # of the accounts whose events were deleted
    assert left == [count - _BATCH + told_of, count - 2 * _BATCH + told_of]  # everybody else has a turn in between
    assert {event["action"] for event in await told(cloud)} == {"event.prune"}


async def test_past_the_command_nothing_that_is_kept_can_be_deleted(cloud: Cloud) -> None:
    await cloud.create("old")
    cloud.clock.advance(2 * DAY)
    await cloud.create("new")
    await prune(cloud.runtime, 1, OPERATOR)
    before = await told(cloud)
    for attempt in (
        "DELETE FROM events",
        f"DELETE FROM events WHERE id = {before[0]['id']}",
        "UPDATE events SET id = id",
    ):
        with pytest.raises(Exception, match="events is append-only"):
            await change(cloud, text(attempt))
    assert await told(cloud) == before


async def test_what_was_kept_for_less_time_once_is_not_kept_again(cloud: Cloud) -> None:
    cloud.clock.advance(5 * DAY)
    await prune(cloud.runtime, 1, OPERATOR)
    await prune(cloud.runtime, 3, OPERATOR)
    (row,) = await rows(cloud.database, "event_retention")
    assert row["kept_from_ms"] == cloud.clock.now_ms() - DAY * 1000


async def test_vpsd_deletes_by_itself_only_where_the_setting_says_so(cloud: Cloud) -> None:
    await cloud.create("old")
    cloud.clock.advance(40 * DAY)
    count = len(await told(cloud))
    await cloud.event_pruner().prune()
    assert len(await told(cloud)) == count
    cloud.set(events_keep_days=30)
    await cloud.event_pruner().prune()
    assert await told(cloud) == []


async def test_what_a_clock_that_was_ahead_has_let_go_is_kept_again(cloud: Cloud) -> None:
    cloud.clock.jump(900 * DAY)
    await prune(cloud.runtime, 1, OPERATOR)
    cloud.clock.jump(-900 * DAY)
    await prune(cloud.runtime, 1, OPERATOR)
    (row,) = await rows(cloud.database, "event_retention")
    assert row["kept_from_ms"] == cloud.clock.now_ms() - DAY * 1000
