"""What a worker does now and then goes by the clock that it was given."""

import ast
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import Cloud
from vpsd import worker
from vpsd.worker.host_watcher import HostWatcher


def _host_watcher(cloud: Cloud) -> HostWatcher:
    return HostWatcher(cloud.runtime, lambda _: None, lambda _: None)


@pytest.mark.parametrize(
    "made",
    [
        Cloud.runner,
        Cloud.reconciler,
        Cloud.biller,
        Cloud.event_pruner,
        Cloud.sum_keeper,
        Cloud.backup_scheduler,
        Cloud.sampler,
        Cloud.guest_reader,
        _host_watcher,
        Cloud.boot_watcher,
    ],
)
async def test_a_loop_sleeps_by_the_clock_and_outlives_a_host_that_is_away(
    cloud: Cloud, made: Callable[[Cloud], Any]
) -> None:
    await cloud.have_server()
    cloud.hypervisor.broken = True
    until_ms = cloud.clock.now_ms() + 60_000
    running = asyncio.create_task(made(cloud).run())
    async with asyncio.timeout(30):
        while cloud.clock.now_ms() < until_ms and not running.done():
            await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})


async def test_the_host_is_greeted_once_and_a_failure_is_said_once(cloud: Cloud) -> None:
    said: list[str] = []
    greeted: list[str] = []
    watcher = HostWatcher(cloud.runtime, said.append, lambda facts: greeted.append(facts.driver))
    cloud.hypervisor.broken = True
    for _ in range(2):
        await watcher.look()
    assert said == ["hypervisor: The simulated host does not answer."]
    assert (cloud.runtime.host.status, greeted) == ("unreachable", [])
    cloud.hypervisor.broken = False
    for _ in range(2):
        await watcher.look()
    assert (cloud.runtime.host.status, cloud.runtime.host.error, greeted) == ("ok", None, ["simulator"])
    assert [line.partition(":")[0] for line in said] == ["hypervisor", "hypervisor", "guests"]


@pytest.mark.parametrize("path", sorted(Path(worker.__path__[0]).glob("*.py")), ids=lambda path: path.stem)
def test_nobody_takes_a_database_that_is_away_for_a_failure_of_what_it_was_about(path: Path) -> None:
    """Whoever handles every failure of one thing, to go on with the others, lets that one through."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Try):
            caught = [ast.unparse(handler.type) if handler.type else "" for handler in node.handlers]
            logged = any("log.exception" in ast.unparse(handler) for handler in node.handlers)
            if "VpsdError" in caught or ("Exception" in caught and logged):
                first = min(caught.index(name) for name in ("VpsdError", "Exception") if name in caught)
                assert any("DatabaseUnavailable" in name for name in caught[:first]), f"line {node.lineno}"
