"""The application: every section under /api/v1, and /health. `python -m vpsd.api.app` prints its description."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from litestar import Litestar, Router, get
from litestar.middleware import DefineMiddleware

from vpsd.api.http.authentication import PUBLIC, BearerToken, needed
from vpsd.api.http.errors import LARGEST_BODY_BYTES, handlers
from vpsd.api.http.forms import NoQuery
from vpsd.api.http.health import health_routes
from vpsd.api.http.middleware import Asgi, RequestMiddleware
from vpsd.api.http.openapi import DEFAULT_SERVER, describe, server_at
from vpsd.api.http.requests import ApiRequest
from vpsd.api.vps_org import account, backups, catalog, operator, placement_groups, servers, ssh_keys
from vpsd.api.vps_org.description import DESCRIPTION
from vpsd.api.vps_org.texts import text
from vpsd.runtime import Runtime

_SECTIONS = (
    *(servers.router, *backups.routers, ssh_keys.router, placement_groups.router, catalog.router, account.router),
    operator.router,
)


@get(
    "/openapi.json",
    include_in_schema=False,
    opt={"needs": PUBLIC, "public": True},
    media_type="application/vnd.oai.openapi+json",
)
async def openapi(request: ApiRequest) -> bytes:
    """This API, described."""
    request.query_form(NoQuery).validate()
    state = request.app.state
    if "openapi" not in state:
        state.openapi = describe(request.app.routes, DESCRIPTION)
    described: bytes = state.openapi
    return described.replace(server_at(DEFAULT_SERVER), server_at(request.base), 1)


def make_app(runtime: Runtime) -> Asgi:
    """The application."""
    return RequestMiddleware(_routes(), runtime)


def openapi_json() -> bytes:
    """The API's description: OpenAPI 3.1."""
    return describe(_routes().routes, DESCRIPTION)


@cache  # it takes long, and what requests work with comes with each of them
def _routes() -> Litestar:
    return make_routes([*health_routes, Router("/api/v1", route_handlers=[*_SECTIONS, openapi])])


def make_routes(route_handlers: Sequence[Any]) -> Litestar:
    """Routes behind authentication, for any number of applications; raises TypeError where one forgot what it needs."""
    app = Litestar(
        route_handlers=route_handlers,
        request_class=ApiRequest,
        middleware=[DefineMiddleware(BearerToken, exclude_from_auth_key="public")],
        exception_handlers=handlers(text),
        request_max_body_size=LARGEST_BODY_BYTES,
        openapi_config=None,
        logging_config=None,
    )
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if handler.http_methods != {"OPTIONS"}:  # the framework adds that one
                needed(handler)  # raises where a route forgot to say
    return app


if __name__ == "__main__":
    print(openapi_json().decode(), end="")
