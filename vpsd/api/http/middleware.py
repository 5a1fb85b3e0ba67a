"""The outermost layer: a request's id and sender, how often an address may ask, CORS, the log, and HEAD like GET."""

import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from vpsd.accounts.models import Caller
from vpsd.api.http.addresses import Senders
from vpsd.api.http.cors import PREFLIGHT, Cors
from vpsd.api.http.errors import Problem
from vpsd.core import logs
from vpsd.core.limits import Limiter
from vpsd.errors import TooMany
from vpsd.runtime import Runtime

Asgi: TypeAlias = Callable[..., Awaitable[None]]

log = logging.getLogger("vpsd.access")

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # what may stand in a log
_FAILURES_SECONDS = 600


class LimitReached(TooMany):
    """A token or an address has sent too many requests."""

    def __init__(self, sender: str, retry_seconds: int) -> None:
        super().__init__(f"This {sender} has sent too many requests. Wait {retry_seconds} seconds.", retry_seconds)


class RateLimits(msgspec.Struct, frozen=True):
    """How often somebody may ask, counted in this process."""

    address: Limiter
    token: Limiter
    failures: Limiter

    @classmethod
    def of(cls, runtime: Runtime) -> "RateLimits":
        """As the settings say."""
        clock, settings = runtime.clock, runtime.settings
        return cls(
            Limiter(clock, settings.address_rate_limit),
            Limiter(clock, settings.rate_limit),
            Limiter(clock, settings.login_failures, _FAILURES_SECONDS),
        )


class RequestContext(msgspec.Struct):
    """What the layers of one request tell each other."""

    limits: RateLimits
    address: str
    network: str  # what of the address limits count by
    base: str  # what addresses of vpsd begin with for the sender
    request_id: str
    headers: dict[str, str]  # to be sent with the answer
    caller: Caller | None = None

    def take(self, name: str, key: str) -> None:
        """Count a request against a limit and say what is left in the headers; raises `TooMany`.

        Headers: draft-ietf-httpapi-ratelimit-headers, version 10.
        """
        limiter: Limiter = getattr(self.limits, name)
        if not limiter.limit:
            return
        quota = limiter.take(key)
        self._add("RateLimit-Policy", f'"{name}";q={quota.limit};w={limiter.window_seconds}')
        self._add("RateLimit", f'"{name}";r={quota.remaining};t={quota.reset_seconds}')
        if quota.retry_seconds:
            raise LimitReached(name, quota.retry_seconds)

    def _add(self, header: str, text: str) -> None:
        before = self.headers.get(header)
        self.headers[header] = f"{before}, {text}" if before else text


class RequestMiddleware:
    """Wraps the application. A sane X-Request-ID of the sender is kept, so that it can be found in both logs."""

    def __init__(self, app: Asgi, runtime: Runtime) -> None:
        self._app = app
        self._ids = runtime.ids
        self._limits = RateLimits.of(runtime)
        self._senders = Senders(runtime.settings)
        self._cors = Cors(runtime.settings.cors)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _SANE_ID.fullmatch(sent) else self._ids.uuid()
        sender = self._senders.of(scope)
        headers = {"X-Request-ID": request_id, **self._cors.headers(scope)}
        context = RequestContext(self._limits, sender.address, sender.network, sender.base, request_id, headers)
        scope = {**scope, "path": sender.path, "vpsd": context}
        status = 500
        began = time.perf_counter()

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if context.caller is not None:
                    context.headers["Cache-Control"] = "no-store"  # it may hold a secret: no proxy or browser keeps it
                ours = [(name.lower().encode(), value.encode()) for name, value in context.headers.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        token = logs.request_id.set(request_id)
        try:
            context.take("address", context.network)
            if self._cors.is_preflight(scope):
                await answer({"type": "http.response.start", "status": 204, "headers": PREFLIGHT})
                await answer({"type": "http.response.body", "body": b""})
                return
            # HEAD is answered like GET; the server leaves the body out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method}, receive, answer)
        except TooMany as error:
            await _refuse(error, answer)
        finally:
            if log.isEnabledFor(logging.INFO):
                _log(scope, context, status, time.perf_counter() - began)
            logs.request_id.reset(token)


async def _refuse(error: TooMany, answer: Asgi) -> None:
    """Answer before any route is looked up: the framework has no part in it yet."""
    body = msgspec.json.encode(Problem(str(error), error.code))
    headers = {"content-type": "application/json", "retry-after": str(error.retry_seconds)}
    headers["content-length"] = str(len(body))
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await answer({"type": "http.response.start", "status": 429, "headers": raw})
    await answer({"type": "http.response.body", "body": body})


def _log(scope: Any, context: RequestContext, status: int, seconds: float) -> None:
    # The path alone: whatever secret somebody puts into a query by mistake stays out of the log.
    path = scope["path"].encode("unicode_escape").decode()
    facts: dict[str, object] = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_ms": round(seconds * 1000, 2),
        "address": context.address,
    }
    if context.caller is not None:
        facts |= {"account_id": context.caller.account_id, "token_id": context.caller.token_id}
    log.info("%s %s %s in %.1f ms", scope["method"], path, status, seconds * 1000, extra=facts)
