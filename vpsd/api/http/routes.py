"""Routes: what a handler is given, and in which transaction it runs.

A handler is a function of a `Ctx` and of what its signature names beside it: `form` is the body, `query` the query,
`host` what is known of the host, and any other parameter an id of the path. It returns what is answered. A GET reads;
everything else runs in a transaction of its own, a POST once for each Idempotency-Key.
"""

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
from vpsd.api.http.idempotency import execute
from vpsd.api.http.requests import ApiRequest
from vpsd.core.context import Ctx
from vpsd.errors import Invalid, VpsdError

Preview: TypeAlias = Callable[[Ctx, Any], Awaitable[Any]]

_LARGEST_ID = 2**63 - 1  # that a database can look for
NOT_DRY = {"dry_run": ["A dry run of this request is not possible. Leave dry_run out to carry it out."]}


class DryRunQuery(msgspec.Struct):
    """What can be tried before it is done."""

    dry_run: Annotated[
        bool,
        Meta(
            description="1: say what would come of it, change nothing",
            extra={"message": "Give 1 to try it, or 0 to do it."},
        ),
    ] = False


class Route:
    """A handler, and what its signature says of it."""

    def __init__(
        self,
        function: Callable[..., Awaitable[Any]],
        method: str,
        *,
        status_code: int,
        raises: Sequence[type[VpsdError]] = (),
        preview: Preview | None = None,
        body_required: bool = True,
        headers: Mapping[str, str] | None = None,
        further: Mapping[int, str] | None = None,
    ) -> None:
        hints = get_type_hints(function, include_extras=True)
        self.answer: Any = hints.pop("return")
        shapes = {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is not None}
        self.body = shapes.get("form")
        self.query: Any = shapes.get("query", DryRunQuery if preview else None)
        self.ids = {
            name: str(hint.__metadata__[0].description)
            for name, hint in hints.items()
            if name not in ("ctx", "form", "query", "host")
        }
        self.function = function
        self.method = method
        self.status_code = status_code
        self.raises = raises  # what it refuses besides bad input
        self.preview = preview  # what a dry run is answered with
        self.body_required = body_required
        self.headers = headers or {}  # of its answer
        self.further = further or {}  # other status codes with the same body
        self._names = set(hints)

    async def answer_to(self, request: ApiRequest) -> Response[Any]:
        """Call the handler for a request."""
        handler = partial(self.function, **await self._arguments(request))
        runtime, actor = request.runtime, request.actor
        if self.preview is not None and request.query_form(DryRunQuery).validate().get("dry_run"):
            async with runtime.rolled_back(actor) as ctx:
                return Response(await self.preview(ctx, await handler(ctx)), status_code=200)
        if self.method == "POST":
            return await execute(request, handler, self.status_code)
        async with runtime.read(actor) if self.method == "GET" else runtime.write(actor) as ctx:
            answer = await handler(ctx)
        return answer if isinstance(answer, Response) else Response(answer, status_code=self.status_code)

    async def _arguments(self, request: ApiRequest) -> dict[str, Any]:
        if (
            self.method != "GET"
            and self.preview is None
            and any(name == "dry_run" for name, _ in request.query_pairs())
        ):
            raise Invalid(NOT_DRY)  # rather than to do it
        arguments: dict[str, Any] = {}
        for name in self.ids:
            arguments[name] = number = request.path_params[name]
            # The framework reads ids as Python does: 1_0 and +1 would be numbers.
            if number > _LARGEST_ID or f"/{number}/" not in f"{request.scope['path']}/":
                raise NotFoundException
        if self.body is not None:
            arguments["form"] = await request.body_form(self.body, required=self.body_required)
        if "query" in self._names:
            arguments["query"] = request.query_form(self.query)
        if "host" in self._names:
            arguments["host"] = request.runtime.host
        return arguments


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
        route = Route(function, method, status_code=status_code, **options)

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
