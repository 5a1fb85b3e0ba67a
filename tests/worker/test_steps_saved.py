"""What a step did and that the next one follows are saved at once, and only while the lease is one's own."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from tests.cloud import Cloud, never_ticks
from tests.worker.test_lost_leases import Away
from vpsd.core.db import Tx
from vpsd.flows.job import Job, LeaseClock
from vpsd.hosts import service as hosts
from vpsd.operations import history
from vpsd.operations import service as operations
from vpsd.operations.service import LEASE_SECONDS
from vpsd.worker.runner import Runner


async def _step(cloud: Cloud, server: int) -> str | None:
    async with cloud.reading() as ctx:
        (latest, *_) = await history.latest(ctx, server)
        return latest.step


def lose_lease_after(cloud: Cloud, call: str) -> None:
    """Have another worker take the operation over as soon as that call to the host has been made."""

    async def lose_lease(made: str) -> None:
        if made == call:
            cloud.hypervisor.after_call = None
            cloud.clock.advance(LEASE_SECONDS + 1)
            async with cloud.writing() as ctx:
                assert await operations.claim(ctx, "second") is not None

    cloud.hypervisor.after_call = lose_lease


async def test_whoever_takes_over_finds_the_step_whose_calls_may_have_been_made(cloud: Cloud) -> None:
    server = await cloud.create()
    found: dict[str, str | None] = {}

    async def look(call: str) -> None:
        found.setdefault(call, await _step(cloud, server))

    cloud.hypervisor.before_call = look
    await cloud.work()
    steps = {"ensure_base": "fetch_image", "ensure_disk": "make_disk", "write_seed": "write_seed"}
    steps |= {"define": "define_guest", "power_on": "power_on", "is_up": "await_boot"}
    assert {call: found[call] for call in steps} == steps
    assert await cloud.status(server) == "active"


async def test_a_step_that_is_done_by_who_has_lost_the_lease_does_not_begin_the_next_one(cloud: Cloud) -> None:
    server = await cloud.create()
    lose_lease_after(cloud, "write_seed")
    assert await cloud.runner("first").run_once()
    assert await _step(cloud, server) == "write_seed"
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_who_has_lost_the_lease_does_not_end_the_operation_in_its_last_step(cloud: Cloud) -> None:
    server = await cloud.create()
    lose_lease_after(cloud, "is_up")
    assert await cloud.runner("first").run_once()
    assert await cloud.status(server) == "provisioning"
    row = await cloud.row(server)
    assert (row.ip_address, row.provisioned_at_ms) == (None, None)
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_a_command_that_comes_in_the_last_step_goes_first(cloud: Cloud) -> None:
    server = await cloud.create()

    async def delete(call: str) -> None:
        if call == "is_up":
            cloud.hypervisor.after_call = None
            await cloud.ask("DELETE", f"/api/v1/servers/{server}/")

    cloud.hypervisor.after_call = delete
    assert await cloud.runner().run_once()
    async with cloud.reading() as ctx:
        ends = [(one.command, one.status) for one in await history.latest(ctx, server)]
    assert ends == [("delete", "queued"), ("create", "cancelled")]
    await cloud.settle()
    assert (await cloud.hypervisor.guests(), (await cloud.hypervisor.volumes()).disks) == ({}, frozenset())


async def test_a_step_within_another_one_does_not_begin_the_next(cloud: Cloud) -> None:
    server = await cloud.create()
    async with cloud.writing() as ctx:
        operation = await operations.claim(ctx, "worker")
    assert operation is not None

    async def outer(job: Job) -> None:
        async with job.write(ends=inner):
            pass

    async def inner(job: Job) -> None: ...

    async with cloud.reading() as ctx:
        host = await hosts.row(ctx, cloud.runtime.host_id)
    job = Job(cloud.runtime, host, operation, await cloud.row(server), LeaseClock(lambda: 0.0, 0.0))
    job.steps = (outer, inner)
    await outer(job)
    assert await _step(cloud, server) is None
    assert not job.is_next_saved
    async with job.write(ends=outer):
        pass
    assert (await _step(cloud, server), job.is_next_saved) == ("inner", True)


class Counted(Away):
    """A database that counts its transactions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.written = 0

    def write(self, wait_seconds: float, **options: bool) -> AbstractAsyncContextManager[Tx]:
        self.written += 1
        return super().write(wait_seconds, **options)


async def test_a_create_takes_no_more_than_nine_transactions(cloud: Cloud) -> None:
    await cloud.have_server("first")  # with it the host gets the image
    await cloud.create()
    counted = Counted(cloud.database)
    runner = Runner(msgspec.structs.replace(cloud.runtime, database=counted), "worker", tick=never_ticks)
    assert await runner.run_once()
    assert counted.written <= 9
