"""Operations that supersede another: a row of their own from the first moment, which waits outside the lock."""

import pytest

from tests.cloud import Cloud
from vpsd.core.context import Ctx
from vpsd.core.pages import Page
from vpsd.lifecycle import Command
from vpsd.operations import history
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.operations.service import LEASE_SECONDS, Lease, UnderWay


async def _claim(cloud: Cloud, owner: str) -> Operation:
    async with cloud.writing() as ctx:
        operation = await operations.claim(ctx, owner)
    assert operation is not None
    return operation


async def _enqueue(cloud: Cloud, server_id: int, command: Command) -> Operation:
    async with cloud.writing() as ctx:
        return await operations.add(ctx, server_id, command)


async def test_what_supersedes_a_leased_operation_has_an_id_at_once_and_is_not_claimed(cloud: Cloud) -> None:
    server_id = await cloud.create()
    first = await _claim(cloud, "first")
    delete = await _enqueue(cloud, server_id, Command.DELETE)
    assert (delete.status, delete.waits_for) == ("queued", first.id)
    assert [(o["command"], o["status"]) for o in await cloud.operations(server_id)] == [
        ("create", "running"),
        ("delete", "queued"),
    ]
    async with cloud.writing() as ctx:
        assert await operations.claim(ctx, "second") is None
        await operations.hand_over(ctx, Lease.of(first), delete)
        begun = await operations.open_operation(ctx, server_id)
    assert begun is not None
    assert (begun.id, begun.waits_for) == (delete.id, None)
    assert (await _claim(cloud, "second")).id == delete.id


async def test_a_second_one_takes_the_waiting_ones_place_or_is_refused(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await _enqueue(cloud, server_id, Command.STOP)
    stop = await _claim(cloud, "first")
    hard = await _enqueue(cloud, server_id, Command.HARD_STOP)
    with pytest.raises(UnderWay) as refused:
        await _enqueue(cloud, server_id, Command.REBOOT)
    assert refused.value.command == Command.HARD_STOP
    delete = await _enqueue(cloud, server_id, Command.DELETE)
    assert delete.waits_for == stop.id
    async with cloud.reading() as ctx:
        assert await _ids_waiting(ctx, stop.id) == [delete.id]
        found = (await history.history(ctx, server_id, _page())).rows
    assert [(o.id, o.status) for o in found][-3:] == [
        (stop.id, "running"),
        (hard.id, "cancelled"),
        (delete.id, "queued"),
    ]


def _page() -> Page:

    return Page()


async def _ids_waiting(ctx: Ctx, operation_id: int) -> list[int]:
    found = await operations.waiting(ctx, operation_id)
    return [] if found is None else [found.id]


async def test_a_waiting_one_begins_although_the_worker_died_that_it_waits_for(cloud: Cloud) -> None:
    server_id = await cloud.create()
    await _claim(cloud, "doomed")
    delete = await _enqueue(cloud, server_id, Command.DELETE)
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    history = await cloud.operations(server_id)
    assert [(o["command"], o["status"]) for o in history] == [("create", "cancelled"), ("delete", "succeeded")]
    assert history[-1]["id"] == delete.id


async def test_the_time_limit_of_a_waiting_one_begins_when_it_does(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    await _enqueue(cloud, server_id, Command.STOP)
    stop = await _claim(cloud, "first")
    hard = await _enqueue(cloud, server_id, Command.HARD_STOP)
    cloud.clock.advance(10)
    async with cloud.writing() as ctx:
        await operations.hand_over(ctx, Lease.of(stop), hard)
        begun = await operations.open_operation(ctx, server_id)
    assert begun is not None
    assert begun.deadline_at_ms == cloud.clock.now_ms() + 15 * 60_000
    assert begun.run_at_ms == cloud.clock.now_ms()
