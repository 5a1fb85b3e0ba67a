"""The server over raw sockets: time limits, requests that are sent ahead, clients that do not read.

uvicorn's inside that `vpsd.api.http.connection` relies on is what these tests go through.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from tests.api.raw_http import request
from tests.api.serving import GET, App, Client, Served, serving_app, until
from tests.cloud import Cloud
from vpsd.api.http.connections import Limits

LIMITS = Limits()
POST = b"POST / HTTP/1.1\r\nHost: vpsd.test\r\nContent-Length: 10\r\n\r\n"
NO_ROOM = b'{"detail":"vpsd has too many connections. Try again in a moment.","code":"unavailable"}'

WORDY = b'{"detail":"The body comes in too many small chunks.","code":"too_large"}'


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def served(app: App) -> AsyncIterator[Served]:
    """A server that answers by `app`."""
    async with serving_app(app) as found:
        yield found
        app.piece = b""
        app.may_answer.set()


async def open_until(served: Served, client: Client, *limits: float) -> bytes:
    """Check that the connection outlives all but the last of some times; what comes in the end."""
    for seconds in limits:
        served.advance(seconds - 0.1)
        await client.send(b"")
        assert not client.reader.at_eof()
        served.advance(0.1)
    return await client.rest()


# Time limits.


async def test_who_says_nothing_is_not_waited_for(served: Served) -> None:
    assert await open_until(served, await served.client(), LIMITS.first_byte_seconds) == b""


async def test_the_server_looks_for_those_that_take_too_long_by_itself(served: Served) -> None:
    client = await served.client()
    served.time += LIMITS.first_byte_seconds
    await served.server.on_tick(1)
    assert len(served.room) == 1
    await served.server.on_tick(10)
    assert await client.rest() == b""


async def test_a_head_that_comes_slowly_is_not_waited_for(cloud: Cloud) -> None:
    async with serving_app(cloud.app()) as served:
        client = await served.client()
        await client.send(b"GET / HT")
        served.advance(LIMITS.head_seconds - 1)
        await client.send(b"TP/1.1\r\n")  # is no new start
        answer = await open_until(served, client, 1)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(b'"code":"timeout"}')


@pytest.mark.parametrize("path", ["servers/", "servers/1/start/"])
async def test_a_body_that_comes_slowly_is_not_waited_for(cloud: Cloud, path: str) -> None:
    token = f"Authorization: Bearer {cloud.tokens['alice']}".encode()
    fields = (token, b"Content-Type: application/json", b"Content-Length: 100")
    async with serving_app(cloud.app()) as served:
        client = await served.client()
        await client.send(request(f"POST /api/v1/{path} HTTP/1.1".encode(), *fields, body=b"{"))
        served.advance(LIMITS.body_seconds - 1)
        await client.send(b'"name":')
        answer = await open_until(served, client, 1)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(b'"code":"timeout"}')


async def test_a_body_that_nobody_wants_is_not_waited_for_either(served: Served, app: App) -> None:
    app.reads = False
    client = await served.client()
    await client.send(POST + b"12345")
    assert (await client.answer())[0] == 200
    assert await open_until(served, client, LIMITS.body_seconds) == b""


async def test_after_a_body_that_nobody_wanted_the_connection_goes_on(served: Served, app: App) -> None:
    app.reads = False
    client = await served.client()
    await client.send(POST + b"12345")
    assert (await client.answer())[0] == 200
    await client.send(b"67890" + GET)
    assert (await client.answer())[0] == 200
    assert app.seen == ["/", "/"]


async def test_a_body_that_is_too_large_to_be_thrown_away_is_the_last(served: Served, app: App) -> None:
    app.reads = False
    client = await served.client()
    await client.send(POST.replace(b": 10\r", b": 300000\r") + b"x")
    status, fields, _ = await client.answer()
    assert (status, fields[b"connection"]) == (200, b"close")
    assert await client.rest() == b""


async def test_a_trailer_is_no_field(served: Served, app: App) -> None:
    app.may_answer.clear()
    client = await served.client()
    await client.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    )
    assert [name for name, _ in app.fields] == [b"host", b"transfer-encoding"]
    app.may_answer.set()
    assert (await client.answer())[0] == 200


async def test_a_client_has_no_time_limit_while_vpsd_works_or_does_not_take_what_it_sends(
    served: Served, app: App
) -> None:
    app.may_answer.clear()
    waiting, sending = await served.client(), await served.client()
    await waiting.send(GET)
    app.reads_late = True
    await sending.send(POST.replace(b": 10\r", b": 200000\r") + b"x" * 200_000)
    for _ in range(5):
        served.advance(1000)
        await waiting.send(b"")
    app.may_answer.set()
    assert [(await client.answer())[0] for client in (waiting, sending)] == [200, 200]


async def test_an_idle_connection_is_ended_after_a_while(served: Served) -> None:
    client = await served.client()
    await client.send(GET)
    assert (await client.answer())[0] == 200
    assert await open_until(served, client, LIMITS.idle_seconds) == b""


async def test_who_does_not_end_a_connection_that_is_over_is_cut_off(served: Served) -> None:
    client = await served.client()
    await client.send(request(b"GET / HTTP/1.1"))
    await client.rest()
    served.advance(LIMITS.linger_seconds - 0.1)
    await client.send(b"x" * 1000)  # nobody reads it, and it is no reason for a reset
    assert len(served.room) == 1
    served.advance(0.1)
    await until(lambda: len(served.room) == 0)


async def test_what_comes_after_the_last_answer_is_not_swallowed_for_ever(served: Served) -> None:
    client = await served.client()
    await client.send(request(b"GET / HTTP/1.1"))
    for _ in range(40):
        await client.send(b"x" * 65536)
    await until(lambda: len(served.room) == 0)


# Clients that send ahead, and clients that do not read.


async def test_requests_that_are_sent_ahead_are_answered_one_after_the_other(served: Served, app: App) -> None:
    kinds = [
        *(GET.replace(b"/", b"/%d" % number, 1) for number in range(50)),
        POST.replace(b"/", b"/50", 1) + b"\r\n\r\n012345",
        b"POST /51 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n",
        GET.replace(b"/", b"/52", 1),
    ]
    client = await served.client()
    await client.send(b"".join(kinds))
    answers = [await client.answer() for _ in kinds]
    assert {status for status, _, _ in answers} == {200}
    assert [body for _, _, body in answers][-3:] == [b"\r\n\r\n012345", b"\r\n\r\n", b""]
    assert app.seen == [f"/{number}" for number in range(53)]
    assert app.most_at_once == 1


@pytest.mark.parametrize("place", [1, 2, 3, 4])
async def test_it_does_not_matter_where_a_head_is_cut_that_others_follow(served: Served, app: App, place: int) -> None:
    app.may_answer.clear()
    client = await served.client()
    await client.send(GET[:-place])
    await client.send(GET[-place:] + GET * 2)
    assert app.seen == ["/"]
    app.may_answer.set()
    assert [(await client.answer())[0] for _ in range(3)] == [200] * 3
    assert app.most_at_once == 1


async def test_only_so_much_is_read_ahead(served: Served, app: App) -> None:
    app.may_answer.clear()
    client = await served.client()
    client.writer.transport.set_write_buffer_limits(high=0)
    client.writer.write(GET * 1_000_000)
    await asyncio.wait([asyncio.create_task(client.writer.drain())], timeout=0.2)
    (connection,) = served.server.server_state.connections
    assert len(connection._ahead) <= 2 * 256 * 1024  # type: ignore[union-attr]
    assert app.seen == ["/"]
    client.writer.transport.abort()


async def test_who_does_not_read_gets_little_written_and_is_cut_off(served: Served, app: App) -> None:
    app.piece = b"x" * 100_000
    client = await served.client()
    client.writer.write(GET)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: served.room.stalled)
    (connection,) = served.server.server_state.connections
    assert connection.transport.get_write_buffer_size() < 64 * 1024 + len(app.piece) + 100
    sent = app.sent
    served.advance(LIMITS.write_seconds - 0.1)
    await client.send(b"")
    assert (len(served.room), app.sent) == (1, sent)
    app.piece = b""
    served.advance(0.1)
    await until(lambda: len(served.room) == 0)
    assert not served.room.stalled


async def test_who_reads_slowly_is_not_cut_off(served: Served, app: App) -> None:
    app.piece = b"x" * 20_000_000
    client = await served.client()
    client.writer.write(GET)
    await until(lambda: served.room.stalled)
    (connection,) = served.server.server_state.connections
    left = connection.transport.get_write_buffer_size()
    for _ in range(3):
        await client.reader.readexactly(4_000_000)
        assert 0 < connection.transport.get_write_buffer_size() < left
        left = connection.transport.get_write_buffer_size()
        served.advance(LIMITS.write_seconds - 0.1)
    assert (len(served.room), app.sent) == (1, 1)
    client.close()


async def test_the_last_answer_is_waited_for_as_long_as_it_is_read(served: Served, app: App) -> None:
    app.answer = b"x" * 20_000_000
    client = await served.client()
    client.writer.write(request(b"GET / HTTP/1.1"))
    await until(lambda: served.room.stalled)
    for _ in range(3):
        await client.reader.readexactly(4_000_000)
        served.advance(LIMITS.write_seconds - 0.1)
    assert len(await client.rest()) > 8_000_000
    client.close()


async def test_nor_is_who_does_not_read_the_little_that_is_left_of_it(served: Served, app: App) -> None:
    app.answer = b"x" * 20_000_000
    client = await served.client()
    client.writer.write(request(b"GET / HTTP/1.1"))
    await until(lambda: served.room.stalled)
    (connection,) = served.server.server_state.connections
    connection.resume_writing()  # as if it were less than what is watched
    served.advance(LIMITS.linger_seconds)
    assert served.room.stalled
    served.advance(LIMITS.write_seconds)
    await until(lambda: len(served.room) == 0)
    client.close()


async def test_a_body_in_too_many_small_chunks_is_refused(cloud: Cloud) -> None:
    token = f"Authorization: Bearer {cloud.tokens['alice']}".encode()
    fields = (token, b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    body = b"1;" + b"x" * 1000 + b"\r\nx\r\n"
    async with serving_app(cloud.app()) as served:
        client = await served.client()
        await client.send(request(b"POST /api/v1/servers/ HTTP/1.1", *fields, body=body * 1200), rounds=200)
        status, _, problem = await client.answer()
        assert (status, problem) == (413, WORDY)


@pytest.mark.parametrize(("number", "status"), [(990, 400), (1010, 413)])
async def test_a_body_in_which_too_often_a_request_could_end_is_refused(cloud: Cloud, number: int, status: int) -> None:
    token = f"Authorization: Bearer {cloud.tokens['alice']}".encode()
    fields = (token, b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    body = b"%x\r\n" % (4 * number) + b"\r\n\r\n" * number + b"\r\n0\r\n\r\n"
    async with serving_app(cloud.app()) as served:
        client = await served.client()
        await client.send(request(b"POST /api/v1/servers/ HTTP/1.1", *fields, body=body))
        found, _, problem = await client.answer()
        assert (found, problem == WORDY) == (status, status == 413)


# Room.


async def test_idle_and_slow_connections_shut_nobody_out(app: App) -> None:
    async with serving_app(app, most=60) as served:
        slow = [await served.client() for _ in range(100)]
        for number, client in enumerate(slow):
            await client.send((b"", b"GET / HTTP/1.1\r\nX: y", POST + b"x")[number % 3])
        assert len(served.room) == 60
        client = await served.client()
        await client.send(GET)
        assert (await client.answer())[0] == 200
        for each in slow:
            each.close()


async def test_where_all_are_busy_there_is_a_503(app: App) -> None:
    async with serving_app(app, most=16) as served:
        app.may_answer.clear()
        busy = [await served.client() for _ in range(16)]
        for client in busy:
            await client.send(GET)
        one_more = await served.client()
        await one_more.send(GET)
        status, fields, body = await one_more.answer()
        assert (status, fields[b"retry-after"], fields[b"connection"], body) == (503, b"1", b"close", NO_ROOM)
        assert await one_more.rest() == b""
        app.may_answer.set()
        assert {(await client.answer())[0] for client in busy} == {200}
        one_more = await served.client()
        await one_more.send(GET)
        assert (await one_more.answer())[0] == 200


async def test_a_web_socket_is_handed_over_and_goes_on_to_be_counted(app: App) -> None:
    class Echo(asyncio.Protocol):
        def __init__(self, config: Any, server_state: Any, app_state: Any) -> None:
            self.heads: list[bytes] = []

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"echo: " + data)

    ask = request(b"GET /stream HTTP/1.1", b"Upgrade: websocket").replace(b": close", b": Upgrade")
    async with serving_app(app, config={"ws": Echo}) as served:
        client = await served.client()
        await client.send(ask)
        served.advance(1000)
        await client.send(b"frame")
        async with asyncio.timeout(10):
            said = await client.reader.readuntil(b"frame")
        assert said.startswith(b"echo: GET /stream HTTP/1.1\r\nhost: vpsd.test\r\n")
        assert said.endswith(b"\r\n\r\necho: frame")
        assert len(served.room) == 1
        client.close()
        await until(lambda: len(served.room) == 0)


async def test_a_body_beside_an_upgrade_is_not_taken_for_the_next_request(served: Served, app: App) -> None:
    client = await served.client()
    await client.send(
        request(b"POST / HTTP/1.1", b"Upgrade: h2c", b"Content-Length: 37").replace(b": close", b": Upgrade") + GET
    )
    assert app.seen == ["-"]  # only as a refusal
    client.close()


def test_the_uvicorn_is_the_one_whose_inside_is_known() -> None:
    assert uvicorn.__version__.startswith("0.54.")
