"""The HTTP server: uvicorn with connections that have limits (`connection`), and an end that cuts nobody off."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from vpsd.api.http.connection import Connection
from vpsd.api.http.connections import Connections, Limits
from vpsd.api.http.middleware import Asgi
from vpsd.settings import Settings

__all__ = ["Connections", "Limits", "Server"]

_TICKS_A_SECOND = 10  # uvicorn's
_STOP_TICK_SECONDS = 0.02


class Server(uvicorn.Server):
    """Serves an application on listening sockets until `should_exit`. It leaves signals to others."""

    def __init__(self, app: Asgi, room: Connections, **config: Any) -> None:
        self.room = room
        protocol: Any = partial(Connection, room=room)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                log_config=None,
                access_log=False,  # vpsd writes its own
                lifespan="on",
                proxy_headers=False,  # `vpsd.api.http.addresses` reads them
                **config,
            )
        )
        self._protocol: Any = protocol
        self._spare: list[socket.socket] = []  # keep the queue of a listener open that is being closed

    @classmethod
    def of(cls, app: Asgi, settings: Settings) -> "Server":
        """As the settings say."""
        return cls(app, Connections(settings))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none: vpsd stops it together with the worker."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._spare = [listener.dup() for listener in sockets or ()]
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """What is done ten times a second: whether to end."""
        if counter % _TICKS_A_SECOND == 0:
            self.room.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer all that has come, whole connections that nobody has accepted yet included, then end.

        Who is still not served after `end_seconds` is cut off.
        """
        self.room.stopping = True
        for server in self.servers:
            server.close()
        queued = list(_accept_all(self._spare))
        for listener in [*self._spare, *(sockets or ())]:
            listener.close()
        loop = asyncio.get_running_loop()
        protocol = partial(
            self._protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for accepted in queued:
            await loop.connect_accepted_socket(protocol, accepted)
        await self._drain(loop.time() + self.room.limits.end_seconds)
        await self.lifespan.shutdown()

    async def _drain(self, until: float) -> None:
        loop, state = asyncio.get_running_loop(), self.server_state
        while (state.connections or state.tasks) and loop.time() < until:
            self.room.sweep()
            await asyncio.sleep(_STOP_TICK_SECONDS)
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        for connection in list(state.connections):
            connection.transport.abort()


def _accept_all(listeners: Sequence[socket.socket]) -> Iterator[socket.socket]:
    """The connections that wait to be accepted: closing the listener would reset them."""
    for listener in listeners:
        listener.setblocking(False)
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:  # no more of them, or no more descriptors
                break
            accepted.setblocking(False)
            yield accepted
