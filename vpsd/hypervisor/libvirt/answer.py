"""Whether a guest's SSH answers, through the port that leads to it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

_LOOK_SECONDS = 0.3
_PAUSE_SECONDS = 0.1  # between two connections: quicker knocking leaves half-open ones behind in QEMU's network
_BESIDE_SECONDS = 0.3  # until another is opened beside one that is silent
_SLOTS = 3  # open at once: dropbear refuses when five of one address wait to log in, sshd when ten of all do
_LEAST_PATIENCE_SECONDS = 0.9
_LARGEST_PATIENCE_SECONDS = 20.0
_FORGET_SECONDS = 30.0
_HANG_UP_SECONDS = 5.0  # sshd hangs up at once on who says goodbye; another server need not


class Knocking:
    """Knocks at one guest's SSH until it greets.

    QEMU takes a connection whether or not the guest listens: only the greeting tells. One that was taken too early
    stays silent for good, so others are opened beside it; one to a slow guest needs its time, so the longer the guest
    takes, the longer each connection is held.

    What knocked too early may wait in the guest for a moment longer, and take the places of those who wait to log in.
    So when one was greeted and all others are closed, a last one has to be greeted and served: then there is room.
    """

    def __init__(self, address: str, port: int, now: Callable[[], float], look_seconds: float = _LOOK_SECONDS) -> None:
        self._address = address
        self._port = port
        self._now = now
        self._look_seconds = look_seconds
        self._began = self._looked = now()
        self._newest = 0.0
        self._tries: dict[asyncio.Task[bool], float] = {}  # and when each was opened
        self._last: asyncio.Task[bool] | None = None

    def is_of(self, address: str, port: int) -> bool:
        """Whether it is still about this port, and was looked at lately."""
        return (address, port) == (self._address, self._port) and self._now() - self._looked < _FORGET_SECONDS

    async def look(self) -> bool:
        """Whether the guest has greeted by now; waits a moment for it."""
        self._looked = now = self._now()
        if self._last is not None:
            return await self._is_let_in(self._last)
        await self._drop(task for task, opened in self._tries.items() if now - opened > self._patience(now))
        pause_seconds = _BESIDE_SECONDS if self._tries else _PAUSE_SECONDS
        if len(self._tries) < _SLOTS and now - self._newest >= pause_seconds:
            self._tries[asyncio.create_task(_greeting(self._address, self._port))] = self._newest = now
        if not self._tries:
            return False
        done, _ = await asyncio.wait(self._tries, timeout=self._look_seconds, return_when=asyncio.FIRST_COMPLETED)
        greeted = any(task.result() for task in done)
        for task in done:
            del self._tries[task]
        if not greeted:
            return False
        await self._drop(self._tries)
        self._last = asyncio.create_task(_served(self._address, self._port))
        return await self._is_let_in(self._last)

    async def _is_let_in(self, last: asyncio.Task[bool]) -> bool:
        done, _ = await asyncio.wait({last}, timeout=self._look_seconds)
        if not done:
            return False
        self._last = None
        return last.result()

    def _patience(self, now: float) -> float:
        return min(max(_LEAST_PATIENCE_SECONDS, (now - self._began) / 8), _LARGEST_PATIENCE_SECONDS)

    async def stop(self) -> None:
        """Close every connection."""
        if self._last is not None:
            self._tries[self._last] = self._newest
            self._last = None
        await self._drop(self._tries)

    async def _drop(self, tasks: Iterable[asyncio.Task[bool]]) -> None:
        dropped = list(tasks)
        for task in dropped:
            self._tries.pop(task)
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)


async def _served(address: str, port: int) -> bool:
    """Whether somebody who comes now is greeted; sees the guest hang up, so that nothing of it waits there."""
    try:
        return await asyncio.wait_for(_greeting(address, port, politely=True), _LARGEST_PATIENCE_SECONDS)
    except TimeoutError:
        return False


async def _greeting(address: str, port: int, *, politely: bool = False) -> bool:
    """Whether the greeting came; False where the connection was refused or closed. `politely`: says goodbye."""
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    try:
        greeted = await reader.readexactly(4) == b"SSH-"
        if politely:
            writer.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), _HANG_UP_SECONDS)
        return greeted
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()
