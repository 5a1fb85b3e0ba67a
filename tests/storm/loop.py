"""An event loop without a world outside: its time jumps to the next timer, and one seed decides who goes next.

Processes of a storm share it. What a process does is known by a context variable, which its tasks, timers and callbacks
inherit: what belongs to a process that was killed never runs again, and what belongs to a stopped one waits.
"""

import asyncio
import contextvars
import heapq
import random
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Process:
    """As much of a process as the loop knows of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_stopped = False
        self.left_over: list[asyncio.Handle] = []  # what waits until it goes on; of a dead one, what never runs

    def __repr__(self) -> str:
        return self.name


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)


class _Task(asyncio.Task[T], Generic[T]):
    """A task whose place in a set does not depend on where it lies in memory."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class _Future(asyncio.Future[Any]):
    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class Stuck(Exception):
    """Everybody waits for something that nobody will do."""


class StormLoop(asyncio.BaseEventLoop):
    """Runs one callback at a time, whichever the seed says."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._ready: list[asyncio.Handle] = []
        self._scheduled: list[asyncio.TimerHandle] = []
        self._chance = chance
        self._now = 1000.0
        self._made = 0
        self.steps = 0
        self.kept: list[
            _Task[Any]
        ] = []  # tasks that never end, kept so that no collector runs what is in their `finally`

    def time(self) -> float:
        return self._now

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        task: _Task[Any] = _Task(coro, self._next_number(), loop=self, name=name, context=context)
        if (context.get(PROCESS) if context is not None else PROCESS.get()) is not None:
            self.kept.append(task)
        return task

    def create_future(self) -> Any:
        return _Future(self._next_number(), self)

    def _next_number(self) -> int:
        self._made += 1
        return self._made

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Work for threads is done here and now: it is no part of what is tried."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def let_go_on(self, process: Process) -> None:
        """A stopped process goes on."""
        process.is_stopped = False
        self._ready += process.left_over
        process.left_over = []

    def forget(self) -> None:
        """Let go of everything that would still happen."""
        for waiting in (self.kept, self._ready, self._scheduled):
            waiting.clear()

    def _run_once(self) -> None:
        scheduled: list[Any] = self._scheduled
        ready: list[Any] = self._ready
        while scheduled and (scheduled[0]._cancelled or not ready or scheduled[0]._when <= self._now):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._now = max(self._now, timer._when)
                ready.append(timer)
        if not ready:
            raise Stuck
        # One of them, in its place the last: removing it costs the same wherever it was.
        index = int(self._chance.random() * len(ready))
        handle, ready[index] = ready[index], ready[-1]
        ready.pop()
        if handle._cancelled:
            return
        process = handle._context.get(PROCESS)
        if process is not None and (process.is_dead or process.is_stopped):
            process.left_over.append(handle)
            return
        self.steps += 1
        handle._run()

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""
