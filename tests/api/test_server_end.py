"""The end of the server: what has come is answered, and nobody is reset."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.api.raw_http import request
from tests.api.serving import GET, App, Client, Served, until
from tests.cloud import Cloud
from tests.idempotency.posts import KEY, SERVERS, WEB, WORK, Gate, Stumbling, count
from vpsd.api.app import make_app
from vpsd.api.http.connection import Connection
from vpsd.api.http.connections import Limits
from vpsd.api.http.middleware import Asgi

LIMITS = Limits()


@pytest.fixture
def app() -> App:
    return App()


@asynccontextmanager
async def started(app: Asgi) -> AsyncIterator[Served]:
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


async def test_a_request_that_is_cut_off_is_told_so_and_its_key_may_be_sent_again(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    await cloud.get(SERVERS)  # so that the use of the token need not be recorded
    database, gate = Stumbling(cloud.database), Gate()
    database.before[WORK] = gate
    body = msgspec.json.encode(WEB)
    fields = {"Authorization": f"Bearer {cloud.tokens['alice']}", "Content-Type": "application/json", **KEY}
    lines = [f"{name}: {value}".encode() for name, value in (fields | {"Content-Length": str(len(body))}).items()]
    async with started(make_app(msgspec.structs.replace(cloud.runtime, database=database))) as served:
        served.room.limits = Limits(end_seconds=0.05)
        client = await served.client()
        await client.send(request(f"POST {SERVERS} HTTP/1.1".encode(), *lines, body=body))
        await gate.reached.wait()
        assert await count(cloud, "idempotency_keys") == 1
        await served.server.shutdown([served.listener])
        status, answered, problem = await client.answer()
        assert (status, answered[b"content-type"], answered[b"connection"]) == (503, b"application/json", b"close")
        assert msgspec.json.decode(problem)["code"] == "unavailable"
        await until(lambda: not served.server.server_state.connections)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [await count(cloud, table) for table in ("idempotency_keys", "servers")] == [0, 0]


async def test_who_still_sends_a_body_that_nobody_wanted_is_given_a_moment_at_the_end(app: App) -> None:
    async with started(app) as served:
        app.reads = False
        client = await served.client()
        await client.send(b"POST / HTTP/1.1\r\nHost: vpsd.test\r\nContent-Length: 10\r\n\r\n01234")
        await client.answer()
        (connection,) = served.server.server_state.connections
        assert isinstance(connection, Connection)
        ending = asyncio.create_task(served.server.shutdown([served.listener]))
        await client.send(b"56789")
        assert not connection.is_closing()
        served.advance(LIMITS.last_call_seconds)
        assert connection.is_closing()
        assert await client.rest() == b""
        client.close()
        await ending
