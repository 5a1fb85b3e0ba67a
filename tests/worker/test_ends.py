"""A vpsd that is ended at any moment ends, and what was under way is taken up by the next one."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.cloud import Cloud
from tests.core.test_ending import deaf
from vpsd.audit import Audit
from vpsd.core import ending
from vpsd.core.clock import FakeClock
from vpsd.core.ending import end_all
from vpsd.operations.service import LEASE_SECONDS


def _workers(cloud: Cloud) -> list[asyncio.Task[None]]:
    made = (cloud.runner(), cloud.reconciler(), cloud.biller(), cloud.backup_scheduler(), cloud.sampler())
    return [asyncio.create_task(worker.run()) for worker in (*made, cloud.guest_reader(), cloud.thaw_checker())]


def _deaf(chance: random.Random) -> Callable[[str], Coroutine[Any, Any, None]]:
    """Calls to the host that now and then swallow the cancellation that meets them."""

    async def call(_: str) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if chance.random() < 0.5:
                raise

    return call


async def test_a_runner_ends_although_a_call_of_an_operation_swallows_the_cancellation_and_goes_on(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_AGAIN_SECONDS", 0.01)
    await cloud.create()
    called = asyncio.Event()

    async def goes_on(call: str) -> None:
        if call == "ensure_disk":
            called.set()
            await deaf(1)

    cloud.hypervisor.before_call = goes_on
    runner = asyncio.create_task(cloud.runner().run())
    await called.wait()
    runner.cancel()  # told once: it sees to its operations by itself
    async with asyncio.timeout(5):
        await asyncio.wait({runner})
    assert runner.cancelled()


class StandingClock(FakeClock):
    """A clock that stands still, however often somebody sleeps: nobody runs out of time meanwhile."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(4))
async def test_an_end_at_any_moment_under_load_is_an_end_and_loses_nothing(
    cloud: Cloud, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_AGAIN_SECONDS", 0.01)
    chance = random.Random(seed)
    cloud.hypervisor.before_call = cloud.hypervisor.after_call = _deaf(chance)
    ordered, runtime = [], cloud.runtime
    cloud.runtime = msgspec.structs.replace(runtime, clock=StandingClock(cloud.clock.now_ms()))
    for end in range(3):
        ordered += [await cloud.create(f"web-{end}-{number}") for number in range(4)]
        workers = _workers(cloud)
        for _ in range(chance.randrange(300)):
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await end_all(workers)
        assert all(worker.done() for worker in workers)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("operation")]
    cloud.hypervisor.before_call = cloud.hypervisor.after_call = None
    cloud.runtime = runtime
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.settle()
    assert {await cloud.status(server) for server in ordered} == {"active"}
    assert await Audit(cloud.runtime).run() == []
