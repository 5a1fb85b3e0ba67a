"""Routes: what a handler is given, and in which transaction it runs.

A handler is a function of a `Ctx`, of the ids in its path, and of what its signature names beside them: `form` is the
body, `query` the query, `runtime` what the process works with. It returns what is answered. A GET reads; everything
else runs in a transaction of its own, a POST once for each Idempotency-Key.
"""

import inspect
import itertools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

import litestar
import msgspec
from litestar import Response
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from vpsd.api.http.authentication import PUBLIC
from vpsd.api.http.forms import NoQuery, Query
from vpsd.api.http.idempotency import execute, sent_key
from vpsd.api.http.requests import ApiRequest
from vpsd.core.context import Actor, Ctx, Transactions
from vpsd.core.db import WAIT_SECONDS
from vpsd.errors import DatabaseUnavailable, VpsdError
from vpsd.runtime import Runtime

Preview: TypeAlias = Callable[[Ctx, Any], Awaitable[Any]]
Before: TypeAlias = Callable[[Transactions, Actor, Any], Awaitable[None]]

_LARGEST_ID = 2**63 - 1  # that a database can look for
NOT_DRY = "A dry run of this request is not possible. Leave dry_run out to carry it out."


class DryRunQuery(msgspec.Struct):
    """What can be tried before it is done."""

    dry_run: Annotated[
        bool,
        Meta(
            description="1: say what would come of it, change nothing",
            extra={"message": "Give 1 to try it, or 0 to do it."},
        ),
    ] = False


_position = itertools.count()


class Route:
    """A handler, and what its signature and its docstring say of it.

    One function can serve several routes: `hints` then stands in for the types of its signature, and `text` for its
    docstring, or `noun` for `{noun}` in it.
    """

    def __init__(
        self,
        function: Callable[..., Awaitable[Any]],
        method: str,
        path: str,
        *,
        status_code: int,
        raises: Sequence[type[VpsdError]] = (),
        preview: Preview | None = None,
        before: Before | None = None,
        body_required: bool = True,
        lenient: bool = False,
        headers: Mapping[str, str] | None = None,
        further: Mapping[int, str] | None = None,
        without_database: Callable[[Runtime], Response[Any]] | None = None,
        asks_database: bool = True,
        wait_seconds: float = WAIT_SECONDS,
        hints: Mapping[str, Any] | None = None,
        text: str | None = None,
        noun: str = "",
    ) -> None:
        hints = {**get_type_hints(function), **(hints or {})}
        self.answer: Any = hints["return"]
        shapes = {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is not None}
        self.body = shapes.get("form")
        self.query: Any = shapes.get("query", DryRunQuery if preview else NoQuery)
        self.ids: list[str] = re.findall(r"{(\w+):int}", path)
        self.text = text or (inspect.getdoc(function) or "").replace("{noun}", noun)
        self.position = next(_position)  # among all routes, as they stand in the source
        self.method = method
        self.status_code = status_code
        self.raises = raises  # what it refuses besides bad input
        self.preview = preview  # what a dry run is answered with
        self.before = before  # looks at the form while no transaction is open: what takes long keeps nobody waiting
        self.body_required = body_required
        self.lenient = lenient  # what it does not know is ignored
        self.headers = headers or {}  # of its answer
        self.further = further or {}  # other status codes with the same body
        self._without_database = without_database  # answers while there is none to read
        self._asks_database = asks_database  # otherwise it is answered as if there were none
        self._wait_seconds = wait_seconds  # of a GET for the database
        self._function = function
        self._takes_query, self._takes_runtime = "query" in hints, "runtime" in hints
        in_query, in_body = self.query.__struct_fields__, self.body.__struct_fields__ if self.body else ()
        # What is known, though not there, and what to do about it.
        not_dry = {} if method == "GET" or "dry_run" in in_query else {"dry_run": NOT_DRY}
        self._not_in_body = {name: f"Send it in the query, not in the body: ?{name}=…" for name in in_query} | not_dry
        self._not_in_query = dict.fromkeys(in_body, "Send it in the body, not in the query.") | not_dry

    async def answer_to(self, request: ApiRequest) -> Response[Any]:
        """Call the handler for a request."""
        try:
            return await self._answer_to(request)
        except DatabaseUnavailable:
            if self._without_database is None:
                raise
            return self._without_database(request.runtime)

    async def _answer_to(self, request: ApiRequest) -> Response[Any]:
        handler, query = await self._bound(request)
        runtime, actor = request.runtime, request.actor
        if not self._asks_database and self._without_database is not None:
            return self._without_database(runtime)
        key = sent_key(request) if self.method == "POST" else None  # a wrong one is refused in a dry run as well
        if self.preview is not None and query.get("dry_run"):
            async with runtime.rolled_back(actor) as ctx:
                return Response(await self.preview(ctx, await handler(ctx)), status_code=200)
        if self.method == "POST":
            return await execute(request, key, handler, self.status_code)
        reads = self.method == "GET"
        async with runtime.read(actor, wait_seconds=self._wait_seconds) if reads else runtime.write(actor) as ctx:
            answer = await handler(ctx)
        return answer if isinstance(answer, Response) else Response(answer, status_code=self.status_code)

    async def _bound(self, request: ApiRequest) -> tuple[Callable[[Ctx], Awaitable[Any]], Query[Any]]:
        """The function with all that it takes but the context, and the query."""
        ids = [request.path_params[name] for name in self.ids]
        # The framework reads ids as Python does: 1_0 and +1 would be numbers.
        if any(not 0 < number <= _LARGEST_ID or f"/{number}/" not in f"{request.scope['path']}/" for number in ids):
            raise NotFoundException
        forms: dict[str, Any] = {}
        query = request.query_form(self.query, self._not_in_query)
        if self._takes_runtime:
            forms["runtime"] = request.runtime
        if self._takes_query:
            forms["query"] = query
        elif not self.lenient:
            query.validate()
        if self.body is not None:
            required, misplaced = self.body_required, self._not_in_body
            forms["form"] = await request.body_form(self.body, required=required, misplaced=misplaced)
            if self.before is not None:
                await self.before(request.runtime, request.actor, forms["form"])
        elif not self.lenient:
            await request.refuse_body(self._not_in_body)
        return (lambda ctx: self._function(ctx, *ids, **forms)), query


def _route(
    decorator: Callable[..., HTTPRouteHandler],
    path: str,
    operation_id: str,
    summary: str,
    *,
    needs: str,
    status_code: int,
    tags: Sequence[str] | None = None,
    **options: Any,
) -> Callable[[Callable[..., Awaitable[Any]]], HTTPRouteHandler]:
    def decorate(function: Callable[..., Awaitable[Any]]) -> HTTPRouteHandler:
        method = decorator.__name__.upper()
        route = Route(function, method, path, status_code=status_code, **options)

        async def handle(request: ApiRequest) -> Response[Any]:
            return await route.answer_to(request)

        handle.__name__, handle.__qualname__ = function.__name__, function.__qualname__
        if status_code == 204:
            handle.__annotations__["return"] = Response[None]  # the framework asks for it
        return decorator(
            path,
            operation_id=operation_id,
            summary=summary,
            status_code=status_code,
            tags=tags,
            opt={"needs": needs, "public": needs == PUBLIC, "route": route},
        )(handle)

    return decorate


get = partial(_route, litestar.get, status_code=200)
post = partial(_route, litestar.post, status_code=201)
put = partial(_route, litestar.put, status_code=200)
patch = partial(_route, litestar.patch, status_code=200)
delete = partial(_route, litestar.delete, status_code=204)
