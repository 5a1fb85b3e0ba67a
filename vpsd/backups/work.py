"""How backups are worked on: blocking work in threads of their own, a few chunks at once."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

AT_ONCE = 4  # chunks in flight for each backup: enough to keep a distant target busy, and bounds the memory

# Not the loop's own threads: a target that hangs must not hold up who else uses those.
_THREADS = ThreadPoolExecutor(2 * AT_ONCE, thread_name_prefix="backups")


async def in_thread(work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
    """Carry out blocking work in a thread.

    Who is cancelled meanwhile waits for its end: what was called off must not appear on the target afterwards.
    """
    future = asyncio.get_running_loop().run_in_executor(_THREADS, partial(work, *arguments, **named))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        future.exception()  # nobody asks any more how it went
        raise


async def in_order(
    items: Iterable[Item], work: Callable[[Item], Coroutine[Any, Any, Result]]
) -> AsyncGenerator[Result, None]:
    """The results of `work` in the order of the items, `AT_ONCE` of them under way at a time.

    The first failure is raised. Close it (`contextlib.aclosing`) to be sure that nothing runs on.
    """
    running: deque[asyncio.Task[Result]] = deque()

    try:
        for item in items:
            if len(running) == AT_ONCE:
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
