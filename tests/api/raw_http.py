"""Requests as bytes, right and wrong ones, and the status that each must be answered with; `send` sends one."""

import asyncio
from typing import NamedTuple

_HEAD_BYTES = 32 * 1024


class Case(NamedTuple):
    """What is sent on a fresh connection, and the status of the (first) answer."""

    name: str
    data: bytes
    status: int


def request(
    line: bytes = b"GET /health HTTP/1.1", *fields: bytes, body: bytes = b"", host: bytes | None = b"vpsd.test"
) -> bytes:
    """A request as bytes, after which the server is to close the connection."""
    first = () if host is None else (b"Host: " + host,)
    return b"\r\n".join([line, *first, *fields, b"Connection: close", b"", body])


_POST = b"POST /api/v1/ssh-keys/ HTTP/1.1"
_JSON = b"Content-Type: application/json"
_CHUNKED = b"Transfer-Encoding: chunked"
_LONG = b"X" * (_HEAD_BYTES + 1024)

CASES = [
    Case("a plain request", request(), 200),
    Case("HTTP/1.0", request(b"GET /health HTTP/1.0"), 200),
    Case("HTTP/1.0 without a Host", request(b"GET /health HTTP/1.0", host=None), 200),
    Case("an empty line before it", b"\r\n" + request(), 200),
    Case("an absolute URL", request(b"GET http://vpsd.test/health HTTP/1.1"), 200),
    Case("an absolute URL without a path", request(b"GET http://vpsd.test HTTP/1.1"), 404),
    Case("HEAD", request(b"HEAD /health HTTP/1.1"), 200),
    Case("OPTIONS", request(b"OPTIONS /api/v1/servers/ HTTP/1.1"), 204),
    Case("OPTIONS of everything", request(b"OPTIONS * HTTP/1.1"), 204),
    Case("OPTIONS of what is not there", request(b"OPTIONS /nowhere HTTP/1.1"), 404),
    Case("TRACE", request(b"TRACE /health HTTP/1.1"), 405),
    Case("CONNECT", request(b"CONNECT vpsd.test:22 HTTP/1.1"), 400),
    Case("CONNECT to a path", request(b"CONNECT /health HTTP/1.1"), 400),
    Case("an upgrade to HTTP/2", request(b"GET /health HTTP/1.1", b"Upgrade: h2c"), 200),
    Case(
        "an upgrade that is asked for",
        b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        200,
    ),
    Case("a WebSocket, which nothing here is", request(b"GET /health HTTP/1.1", b"Upgrade: websocket"), 200),
    Case("Expect", request(_POST, b"Expect: 100-continue", _JSON, b"Content-Length: 2", body=b"{}"), 401),
    Case("a body of chunks", request(_POST, _JSON, _CHUNKED, body=b"2\r\n{}\r\n0\r\n\r\n"), 401),
    Case("a trailer", request(_POST, _JSON, _CHUNKED, body=b"2\r\n{}\r\n0\r\nX: y\r\n\r\n"), 401),
    # The head.
    Case("nonsense", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40 + b"\r\n\r\n", 400),
    Case("another protocol", b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", 400),
    Case("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    Case("HTTP/0.9", b"GET /health\r\n\r\n", 400),
    Case("HTTP/0.9 by name", request(b"GET /health HTTP/0.9"), 400),
    Case("HTTP/2.0 by name", request(b"GET /health HTTP/2.0"), 400),
    Case("a version that is none", request(b"GET /health HTTP/1.x"), 400),
    Case("a version to come", request(b"GET /health HTTP/3.0"), 400),
    Case("a method that is none", request(b"GOT /health HTTP/1.1"), 400),
    Case("a method in lower case", request(b"get /health HTTP/1.1"), 400),
    Case("a space too many", request(b"GET  /health  HTTP/1.1"), 200),
    Case("a space in the path", request(b"GET /hea lth HTTP/1.1"), 400),
    Case("a path that does not begin with a slash", request(b"GET health HTTP/1.1"), 400),
    Case("a fragment", request(b"GET /health#x HTTP/1.1"), 400),
    Case("a path that is not ASCII", request(b"GET /h\xc3\xa9alth HTTP/1.1"), 400),
    Case("a NUL in the path", request(b"GET /health\0 HTTP/1.1"), 400),
    Case("a space before the colon", request(b"GET /health HTTP/1.1", b"X-Odd : y"), 400),
    Case("a field without a colon", request(b"GET /health HTTP/1.1", b"X-Odd"), 400),
    Case("a field without a name", request(b"GET /health HTTP/1.1", b": y"), 400),
    Case("a folded field", request(b"GET /health HTTP/1.1", b"X-Odd: y\r\n z"), 400),
    Case("a NUL in a field", request(b"GET /health HTTP/1.1", b"X-Odd: y\0z"), 400),
    Case("a carriage return in a field", request(b"GET /health HTTP/1.1", b"X-Odd: y\rz: 1"), 400),
    Case("lines that end with LF alone", b"GET /health HTTP/1.1\nHost: a\nConnection: close\n\n", 400),
    Case("no Host", request(host=None), 400),
    Case("two Hosts", request(b"GET /health HTTP/1.1", b"Host: vpsd.test"), 400),
    Case("an empty Host", request(host=b""), 400),
    Case("a Host that is none", request(host=b"a b/c"), 400),
    Case("a Host with a login", request(host=b"me@vpsd.test"), 400),
    Case("two tokens", request(b"GET /health HTTP/1.1", b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
    Case("an encoded slash", request(b"GET /api%2Fv1/plans/ HTTP/1.1"), 400),
    Case("an encoded slash in lower case", request(b"GET /api%2fv1/plans/ HTTP/1.1"), 400),
    Case("two slashes", request(b"GET //health HTTP/1.1"), 400),
    Case("two slashes at the end", request(b"GET /health// HTTP/1.1"), 400),
    Case("an encoded slash in the query", request(b"GET /health?x=%2F//y HTTP/1.1"), 200),
    Case("100 fields", request(b"GET /health HTTP/1.1", *[b"X-%d: y" % n for n in range(98)]), 200),
    Case("101 fields", request(b"GET /health HTTP/1.1", *[b"X-%d: y" % n for n in range(99)]), 431),
    Case("a field of 30 KiB", request(b"GET /health HTTP/1.1", b"X: " + b"y" * 30 * 1024), 200),
    Case("a field that is too long", request(b"GET /health HTTP/1.1", b"X: " + _LONG), 431),
    Case("a field with a name that is too long", request(b"GET /health HTTP/1.1", _LONG + b": y"), 431),
    Case("fields that are too long together", request(_POST, *[b"X: " + b"y" * 1024] * 33), 431),
    Case("a head without an end", b"GET /health HTTP/1.1\r\nX: " + b"y" * 600 * 1024, 431),
    Case("a URL that is too long", request(b"GET /health?" + b"x" * 9000 + b" HTTP/1.1"), 414),
    Case("a URL without an end", b"GET /" + b"x" * 600 * 1024, 414),
    Case("empty lines without an end", b"\r\n" * 300 * 1024, 431),
    # The body.
    Case("an encoded body", request(_POST, b"Content-Encoding: gzip", _JSON, b"Content-Length: 2", body=b"{}"), 415),
    Case("a length that is none", request(_POST, b"Content-Length: two"), 400),
    Case("a length with a sign", request(_POST, b"Content-Length: +2", body=b"{}"), 400),
    Case("a length below zero", request(_POST, b"Content-Length: -2"), 400),
    Case("an empty length", request(_POST, b"Content-Length:"), 400),
    Case("two lengths", request(_POST, b"Content-Length: 2", b"Content-Length: 3", body=b"{}"), 400),
    Case("the same length twice", request(_POST, b"Content-Length: 2", b"Content-Length: 2", body=b"{}"), 400),
    Case("a list of lengths", request(_POST, b"Content-Length: 2, 2", body=b"{}"), 400),
    Case("a length without end", request(_POST, b"Content-Length: " + b"9" * 30), 400),
    Case("a length and chunks", request(_POST, _CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    Case("chunks and a length", request(_POST, b"Content-Length: 5", _CHUNKED, body=b"0\r\n\r\n"), 400),
    Case("chunks twice", request(_POST, _CHUNKED, _CHUNKED, body=b"0\r\n\r\n"), 400),
    Case("chunks that are packed", request(_POST, b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    Case("chunks of chunks", request(_POST, b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    Case("a coding that is none", request(_POST, b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    Case("identity as a coding", request(_POST, b"Transfer-Encoding: identity"), 400),
    Case("an empty coding", request(_POST, b"Transfer-Encoding:"), 400),
    Case("a vertical tab in a coding", request(_POST, b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    Case("chunks in HTTP/1.0", request(b"POST / HTTP/1.0", _CHUNKED, body=b"0\r\n\r\n"), 400),
    Case("a length that is far too large", request(_POST, _JSON, b"Content-Length: 300000000", body=b"{"), 401),
]


async def send(port: int, data: bytes, limit_seconds: float = 10) -> bytes:
    """Send some bytes to a port of this machine and read until the server ends the connection.

    A server that is told off while it still sends may reset the connection; what came before counts.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(limit_seconds):
            sending = asyncio.create_task(_write(writer, data))
            answer = await _read(reader)
            await sending
    finally:
        writer.close()
    return answer


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        writer.write(data)
        await writer.drain()
    except ConnectionError:
        pass


async def _read(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while piece := await reader.read(65536):
            answer += piece
    except ConnectionError:
        pass
    return answer


def status_of(answer: bytes) -> int:
    """The status of the first final answer among some bytes; 0 where there is none."""
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
