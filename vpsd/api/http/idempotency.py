"""How a POST is executed: once for each Idempotency-Key."""

import asyncio
import difflib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec
from litestar import Response

from vpsd.api.http.context import bearer_token
from vpsd.api.http.forms import ONCE
from vpsd.api.http.requests import ApiRequest
from vpsd.core.context import Ctx
from vpsd.errors import DatabaseUnavailable, Invalid
from vpsd.idempotency import service as idempotency
from vpsd.idempotency.service import Answer, Claim

HEADER = "Idempotency-Key"

_LONGEST_KEY = 255

Handler: TypeAlias = Callable[[Ctx], Awaitable[Any]]


async def execute(request: ApiRequest, key: str | None, handler: Handler, status_code: int) -> Response[Any]:
    """Call a handler in one transaction and answer what it returns.

    With a `key` its answer is kept in that same transaction. A refused request keeps none: it changed
    nothing, and may be sent again with the same key.
    """
    if key is not None:
        answer = await _once(request, key, handler, status_code)
        return Response(answer.body, status_code=answer.status_code, media_type="application/json")
    async with request.runtime.write(request.actor) as ctx:
        return Response(await handler(ctx), status_code=status_code)


async def _once(request: ApiRequest, key: str, handler: Handler, status_code: int) -> Answer:
    runtime, caller = request.runtime, request.user
    secret, asked = bearer_token(request.scope["headers"]), await _fingerprinted(request)
    runtime.jumps.look()  # where no worker does
    async with runtime.write(caller) as ctx:
        claim = await idempotency.claim(ctx, secret, key, asked, forgets=not runtime.jumps.unsettled)
    if not isinstance(claim, Claim):
        return claim
    try:
        async with runtime.write(caller) as ctx:
            answer = Answer(status_code, msgspec.json.encode(await handler(ctx)))
            await idempotency.finish(ctx, claim, answer)
    except (Exception, asyncio.CancelledError):
        # A claim that was answered stays: after an unknown outcome that is how the next request learns of it. One that
        # cannot be dropped runs out by itself; what is told is why the request failed.
        with suppress(DatabaseUnavailable):
            async with runtime.write(caller) as ctx:
                await idempotency.drop(ctx, claim)
        raise
    return answer


def sent_key(request: ApiRequest) -> str | None:
    """The Idempotency-Key of a request, if it has one; raises `Invalid` for a wrong one, and for a header like it."""
    for name in request.headers:
        if name != HEADER.lower() and _is_misspelt(name):
            raise Invalid({name[:100]: [f"Unknown header. Did you mean {HEADER}?"]})
    keys = request.headers.getall(HEADER, [])
    if len(keys) > 1:
        raise Invalid({HEADER: [f"{ONCE}."]})
    return _checked(keys[0]) if keys else None


def _is_misspelt(name: str) -> bool:
    """Whether a header is meant to be the key: without it, a request that is sent again would be carried out again."""
    if "potency" in name or "idemp" in name:
        return True
    return "key" in name and difflib.SequenceMatcher(None, name, HEADER.lower()).ratio() > 0.75


def _checked(key: str) -> str:
    if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise Invalid({HEADER: [f"Give 1 to {_LONGEST_KEY} printable ASCII characters, best a random UUID."]})
    return key


async def _fingerprinted(request: ApiRequest) -> bytes:
    """Method, path, query and body, whatever the order of the body's keys and its white space."""
    body = await request.body()
    if body:
        body = msgspec.json.encode(await request.json(), order="sorted")
    return b"\n".join([request.method.encode(), request.scope["path"].encode(), request.scope["query_string"], body])
