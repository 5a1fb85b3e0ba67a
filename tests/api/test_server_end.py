"""The end of the server: what has come is answered, and nobody is reset."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.api.serving import GET, App, Client, Served, until
from vpsd.api.http.connections import Limits

LIMITS = Limits()


@pytest.fixture
def app() -> App:
    return App()


@asynccontextmanager
async def started(app: App) -> AsyncIterator[Served]:
    """A server that a test ends itself, by its `shutdown`."""
    served = Served(app, 1000, {}, {})
    served.server.config.load()
    served.server.lifespan = served.server.config.lifespan_class(served.server.config)
    await served.server.startup([served.listener])
    yield served
    assert not served.server.server_state.connections
    assert not served.server.server_state.tasks


async def test_at_the_end_nobody_is_reset_and_all_that_was_asked_is_answered(app: App) -> None:
    async with started(app) as served:
        old = await served.client()
        await old.send(GET)
        await old.answer()
        served.advance(LIMITS.last_call_seconds)
        young, busy = await served.client(), await served.client()
        app.may_answer.clear()
        await busy.send(GET)
        queued = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
        for each in queued:
            each.sendall(GET)
        ending = asyncio.create_task(served.server.shutdown([served.listener]))
        await until(lambda: len(app.seen) == 22)
        assert await old.rest() == b""
        await young.send(GET)  # crosses the end
        app.may_answer.set()
        for client in (young, busy):
            status, fields, _ = await client.answer()
            assert (status, fields[b"connection"]) == (200, b"close")
            assert await client.rest() == b""
        for each in queued:
            each.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=each)
            client = Client(reader, writer)
            assert (await client.answer())[0] == 200
            assert await client.rest() == b""
            client.close()
        for client in (old, young, busy):
            client.close()
        await ending
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", served.port))


async def test_an_idle_connection_is_given_a_moment_at_the_end(app: App) -> None:
    async with started(app) as served:
        client = await served.client()
        await client.send(GET)
        await client.answer()
        ending = asyncio.create_task(served.server.shutdown([served.listener]))
        await client.send(b"")
        assert not client.reader.at_eof()
        served.advance(LIMITS.last_call_seconds)
        assert await client.rest() == b""
        client.close()
        await ending


async def test_who_is_not_served_in_time_is_cut_off_at_the_end(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(app) as served:
        served.room.limits = Limits(end_seconds=0.05)
        app.may_answer.clear()
        client = await served.client()
        await client.send(GET)
        await served.server.shutdown([served.listener])
        await until(lambda: not served.server.server_state.connections)
