"""How tasks and the process end: whatever happens to a single cancellation, and however stuck something is."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

_AGAIN_SECONDS = 2.0
_SAY_SECONDS = 1.0  # whoever reads what is said may be stuck as well


def is_ending() -> bool:
    """Whether this task was told to end, also where the cancellation itself was swallowed on its way."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, also when this one is cancelled meanwhile.

    Once may not be enough: `asyncio.wait_for` of Python 3.11, for one, swallows a cancellation that comes in the moment
    in which what it waits for is done (CPython issue 86296).
    """
    pending, cancelled = {task for task in tasks if not task.done()}, False
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=_AGAIN_SECONDS)
        except asyncio.CancelledError:
            cancelled = True
        pending = {task for task in pending if not task.done()}
    if cancelled:
        raise asyncio.CancelledError


async def wait_out(future: asyncio.Future[Any]) -> None:
    """Wait until something is done, however often this task is cancelled meanwhile; raises that when it is."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def exit_after(seconds: float, say: Callable[[], object], leave: Callable[[int], object] = os._exit) -> threading.Event:
    """End the process with status 1 in so many seconds, unless the event is set by then; `say` says what is left.

    A thread of its own does so: neither a loop that does not turn nor a thread that hangs in a call keeps it from that.
    """
    is_over = threading.Event()

    def watch() -> None:
        if is_over.wait(seconds):
            return
        saying = threading.Thread(target=say, name="last words", daemon=True)
        saying.start()
        saying.join(_SAY_SECONDS)
        leave(1)

    threading.Thread(target=watch, name="end", daemon=True).start()
    return is_over
