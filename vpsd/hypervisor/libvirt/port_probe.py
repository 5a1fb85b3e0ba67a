"""Checks whether anything in a guest speaks, through the forwarded ports."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

_WAIT_SECONDS = 0.3
_PAUSE_SECONDS = 0.1  # between two connections: more frequent ones leave half-open ones behind in QEMU's network
_PARALLEL_SECONDS = 0.3  # until another connection is opened in parallel to a silent one
_SELDOM_SECONDS = 1.0  # the same for ports other than the first, where few servers speak first
_MAX_CONNECTIONS = 3  # dropbear refuses the sixth pending login from one address, sshd the eleventh of all
_MIN_TIMEOUT_SECONDS = 0.9
_MAX_TIMEOUT_SECONDS = 20.0
_EXPIRY_SECONDS = 30.0
_CLOSE_SECONDS = 5.0  # sshd closes the connection at once after an EOF; other servers need not


class PortProbe:
    """Connects to one port of a guest until the server there sends something: sshd its banner.

    QEMU accepts connections whether or not the guest listens, so only what is sent counts. A connection that was
    accepted too early stays silent for good, so others are opened in parallel; one to a slow guest needs time, so the
    longer the guest takes, the longer each connection is kept open.

    Connections that were opened too early may linger in the guest and use up its limit of pending logins. So after the
    first answer all of them are closed, and one last connection has to be served as well: then there is room.
    """

    def __init__(
        self,
        address: str,
        port: int,
        now: Callable[[], float],
        wait_seconds: float = _WAIT_SECONDS,
        *,
        seldom: bool = False,
    ) -> None:
        self._address = address
        self._port = port
        self._now = now
        self._wait_seconds = wait_seconds
        self._pauses = (_SELDOM_SECONDS, _SELDOM_SECONDS) if seldom else (_PAUSE_SECONDS, _PARALLEL_SECONDS)
        self._max_connections = 1 if seldom else _MAX_CONNECTIONS
        self._started = self._last_check = now()
        self._last_opened = 0.0
        self._connections: dict[asyncio.Task[bool], float] = {}  # with the time each was opened
        self._final: asyncio.Task[bool] | None = None

    def is_current(self, address: str, port: int) -> bool:
        """Whether it probes this port and was used recently."""
        return (address, port) == (self._address, self._port) and not self.is_over()

    def is_over(self) -> bool:
        """Whether it was not used for so long that nobody waits any more."""
        return self._now() - self._last_check >= _EXPIRY_SECONDS

    async def check(self) -> bool:
        """Whether the server responds by now; waits a moment for it."""
        self._last_check = now = self._now()
        if self._final is not None:
            return await self._check_final(self._final)
        await self._close(task for task, opened in self._connections.items() if now - opened > self._timeout(now))
        pause_seconds = self._pauses[bool(self._connections)]
        if len(self._connections) < self._max_connections and now - self._last_opened >= pause_seconds:
            self._connections[asyncio.create_task(_is_answered(self._address, self._port))] = self._last_opened = now
        if not self._connections:
            return False
        done, _ = await asyncio.wait(self._connections, timeout=self._wait_seconds, return_when=asyncio.FIRST_COMPLETED)
        answered = any(task.result() for task in done)
        for task in done:
            del self._connections[task]
        if not answered:
            return False
        await self._close(self._connections)
        self._final = asyncio.create_task(_is_served(self._address, self._port))
        return await self._check_final(self._final)

    async def _check_final(self, final: asyncio.Task[bool]) -> bool:
        done, _ = await asyncio.wait({final}, timeout=self._wait_seconds)
        if not done:
            return False
        self._final = None
        return final.result()

    def _timeout(self, now: float) -> float:
        return min(max(_MIN_TIMEOUT_SECONDS, (now - self._started) / 8), _MAX_TIMEOUT_SECONDS)

    async def stop(self) -> None:
        """Close all connections."""
        if self._final is not None:
            self._connections[self._final] = self._last_opened
            self._final = None
        await self._close(self._connections)

    async def _close(self, tasks: Iterable[asyncio.Task[bool]]) -> None:
        closing = list(tasks)
        for task in closing:
            self._connections.pop(task)
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)


class PortProbes:
    """The probes of all guests that are being waited for."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._probes: dict[str, dict[int, PortProbe]] = {}  # by guest and port

    async def responds(self, name: str, address: str, ports: Sequence[int]) -> bool:
        """Whether one of the guest's ports says something; the first is asked most often."""
        for other in [other for other, probes in self._probes.items() if all(map(PortProbe.is_over, probes.values()))]:
            await self.stop(other)  # nobody has asked for long
        probes = self._probes.get(name, {})
        if list(probes) != list(ports) or not all(probe.is_current(address, port) for port, probe in probes.items()):
            await self.stop(name)
            probes = {ports[0]: PortProbe(address, ports[0], self._now)}
            probes |= {port: PortProbe(address, port, self._now, 0, seldom=True) for port in ports[1:]}
            self._probes[name] = probes
        responds = any([await probe.check() for probe in probes.values()])
        if responds:
            await self.stop(name)
        return responds

    async def stop(self, name: str) -> None:
        """Close the connections to a guest, if any."""
        for probe in self._probes.pop(name, {}).values():
            await probe.stop()

    async def close(self) -> None:
        """Close all connections."""
        for name in list(self._probes):
            await self.stop(name)


async def _is_served(address: str, port: int) -> bool:
    """Whether a new connection is answered; waits for the guest to close it, so that nothing of it lingers."""
    try:
        async with asyncio.timeout(_MAX_TIMEOUT_SECONDS):
            return await _is_answered(address, port, close_cleanly=True)
    except TimeoutError:
        return False


async def _is_answered(address: str, port: int, *, close_cleanly: bool = False) -> bool:
    """Whether anything arrives; False if the connection is refused or closed."""
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    try:
        answered = await reader.read(1) != b""
        if close_cleanly:
            writer.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await reader.read()
        return answered
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()
