"""How a POST is carried out: once for each Idempotency-Key, or, with `?dry_run=1`, only in rehearsal."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Response
from msgspec import Meta

from vpsd.api.access import bearer_token
from vpsd.api.cloud import CloudRequest, cloud_of
from vpsd.core.db import Tx, rehearse
from vpsd.core.forms import Form
from vpsd.core.money import Amount
from vpsd.errors import Invalid
from vpsd.idempotency import service as idempotency
from vpsd.idempotency.service import Answer, Claim

T = TypeVar("T")

_LONGEST_KEY = 255


class DryRunQuery(msgspec.Struct):
    """What can be tried before it is done."""

    dry_run: Annotated[
        bool,
        Meta(
            description="1: say what would come of it, change nothing",
            extra={"message": "Give 1 to try it, or 0 to do it."},
        ),
    ] = False


class Price(msgspec.Struct):
    """What a server costs, in credits."""

    monthly: Amount
    hourly: Annotated[Amount, Meta(description="The month's / 672, to a thousandth; a month costs at most its price")]
    currency: str


class Placement(msgspec.Struct):
    """Where a server would run or runs."""

    location: str
    host: Annotated[str | None, Meta(description="Null where no host is known yet")]


class DryRun(msgspec.Struct):
    """What a request would come to. Nothing was changed."""

    dry_run: bool
    answer: Annotated[
        dict[str, Any], Meta(description="The answer it would give; ids and secrets are made only when it is done")
    ]
    price: Price
    placement: Placement


async def carry_out(
    request: CloudRequest,
    work: Callable[[Tx], Awaitable[T]],
    status_code: int,
    preview: Callable[[Tx, T], Awaitable[DryRun]] | None = None,
) -> Response[Any]:
    """Do the work of a POST in one transaction and answer it.

    With an Idempotency-Key its answer is kept in that same transaction. A refused request keeps none: it changed
    nothing, and may be sent again with the same key.
    """
    database = cloud_of(request).database
    if preview is not None and _is_dry(request):
        async with rehearse(database) as tx:
            shown = await preview(tx, await work(tx))
        return Response(shown, status_code=200)
    key = request.headers.get("idempotency-key")
    if key is None:
        async with database.write() as tx:
            answer = await work(tx)
        return Response(answer, status_code=status_code)
    return await _once(request, _checked(key), work, status_code)


def _is_dry(request: CloudRequest) -> bool:
    asked: Form[DryRunQuery] = request.query_form()
    asked.done()
    return bool(asked.get("dry_run", False))


def _checked(key: str) -> str:
    if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise Invalid(
            {"Idempotency-Key": [f"Give 1 to {_LONGEST_KEY} printable ASCII characters, best a random UUID."]}
        )
    return key


async def _once(request: CloudRequest, key: str, work: Callable[[Tx], Awaitable[T]], status_code: int) -> Response[Any]:
    cloud = cloud_of(request)
    secret, asked = bearer_token(request), await _fingerprinted(request)
    async with cloud.database.write() as tx:
        mine = await idempotency.claim(tx, cloud.ids, cloud.clock, request.user.token_id, secret, key, asked)
    if isinstance(mine, Claim):
        try:
            async with cloud.database.write() as tx:
                answer = Answer(status_code, msgspec.json.encode(await work(tx)))
                await idempotency.finish(tx, mine, answer)
        except Exception:
            async with cloud.database.write() as tx:
                await idempotency.drop(tx, mine)
            raise
    else:
        answer = mine
    return Response(answer.body, status_code=answer.status_code, media_type="application/json")


async def _fingerprinted(request: CloudRequest) -> bytes:
    """Method, path, query and body, whatever the order of the body's keys and its white space."""
    body = await request.body()
    if body:
        body = msgspec.json.encode(await request.json(), order="sorted")
    return b"\n".join([request.method.encode(), request.scope["path"].encode(), request.scope["query_string"], body])
