"""Tasks end although a cancellation is lost on its way, and processes although something in them never ends."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from tests.core.test_clock import rest
from vpsd.core import ending
from vpsd.core.clock import FakeClock, every
from vpsd.core.ending import end_all, exit_after, wait_out
from vpsd.hypervisor.libvirt.threads import Threads


async def deaf(times: int) -> None:
    """Swallow so many cancellations, as `asyncio.wait_for` of Python 3.11 does in an unlucky moment."""
    for _ in range(times):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
    await asyncio.sleep(10)


async def test_tasks_are_told_again_until_they_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_AGAIN_SECONDS", 0.001)
    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 2)]
    await rest()
    async with asyncio.timeout(10):
        await end_all(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_whoever_ends_others_sees_to_it_although_it_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_AGAIN_SECONDS", 0.001)
    other = asyncio.create_task(deaf(2))
    await rest()
    ender = asyncio.create_task(end_all([other]))
    await rest()
    for _ in range(3):
        ender.cancel()
        await asyncio.sleep(0)
    await asyncio.wait({ender})
    assert (other.done(), ender.cancelled()) == (True, True)


async def test_a_loop_whose_work_swallows_the_cancellation_ends_behind_that_work() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            done.append("after all")

    task = asyncio.create_task(every(FakeClock(), 1, work))
    await rest()
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({task})
    assert done == ["after all"]


async def test_what_must_be_waited_for_is_although_the_wait_is_cancelled_again() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait_out(future))
    for _ in range(3):
        await rest()
        task.cancel()
    await rest()
    assert not task.done()
    future.set_result(None)
    await asyncio.wait({task})
    assert task.cancelled()


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_that_returns_in_the_moment_of_the_cancellation_swallows_nothing(turns: int) -> None:
    threads, returns = Threads(1), threading.Event()

    async def call_and_go_on() -> None:
        await threads.call(returns.wait, "return", 60)
        await asyncio.sleep(3600)

    task = asyncio.create_task(call_and_go_on())
    await rest()
    returns.set()
    time.sleep(0.02)  # noqa: ASYNC251  # the loop does not turn: the call has returned, and nobody has heard of it
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await rest()
    assert task.cancelled()
    threads.close()


def test_a_process_that_has_ended_in_time_is_left_alone() -> None:
    left: list[int] = []
    exit_after(0.01, lambda: left.append(0), left.append).set()
    time.sleep(0.03)
    assert left == []


_BROKEN = """
import asyncio, socket
from vpsd import main
from vpsd.runtime import Serving
from vpsd.settings import Settings

async def run():
    listener = socket.socket()
    listener.close()  # nothing can be served on it
    await main._until_stopped(Settings(), Serving(), None, listener, [], print)

asyncio.run(run())
"""


def test_a_server_that_fails_fails_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", _BROKEN], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "OSError: [Errno 9] Bad file descriptor")


_STUBBORN = """
import asyncio, sys, threading, time, uvloop
from vpsd import main
from vpsd.runtime import Serving
from vpsd.settings import Settings

async def never_ends():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def run():
    threading.Thread(target=time.sleep, args=[60], name="hangs in a call").start()
    task = asyncio.create_task(never_ends(), name="operation 7")
    asyncio.get_running_loop().call_later(0.2, lambda: print("runs", flush=True))
    await main._until_stopped(Settings(), Serving(), None, None, [task], lambda text: print(text, flush=True))

main._END_SECONDS = float(sys.argv[1])
print("begins", flush=True)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the command does
    runner.run(run())
"""


@pytest.mark.parametrize(("seconds", "again", "status"), [(0.3, False, 1), (60, True, -signal.SIGTERM)])
def test_a_process_with_work_that_never_ends_is_ended_by_its_deadline_or_a_second_signal(
    seconds: float, again: bool, status: int
) -> None:
    process = subprocess.Popen([sys.executable, "-c", _STUBBORN, str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["begins\n", "runs\n"]
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping; servers go on running\n"
        if again:
            process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == status
        assert said == ("" if again else "stopped after 0.3 s without: hangs in a call, operation 7\n")
    finally:
        process.kill()
