"""Runs blocking libvirt calls against one host, with a time limit and one retry after a lost connection."""

import time
from collections.abc import Callable
from typing import TypeVar

import libvirt

from vpsd.hypervisor.libvirt.connection import Connection
from vpsd.hypervisor.libvirt.failures import translate
from vpsd.hypervisor.libvirt.threads import Threads

T = TypeVar("T")

_THREADS = 8
_CONNECT_SECONDS = 60.0  # extra time without a connection: a daemon's first look at QEMU is slow
_CLOSE_SECONDS = 20.0
_AT_ONCE_SECONDS = 5.0


class LibvirtHost:
    """The host's libvirt, called from asyncio."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._threads = Threads(_THREADS)

    async def call(self, work: Callable[[libvirt.virConnect], T], action: str, limit_seconds: float) -> T:
        """Call `work` with the open connection; once more if the connection broke at once, as in a restart of libvirtd.

        One that broke later was silent for long: asking anew would only hold another thread.

        `action` completes "The host could not …" in errors.
        """

        def run() -> T:
            began = time.monotonic()
            try:
                return work(self._connection.get())
            except libvirt.libvirtError as error:
                if not self._connection.is_lost() or time.monotonic() - began > _AT_ONCE_SECONDS:
                    raise translate(error, action) from error
            try:
                return work(self._connection.get())
            except libvirt.libvirtError as error:
                raise translate(error, action) from error

        extra = _CONNECT_SECONDS if self._connection.is_lost() else 0.0
        return await self._threads.call(run, action, limit_seconds + extra)

    async def run(self, work: Callable[[], T], action: str, limit_seconds: float) -> T:
        """Call `work` in a thread without asking for a connection."""
        return await self._threads.call(work, action, limit_seconds)

    async def close(self) -> None:
        """Disconnect."""
        await self._threads.call(self._connection.close, "disconnect", _CLOSE_SECONDS)
        self._threads.close()


def versions(host: libvirt.virConnect) -> str:
    """Which libvirt and QEMU it has."""

    def text(number: int) -> str:
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    return f"libvirt {text(host.getLibVersion())}, QEMU {text(host.getVersion())}"
