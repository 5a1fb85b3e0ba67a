"""A test's vpsd on a real port, served as vpsd serves it, in the test's own event loop."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.cloud import Cloud
from vpsd.api.http.middleware import Asgi
from vpsd.api.http.server import Connections, Limits, Server
from vpsd.settings import Settings


@asynccontextmanager
async def serving(cloud: Cloud) -> AsyncIterator[str]:
    """Answer at the URL that is given."""
    async with serving_app(cloud.app()) as served:
        yield f"http://127.0.0.1:{served.port}"


GET = b"GET / HTTP/1.1\r\nHost: vpsd.test\r\n\r\n"


class App:
    """An application that answers with the body that it got, when it may; it notes what it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fields: list[tuple[bytes, bytes]] = []
        self.under_way = 0
        self.most_at_once = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.reads = True
        self.reads_late = False
        self.piece = b""  # of an answer without end
        self.sent = 0
        self.answer = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.seen.append(scope["path"])
        self.fields = scope["headers"]
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        if self.reads_late:
            await self.may_answer.wait()
        body, more = b"", self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.under_way -= 1
                return
            body, more = body + message["body"], message["more_body"]
        await self.may_answer.wait()
        body = self.answer or body
        length = [] if self.piece else [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        while self.piece:
            await send({"type": "http.response.body", "body": self.piece, "more_body": True})
            self.sent += 1
        self.under_way -= 1
        await send({"type": "http.response.body", "body": body})


class Served:
    """A server at a port, whose time only moves when it is told to."""

    def __init__(self, app: Asgi, most: int, config: Any, settings: Any) -> None:
        self.time = 0.0
        self.room = Connections(Settings(**settings), Limits(), most=most, now=lambda: self.time)
        self.server = Server(app, self.room, **config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]

    def advance(self, seconds: float) -> None:
        """Move its time forward, and have it end what took too long."""
        self.time += seconds
        self.room.sweep()

    async def client(self) -> "Client":
        """A new connection, which the server knows of."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        me = client.writer.get_extra_info("sockname")
        connections: set[Any] = self.server.server_state.connections
        await until(lambda: any(known.client == me for known in connections))
        return client


class Client:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes, rounds: int = 20) -> None:
        """Send bytes, and let the server look at them."""
        self.writer.write(data)
        for _ in range(rounds):
            await asyncio.sleep(0)

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """Read one answer with a length: status, fields, body."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = head[:-4].split(b"\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in lines)
            body = await self.reader.readexactly(int(fields.get(b"content-length", b"0")))
        return int(line.split(b" ")[1]), fields, body

    async def rest(self) -> bytes:
        """All that comes until the end; a reset raises `ConnectionResetError`."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


async def until(tells: Any) -> None:
    """Let the event loop go round until something is true."""
    async with asyncio.timeout(10):
        while not tells():
            await asyncio.sleep(0)


@asynccontextmanager
async def serving_app(
    app: Asgi, *, most: int = 1000, config: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """Serve any application."""
    served = Served(app, most, config or {}, settings)
    task = asyncio.create_task(served.server.serve([served.listener]))
    await until(lambda: served.server.started)
    try:
        yield served
    finally:
        served.server.should_exit = True
        served.time = math.inf  # nobody is waited for
        await task
