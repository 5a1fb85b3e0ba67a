"""One client's connection: uvicorn's HTTP/1.1 over httptools, with limits to what the client may send, and when.

It relies on the inside of uvicorn, which is therefore pinned to one minor version; `tests/api/test_server.py` goes
through all of it. One request is read at a time: what a client sends ahead stays where it is until its turn comes.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from litestar.exceptions import HTTPException
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from vpsd.api.http import refusals
from vpsd.api.http.connections import Connections
from vpsd.api.http.errors import LARGEST_BODY_BYTES
from vpsd.api.http.refusals import Refusal

log = logging.getLogger(__name__)

LARGEST_HEAD_BYTES = 32 * 1024
MOST_FIELDS = 100
LONGEST_URL_BYTES = 8 * 1024

_HEAD_END = b"\r\n\r\n"
_LARGEST_CHUNKED_BYTES = 4 * LARGEST_BODY_BYTES  # a body as it comes, with what is between its parts
_MOST_CHUNKED_PARTS = 1000
_MOST_DISCARDED_BYTES = 1024 * 1024  # of what comes after the last answer
_FULL_BODY = b'{"detail":"vpsd has too many connections. Try again in a moment.","code":"unavailable"}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)
)


class _Stop(Exception):
    """Ends the parsing."""


class _Cycle(RequestResponseCycle):
    """One request and its answer."""

    refusal: Refusal | None = None  # what was found wrong with the body

    async def receive(self) -> Any:
        message = await super().receive()
        if self.refusal is not None:
            raise HTTPException(self.refusal.detail, status_code=self.refusal.status_code)
        return message


class Connection(HttpToolsProtocol):
    """The protocol of one connection; towards its cycles it stands for the transport, so that ends are orderly."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        room: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.write: Callable[[bytes], None]  # the transport's own
        self._room = room
        self._in_head = True  # what comes next belongs to the head of a request
        self._answering = False  # a request has come whole, and is not answered yet
        self._deaf = False  # nothing that comes is read any more
        self._head_bytes = 0
        self._body_left: int | None = 0  # None: chunks, which tell themselves where they end
        self._body_bytes = 0
        self._body_parts = 0  # of chunks: those that are parsed by themselves, because a request could end there
        self._tail = b""  # the last bytes of what was parsed, in which an end may have begun
        self._ahead = b""  # sent ahead, while another request is answered
        self._discarded = 0
        self._refusal: Refusal | None = None
        self._writing = (0.0, 0)  # when the transport's buffer last became smaller, and to how many bytes

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.write = transport.write
        if self._room.admit(self, self.client[0] if self.client else ""):
            self._room.wait(self, self._room.limits.first_byte_seconds)
            if self._room.stopping:
                self.shutdown()
        elif self._room.may_tell:
            transport.write(_FULL)
            self.close()
        else:
            self.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._discarded += len(data)
            if self._discarded > _MOST_DISCARDED_BYTES:
                self.transport.abort()
        elif self._answering:
            self._ahead += data
            self.flow.pause_reading()
        else:
            self._read(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._room.stalled.discard(self)

    # What a cycle calls, for which this is its transport.

    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._deaf or self.transport.is_closing()

    def close(self) -> None:
        """End it so that the client can read all that was written: a reset would take it away."""
        self._deaf = True
        self._ahead = b""
        if self.transport.is_closing():
            return
        limits = self._room.limits
        self._room.wait(self, limits.last_call_seconds if self._room.stopping else limits.linger_seconds)
        self.flow.resume_reading()
        self.transport.write_eof()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.is_closing():
            return
        if self._answering:
            self._begin_anew()
        elif self._body_left is not None and self._body_left > LARGEST_BODY_BYTES:
            self.close()
        else:
            self.flow.resume_reading()  # the rest of a body that nobody wanted

    # What `Connections` calls.

    def give_up(self) -> None:
        if self._deaf and self.transport.get_write_buffer_size():
            self._watch_writing()  # the last answer is still on its way
            self._room.wait(self, self._room.limits.linger_seconds)
        elif self._deaf:
            self.transport.abort()  # it was given time to go
        elif not self._in_head and self.flow.read_paused:
            self._room.wait(self, self._room.limits.body_seconds)  # vpsd is the slow one
        elif not self._in_head:
            self._refuse_body(refusals.TOO_SLOW)
        elif self._head_bytes:
            self._refuse(refusals.TOO_SLOW)
        else:
            self.close()

    def make_room(self) -> None:
        self._deaf = True
        self.transport.abort()

    def look_at_writing(self, now: float) -> None:
        since, size = self._writing
        left = self.transport.get_write_buffer_size()
        if left < size:
            self._writing = now, left
        elif now - since >= self._room.limits.write_seconds:
            self.transport.abort()

    def _watch_writing(self) -> None:
        if self not in self._room.stalled:
            self._writing = self._room.now(), self.transport.get_write_buffer_size()
            self._room.stalled.add(self)

    def shutdown(self) -> None:
        """Answer what is under way, then end; the server calls it when it stops."""
        if self._in_head:
            self._room.hurry(self, self._room.limits.last_call_seconds)
        else:
            self.cycle.keep_alive = False

    # Reading.

    def _read(self, data: bytes) -> None:
        if self._in_head and not self._head_bytes:
            self._room.wait(self, self._room.limits.head_seconds)
        at = 0  # what stands before it is parsed
        try:
            while at < len(data) and not self._answering and not self._deaf:
                begin, at = at, self._end_of_part(data, at)
                self._parse(data[begin:at])
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._upgrade()
            return  # to anything else no request here can be upgraded: it has been answered as it is
        except httptools.HttpParserError as error:
            if isinstance(error, httptools.HttpParserCallbackError) and self._refusal is None:
                log.error("a request could not be read", exc_info=error)
            refusal = self._refusal or refusals.MALFORMED
            self._refuse(refusal) if self._in_head else self._refuse_body(refusal)
            return
        if self._answering and at < len(data) and not self._deaf:
            self._ahead = data[at:]
            self.flow.pause_reading()

    def _end_of_part(self, data: bytes, at: int) -> int:
        """Up to where it can be parsed at once, so that at most one request ends there: heads and chunks end so."""
        if not self._in_head and self._body_left is not None:
            return min(at + self._body_left, len(data))
        tail, self._tail = self._tail, b""
        begun = (tail + data[at : at + 3]).find(_HEAD_END) if tail else -1
        if begun >= 0:
            return at + begun + len(_HEAD_END) - len(tail)
        found = data.find(_HEAD_END, at)
        if found >= 0:
            return found + len(_HEAD_END)
        self._tail = (tail + data[max(at, len(data) - 3) :])[-3:]
        return len(data)

    def _parse(self, part: bytes) -> None:
        if not self._in_head:
            self._body_bytes += len(part)
            if self._body_left is not None:
                self._body_left -= len(part)
            else:
                self._body_parts += part.endswith(_HEAD_END)
                if self._body_bytes > _LARGEST_CHUNKED_BYTES or self._body_parts > _MOST_CHUNKED_PARTS:
                    self._refusal = refusals.BODY_TOO_WORDY
                    raise httptools.HttpParserError
            self.parser.feed_data(part)
            return
        room = LARGEST_HEAD_BYTES - self._head_bytes
        self._head_bytes += len(part)
        self.parser.feed_data(part[:room])
        if len(part) > room:
            self._refusal = refusals.HEAD_TOO_LARGE
            raise httptools.HttpParserError

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._body_left = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > LONGEST_URL_BYTES:
            self._stop(refusals.URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing here wants one
        if len(self.headers) == MOST_FIELDS:
            self._stop(refusals.HEAD_TOO_LARGE)
        name = name.lower()
        if name == b"content-length":
            self._body_left = int(value)
        elif name == b"transfer-encoding":
            self._body_left = None
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method().decode("ascii")
        path, _, query = _without_authority(self.url).partition(b"?")
        known = version in ("1.0", "1.1") and method != "CONNECT"
        if not known or b"#" in path or not (path.startswith(b"/") or self.url == b"*"):
            self._stop(refusals.MALFORMED)
        if self.parser.should_upgrade():
            if self._body_left != 0:
                self._stop(refusals.NO_UPGRADE)
            if self._should_upgrade():
                self.scope["method"] = method
                return
        self._in_head = False
        text = path.decode("ascii")
        self._begin(
            method=method,
            http_version=version,
            path=unquote(text) if "%" in text else text,
            raw_path=path,
            query_string=query,
            keep_alive=version == "1.1" and self.parser.should_keep_alive() and not self.parser.should_upgrade(),
        )
        if self._body_left != 0:
            self._room.wait(self, self._room.limits.body_seconds)

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # an upgrade
        self.cycle.more_body = False
        self.cycle.message_event.set()
        if self.cycle.response_complete:
            self.loop.call_soon(self._begin_anew)
        self._answering = True
        self._room.go_on(self)

    # Requests.

    def _begin(self, *, keep_alive: bool, **about: Any) -> None:
        self.scope.update(about)  # type: ignore[typeddict-item]
        if self._body_left is not None and self._body_left > LARGEST_BODY_BYTES:
            keep_alive = False  # it is answered without being read
        self.cycle = _Cycle(
            scope=self.scope,
            transport=self,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive and not self._room.stopping,
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)

    def _begin_anew(self) -> None:
        """The last request is answered: on to the next."""
        if self.is_closing():
            return
        self._in_head, self._answering = True, False
        self._head_bytes = self._body_bytes = self._body_parts = 0
        limits = self._room.limits
        self._room.wait(self, limits.last_call_seconds if self._room.stopping else limits.idle_seconds)
        ahead, self._ahead = self._ahead, b""
        self.flow.resume_reading()
        if ahead:
            self._read(ahead)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is no request by the application, which counts and logs it; then end."""
        if self.scope is None or "path" in self.scope:  # the last request's
            self.on_message_begin()
        self._in_head, self._answering = False, True
        self._room.go_on(self)
        about = {"method": "-", "http_version": "1.1", "path": "-", "raw_path": b"-", "query_string": b""}
        self._begin(**about, refusal=refusal, keep_alive=False)

    def _refuse_body(self, refusal: Refusal) -> None:
        """Let the application's next look at the body end it; where it does not look, the answer is the last."""
        self._answering = True
        self._room.go_on(self)
        self.cycle.refusal = refusal  # type: ignore[attr-defined]
        self.cycle.keep_alive = False
        self.cycle.message_event.set()
        if self.cycle.response_complete:
            self.close()

    def _stop(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise _Stop

    def _upgrade(self) -> None:
        """Hand the connection over; it goes on to be counted."""
        self._room.go_on(self)
        self.handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        lost = protocol.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            self._room.leave(self)
            lost(exc)

        protocol.connection_lost = connection_lost  # type: ignore[method-assign]


def _without_authority(url: bytes) -> bytes:
    """The path and query of a request's target: RFC 9112, section 3.2.2, has servers take whole URLs too."""
    if url[:7].lower() == b"http://" or url[:8].lower() == b"https://":
        _, slash, rest = url.split(b"//", 1)[1].partition(b"/")
        return slash + rest if slash else b"/"
    return url
