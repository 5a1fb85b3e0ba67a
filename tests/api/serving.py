"""A test's vpsd on a real port, served as vpsd serves it, in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.cloud import Cloud
from vpsd.api.http.middleware import Asgi
from vpsd.api.http.server import Connections, Server


@asynccontextmanager
async def serving(cloud: Cloud) -> AsyncIterator[str]:
    """Answer at the URL that is given."""
    async with serving_app(cloud.app(), Connections(cloud.settings)) as (_, port):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def serving_app(app: Asgi, room: Connections) -> AsyncIterator[tuple[Server, int]]:
    """Serve any application: the server, and the port at which it answers."""
    server = Server(app, room)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0)
        try:
            yield server, port
        finally:
            server.should_exit = True
            await task
