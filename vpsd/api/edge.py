"""The outermost layer: a request's id, its line in the log, headers of every answer, and HEAD like GET."""

import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from vpsd.accounts.models import Caller
from vpsd.core import logs
from vpsd.core.ids import Ids

Asgi: TypeAlias = Callable[..., Awaitable[None]]

log = logging.getLogger("vpsd.access")

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # what may stand in a log


class Trace(msgspec.Struct):
    """What the layers of one request tell each other."""

    request_id: str
    headers: dict[str, str]  # to be sent with the answer
    caller: Caller | None = None


class Edge:
    """Wraps the application. A sane X-Request-ID of the sender is kept, so that it can be found in both logs."""

    def __init__(self, app: Asgi, ids: Ids) -> None:
        self._app = app
        self._ids = ids

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _SANE_ID.fullmatch(sent) else self._ids.uuid()
        trace = Trace(request_id, {"X-Request-ID": request_id})
        status = 500
        began = time.perf_counter()

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ours = [(name.lower().encode(), value.encode()) for name, value in trace.headers.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        token = logs.request_id.set(request_id)
        try:
            # HEAD is answered like GET; the server leaves the body out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method, "vpsd": trace}, receive, answer)
        finally:
            if log.isEnabledFor(logging.INFO):
                _tell(scope, trace.caller, status, time.perf_counter() - began)
            logs.request_id.reset(token)


def _tell(scope: Any, caller: Caller | None, status: int, seconds: float) -> None:
    # The path alone: whatever secret somebody puts into a query by mistake stays out of the log.
    path = scope["path"].encode("unicode_escape").decode()
    facts: dict[str, object] = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_ms": round(seconds * 1000, 2),
        "address": (scope.get("client") or (None,))[0],
    }
    if caller is not None:
        facts |= {"account_id": caller.account_id, "token_id": caller.token_id}
    log.info("%s %s %s in %.1f ms", scope["method"], path, status, seconds * 1000, extra=facts)
