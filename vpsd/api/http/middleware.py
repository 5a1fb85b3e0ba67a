"""The outermost layer: a request's id, sender and caller, how often they may ask, CORS, the log, HEAD and OPTIONS."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from vpsd.accounts import tokens
from vpsd.api.http.addresses import Senders
from vpsd.api.http.context import RateLimits, RequestContext, bearer_token
from vpsd.api.http.cors import PREFLIGHT, Cors
from vpsd.api.http.errors import ASKS_FOR_METHODS, CODES, HUNG_UP, METHODS, Problem
from vpsd.api.http.health import HEALTH, PROBE_SECONDS
from vpsd.api.http.refusals import refusal_of
from vpsd.core import logs
from vpsd.core.db import WAIT_SECONDS
from vpsd.errors import DatabaseUnavailable, TooMany
from vpsd.runtime import Runtime

Asgi: TypeAlias = Callable[..., Awaitable[None]]
Pairs: TypeAlias = list[tuple[bytes, bytes]]

log = logging.getLogger("vpsd.access")

_CUT_OFF = Problem(
    "vpsd is stopping, and did not finish this request. If you sent an Idempotency-Key, send the request again with "
    "the same one; otherwise look first.",
    CODES[503],
)
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # what may stand in a log
# HEAD is answered like GET: the server leaves the body out.
_ANSWERED_AS = {"HEAD": "GET", "OPTIONS": ASKS_FOR_METHODS}


class Crowded(TooMany):
    """An address has too many requests that are not answered yet."""

    def __init__(self) -> None:
        super().__init__("This address waits for too many answers at once. Wait 1 second.", 1)


class RequestMiddleware:
    """Wraps the application. A sane X-Request-ID of the sender is kept, so that it can be found in both logs."""

    def __init__(self, app: Asgi, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._limits = RateLimits.of(runtime)
        self._senders = Senders(runtime.settings)
        self._cors = Cors(runtime.settings.cors)
        self._under_way: Counter[str] = Counter()  # by network: connections of a proxy are no measure

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _SANE_ID.fullmatch(sent) else self._runtime.ids.uuid()
        sender = self._senders.of(scope)
        headers = {"X-Request-ID": request_id, **self._cors.headers(scope)}
        context = RequestContext(
            self._runtime, self._limits, sender.address, sender.network, sender.base, request_id, headers
        )
        scope = {**scope, "path": sender.path, "vpsd": context}
        status, began_to_answer = 500, False
        began = time.perf_counter()

        async def answer(message: Any) -> None:
            nonlocal status, began_to_answer
            if message["type"] == "http.response.start":
                status, began_to_answer = message["status"], True
                if context.caller is not None:
                    context.headers["Cache-Control"] = "no-store"  # it may hold a secret: no proxy or browser keeps it
                ours = [(name.lower().encode(), value.encode()) for name, value in context.headers.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        token = logs.request_id.set(request_id)
        self._under_way[sender.network] += 1
        try:
            await self._answer(scope, context, receive, answer)
        except TooMany as error:
            retry = [(b"retry-after", str(error.retry_seconds).encode())]
            await _refuse(429, Problem(str(error), error.code), retry, answer)
        except asyncio.CancelledError:  # by the server, which ends
            if began_to_answer:
                raise
            await _refuse(503, _CUT_OFF, [(b"connection", b"close")], answer)
        finally:
            self._under_way[sender.network] -= 1
            if not self._under_way[sender.network]:
                del self._under_way[sender.network]
            if log.isEnabledFor(logging.INFO):
                _log(scope, context, status, time.perf_counter() - began)
            logs.request_id.reset(token)

    async def _answer(self, scope: Any, context: RequestContext, receive: Any, answer: Asgi) -> None:
        """Answer a request; raises `TooMany`."""
        refusal = refusal_of(scope)
        if refusal is not None:
            context.headers["Connection"] = "close"  # of the 429 as well: nothing that follows is to be looked at
            context.take("address", context.network)
            problem = Problem(refusal.detail, CODES[refusal.status_code])
            await _refuse(refusal.status_code, problem, [*refusal.headers], answer)
            return
        if self._under_way[context.network] > self._runtime.settings.connections_per_address:
            raise Crowded
        await self._identify(scope, context)
        if self._cors.is_preflight(scope):
            await _answer_empty(PREFLIGHT, answer)
        elif scope["path"] == "*" and scope["method"] == "OPTIONS":
            await _answer_empty([(b"allow", METHODS.encode())], answer)
        else:
            method = _ANSWERED_AS.get(scope["method"], scope["method"])
            await self._app({**scope, "method": method}, receive, answer)

    async def _identify(self, scope: Any, context: RequestContext) -> None:
        """Find the caller and count the request: with a right token for the token, otherwise for the address.

        So nobody is shut out by others behind the same address, like all guests behind QEMU's user-mode network.
        """
        value = bearer_token(scope["headers"])
        if value:
            wait_seconds = PROBE_SECONDS if scope["path"].startswith(HEALTH) else WAIT_SECONDS
            try:
                async with self._runtime.read(wait_seconds=wait_seconds) as ctx:
                    context.login = await tokens.authenticate(ctx, value, context.address, context.request_id)
            except Exception as error:
                context.login = error  # the routes that need a login raise it, where it becomes an answer
        if context.caller is not None:
            context.take("token", str(context.caller.token_id))
        elif not isinstance(context.login, DatabaseUnavailable):  # whether it was a right one nobody knows
            context.take("address", context.network)


async def _refuse(status: int, problem: Problem, headers: Pairs, answer: Asgi) -> None:
    """Answer before any route is looked up: the framework has no part in it yet."""
    body = msgspec.json.encode(problem)
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await answer({"type": "http.response.start", "status": status, "headers": about + headers})
    await answer({"type": "http.response.body", "body": body})


async def _answer_empty(headers: Pairs, answer: Asgi) -> None:
    await answer({"type": "http.response.start", "status": 204, "headers": headers})
    await answer({"type": "http.response.body", "body": b""})


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
    level = logging.DEBUG if status == HUNG_UP else logging.INFO
    log.log(
        *(level, "%s %s %s in %.1f ms from %s", scope["method"], path, status, seconds * 1000, context.address),
        extra=facts,
    )
