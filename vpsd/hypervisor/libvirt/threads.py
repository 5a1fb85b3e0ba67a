"""libvirt's calls block: they run here, in a bounded number of threads, and nobody waits for one longer than its limit.

The threads are daemons: a call that never comes back must not keep vpsd from ending.
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
    """A few threads that do blocking calls in turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._started = 0
        self._idle = 0
        self._lock = threading.Lock()

    async def call(self, work: Callable[[], T], doing: str, limit_seconds: float) -> T:
        """Do the work in a thread; raises `Unavailable` when it takes too long, and then nobody waits for its end.

        A call that was given up may still come to its effect later: that is why every call may be repeated.
        """
        job: Future[T] = Future()
        with self._lock:
            if self._idle < self._jobs.qsize() + 1 and self._started < self._limit:
                self._started += 1
                threading.Thread(target=self._work, name=f"libvirt-{self._started}", daemon=True).start()
        self._jobs.put((job, work))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), limit_seconds)
        except TimeoutError:
            raise Unavailable(f"The host could not {doing} within {limit_seconds:g} seconds.") from None

    def close(self) -> None:
        """Let the threads end once they have nothing to do."""
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
            del item, job, work  # nothing of a finished call stays alive while waiting for the next
