"""Runs libvirt's blocking calls in a bounded number of threads, each with a time limit.

The threads are daemon threads: a call that never returns must not keep vpsd from exiting.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vpsd.errors import Unavailable

T = TypeVar("T")


class Threads:
    """A small thread pool for blocking calls."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._started = 0
        self._idle = 0
        self._lock = threading.Lock()

    async def call(self, work: Callable[[], T], action: str, limit_seconds: float) -> T:
        """Run the work in a thread; raises `Unavailable` if it takes too long, and then does not wait for its end.

        An abandoned call may still take effect later: that is why all calls are idempotent.
        """
        job: Future[T] = Future()
        with self._lock:
            if self._idle < self._jobs.qsize() + 1 and self._started < self._limit:
                self._started += 1
                threading.Thread(target=self._work, name=f"libvirt-{self._started}", daemon=True).start()
        self._jobs.put((job, work))
        try:
            async with asyncio.timeout(limit_seconds):  # `wait_for` of Python 3.11 may swallow a cancellation
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise Unavailable(f"The host could not {action} within {limit_seconds:g} seconds.") from None

    def close(self) -> None:
        """Let the threads end once they are idle."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            item = self._jobs.get()
            with self._lock:
                self._idle -= 1
            if item is None:
                return
            job, work = item
            if not job.set_running_or_notify_cancel():
                continue
            try:
                job.set_result(work())
            except BaseException as error:
                job.set_exception(error)
            del item, job, work  # keep nothing of a finished call alive while waiting for the next
