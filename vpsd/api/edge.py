"""The outermost layer: a request's id, how often an address may ask, the line in the log, and HEAD like GET."""

import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from vpsd.accounts.models import Caller
from vpsd.api.cloud import Cloud
from vpsd.api.errors import Problem
from vpsd.core import logs
from vpsd.core.limits import Limiter
from vpsd.errors import TooMany

Asgi: TypeAlias = Callable[..., Awaitable[None]]

log = logging.getLogger("vpsd.access")

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # what may stand in a log
_FAILURES_SECONDS = 600


class Gates(msgspec.Struct, frozen=True):
    """How often somebody may ask, counted in this process."""

    address: Limiter
    token: Limiter
    failures: Limiter

    @classmethod
    def of(cls, cloud: Cloud) -> "Gates":
        """As the settings say."""
        settings = cloud.settings
        return cls(
            Limiter(cloud.clock, settings.address_rate_limit),
            Limiter(cloud.clock, settings.rate_limit),
            Limiter(cloud.clock, settings.login_failures, _FAILURES_SECONDS),
        )


class Trace(msgspec.Struct):
    """What the layers of one request tell each other."""

    gates: Gates
    address: str
    request_id: str
    headers: dict[str, str]  # to be sent with the answer
    caller: Caller | None = None

    def take(self, name: str, key: str) -> None:
        """Count a request at a gate and tell what is left in the headers; raises `TooMany`.

        Headers: draft-ietf-httpapi-ratelimit-headers, version 10.
        """
        limiter: Limiter = getattr(self.gates, name)
        if not limiter.limit:
            return
        quota = limiter.take(key)
        self._add("RateLimit-Policy", f'"{name}";q={quota.limit};w={limiter.window_seconds}')
        self._add("RateLimit", f'"{name}";r={quota.remaining};t={quota.reset_seconds}')
        if quota.retry_seconds:
            wait = quota.retry_seconds
            raise TooMany(f"This {name} has sent too many requests. Wait {wait} seconds.", wait)

    def _add(self, header: str, text: str) -> None:
        before = self.headers.get(header)
        self.headers[header] = f"{before}, {text}" if before else text


class Edge:
    """Wraps the application. A sane X-Request-ID of the sender is kept, so that it can be found in both logs."""

    def __init__(self, app: Asgi, cloud: Cloud) -> None:
        self._app = app
        self._ids = cloud.ids
        self._gates = Gates.of(cloud)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _SANE_ID.fullmatch(sent) else self._ids.uuid()
        trace = Trace(self._gates, _address(scope), request_id, {"X-Request-ID": request_id})
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
            trace.take("address", trace.address)
            # HEAD is answered like GET; the server leaves the body out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method, "vpsd": trace}, receive, answer)
        except TooMany as error:
            await _refuse(error, answer)
        finally:
            if log.isEnabledFor(logging.INFO):
                _tell(scope, trace, status, time.perf_counter() - began)
            logs.request_id.reset(token)


def _address(scope: Any) -> str:
    client = scope.get("client")
    try:
        return str(ipaddress.ip_address(client[0]))
    except (TypeError, ValueError):
        return "unknown"


async def _refuse(error: TooMany, answer: Asgi) -> None:
    """Before any route is looked for, there is no framework to do it."""
    body = msgspec.json.encode(Problem(str(error), error.code))
    headers = {"content-type": "application/json", "retry-after": str(error.retry_seconds)}
    headers["content-length"] = str(len(body))
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await answer({"type": "http.response.start", "status": 429, "headers": raw})
    await answer({"type": "http.response.body", "body": body})


def _tell(scope: Any, trace: Trace, status: int, seconds: float) -> None:
    # The path alone: whatever secret somebody puts into a query by mistake stays out of the log.
    path = scope["path"].encode("unicode_escape").decode()
    facts: dict[str, object] = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_ms": round(seconds * 1000, 2),
        "address": trace.address,
    }
    if trace.caller is not None:
        facts |= {"account_id": trace.caller.account_id, "token_id": trace.caller.token_id}
    log.info("%s %s %s in %.1f ms", scope["method"], path, status, seconds * 1000, extra=facts)
