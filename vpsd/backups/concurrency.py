"""Concurrency of backups: blocking work in a thread pool, and a few chunks at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from vpsd.core.ending import wait_out

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

MAX_IN_FLIGHT = 4  # chunks per backup: enough to keep a remote target busy, with bounded memory

# Not the event loop's default pool: a target that hangs must not block its other users.
_THREADS = ThreadPoolExecutor(2 * MAX_IN_FLIGHT, thread_name_prefix="backups")


async def run_in_thread(
    work: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result:
    """Run blocking work in a thread.

    If cancelled, still waits for the work to end: a cancelled upload must not appear on the target later.
    """
    future = asyncio.get_running_loop().run_in_executor(_THREADS, partial(work, *arguments, **keywords))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        try:
            await wait_out(future)
        finally:
            future.exception()  # retrieve it, nobody needs it any more
        raise


async def map_ordered(
    items: Iterable[Item], work: Callable[[Item], Coroutine[Any, Any, Result]]
) -> AsyncGenerator[Result, None]:
    """Yield the results of `work` in the order of the items, with at most `MAX_IN_FLIGHT` running at a time.

    Raises the first failure. Close it (`contextlib.aclosing`) to make sure that nothing keeps running.
    """
    running: deque[asyncio.Task[Result]] = deque()

    try:
        for item in items:
            if len(running) == MAX_IN_FLIGHT:
                yield await running[0]
                running.popleft()
            running.append(asyncio.create_task(work(item)))
        while running:
            yield await running[0]
            running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
