"""A guest's serial console, as bytes."""

import asyncio
from typing import Any

import libvirt

from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt import domains

_PENDING_CHUNKS = 1024
_CHUNK_BYTES = 4096
_FULL_WAIT_SECONDS = 0.01
_WOULD_BLOCK = -2
_WRITE_SECONDS = 10.0


def open_console(host: libvirt.virConnect, name: str) -> libvirt.virStream:
    """A stream to the guest's serial console, taken from whoever has it; raises `Unusable` if it is not running."""
    domain = domains.find(host, name)
    if domain is None or not domain.isActive():
        raise Unusable(f"The guest {name} is not running: it has no console.")
    stream = host.newStream(libvirt.VIR_STREAM_NONBLOCK)
    domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
    return stream


class Console:
    """An open serial console; earlier output of the guest is lost."""

    def __init__(self, stream: libvirt.virStream, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(_PENDING_CHUNKS)
        self._open = True
        stream.eventAddCallback(
            libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR,
            self._on_event,
            None,
        )

    async def read(self) -> bytes:
        """The next output of the guest; empty once the console is closed."""
        if not self._open and self._chunks.empty():
            return b""
        return await self._chunks.get()

    async def write(self, data: bytes) -> None:
        """Send input; raises `Unavailable` if the console is closed or accepts no input."""
        deadline = self._loop.time() + _WRITE_SECONDS
        while data:
            try:
                sent = self._stream.send(data)
            except libvirt.libvirtError as error:
                raise Unavailable(f"The console is closed: {error}") from error
            if sent == _WOULD_BLOCK:
                if self._loop.time() > deadline:
                    raise Unavailable("The console accepts no input.")
                await asyncio.sleep(_FULL_WAIT_SECONDS)
            else:
                data = data[sent:]

    def close(self) -> None:
        """Close the console."""
        if self._open:
            self._end()

    def _on_event(self, stream: libvirt.virStream, _: int, __: Any) -> None:
        """In libvirt's event thread."""
        try:
            chunk = stream.recv(_CHUNK_BYTES)
        except libvirt.libvirtError:
            chunk = b""
        if chunk == _WOULD_BLOCK:
            return
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, chunk)

    def _take(self, chunk: bytes) -> None:
        if not chunk and self._open:
            self._end()
        if self._chunks.full():
            self._chunks.get_nowait()  # nobody reads: keep the latest output
        self._chunks.put_nowait(chunk)

    def _end(self) -> None:
        self._open = False
        for release in (self._stream.eventRemoveCallback, self._stream.abort):
            try:
                release()
            except libvirt.libvirtError:
                continue
