"""Requests with random damage, as bytes: each is answered or hung up on, and none meets an error of vpsd's own."""

import asyncio
import random
import re
from collections.abc import Iterator

import pytest

from tests.api.raw_http import CASES
from tests.fuzz.effort import LONG, SEED, again
from tests.running import Vpsd

_REQUESTS = 6000 if LONG else 300
_AT_ONCE = 30
_PATIENCE_SECONDS = 0.3  # then nothing more is sent: half a request is no reason to wait

_PIECES = [
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b":",
    b";",
    b",",
    b"%2F",
    b"//",
    b"\xff",
    b"-1",
    b"A" * 9000,
]
_PIECES += [b"HTTP/1.1", b"chunked", b"Host: b\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
_WHOLE = [
    b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/servers/?page_size=1&status=active HTTP/1.1\r\nHost: a\r\nAuthorization: TOKEN\r\n\r\n",
    b"POST /api/v1/ssh-keys/ HTTP/1.1\r\nHost: a\r\nAuthorization: TOKEN\r\nContent-Type: application/json\r\n"
    b'Content-Length: 31\r\n\r\n{"name": "a", "public_key": "b"}',
    b"POST /api/v1/servers/1/stop/ HTTP/1.1\r\nHost: a\r\nAuthorization: TOKEN\r\nIdempotency-Key: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"OPTIONS /api/v1/servers/ HTTP/1.1\r\nHost: a\r\nOrigin: https://a\r\nAccess-Control-Request-Method: GET\r\n\r\n",
]


@pytest.fixture
def vpsd() -> Iterator[Vpsd]:
    """A vpsd that never says 429."""
    running = Vpsd(hypervisor="simulator", rate_limit=0, address_rate_limit=0, login_failures=0)
    running.start()
    yield running
    running.discard()


def test_no_bytes_bring_vpsd_out_of_step(vpsd: Vpsd) -> None:
    chosen = random.Random(SEED)
    whole = [*_WHOLE, *(case.data for case in CASES if len(case.data) < 10_000)]
    token = f"Bearer {vpsd.token}".encode()
    sent = [_damaged(chosen.choice(whole), chosen).replace(b"TOKEN", token) for _ in range(_REQUESTS)]
    answers = asyncio.run(_send_all(int(vpsd.listen.rpartition(":")[2]), sent))
    for data, answer in zip(sent, answers, strict=True):
        assert not answer or re.match(rb"HTTP/1\.1 [1-4]\d\d ", answer), (data, answer, again("test_bytes.py"))
    assert sum(map(bool, answers)) > len(answers) / 2
    assert vpsd.is_well(), again("test_bytes.py")
    assert not re.search("Traceback|unexpected error", vpsd.said()), f"{vpsd.said()}\n{again('test_bytes.py')}"


def _damaged(data: bytes, chosen: random.Random) -> bytes:
    for _ in range(chosen.randint(0, 3)):
        place = chosen.randrange(len(data) + 1)
        end = min(len(data), place + chosen.choice((0, 0, 1, 1, 4, 20)))
        piece = chosen.choice([b"", data[place:end] * 2, bytes([chosen.randrange(256)]), chosen.choice(_PIECES)])
        data = data[:place] + piece + data[end:]
    return data


async def _send_all(port: int, sent: list[bytes]) -> list[bytes]:
    answers: list[bytes] = []
    for begin in range(0, len(sent), _AT_ONCE):
        answers += await asyncio.gather(*(_send(port, data) for data in sent[begin : begin + _AT_ONCE]))
    return answers


async def _send(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""

    async def read() -> None:
        nonlocal answer
        while piece := await reader.read(65536):
            answer += piece

    reading = asyncio.create_task(read())
    try:
        writer.write(data)
        await writer.drain()
        await asyncio.wait([reading], timeout=_PATIENCE_SECONDS)
        writer.write_eof()
        await asyncio.wait_for(reading, 20)
    except ConnectionError:
        await asyncio.gather(reading, return_exceptions=True)
    finally:
        writer.close()
    return answer
