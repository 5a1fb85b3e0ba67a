"""The application: every section under /api/v1, and /health."""

from typing import Any, get_args, get_origin

from litestar import Litestar, Request, Router, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.middleware import DefineMiddleware

from vpsd.api import account, backups, catalog, servers, ssh_keys
from vpsd.api.access import BearerToken, needed
from vpsd.api.carrying import DryRunQuery
from vpsd.api.cloud import Cloud, CloudRequest
from vpsd.api.edge import Asgi, Edge
from vpsd.api.errors import HANDLERS, LARGEST_BODY_BYTES
from vpsd.api.health import health
from vpsd.api.openapi import describe
from vpsd.core.forms import Form
from vpsd.errors import Invalid

_LARGEST_ID = 2**63 - 1  # that a database can look for


@get("/openapi.json", include_in_schema=False, opt={"public": True}, media_type="application/vnd.oai.openapi+json")
async def openapi(request: CloudRequest) -> bytes:
    """This API, described."""
    state = request.app.state
    if "openapi" not in state:
        state.openapi = describe(request.app.routes)
    described: bytes = state.openapi
    return described


def make_app(cloud: Cloud) -> Asgi:
    """The application for a cloud."""
    return Edge(_make_litestar(cloud), cloud)


def openapi_json() -> bytes:
    """The API's description: OpenAPI 3.1."""
    return describe(_make_litestar(None).routes)


def _make_litestar(cloud: Cloud | None) -> Litestar:
    app = Litestar(
        route_handlers=[
            health,
            Router(
                "/api/v1",
                route_handlers=[
                    servers.router,
                    backups.of_servers,
                    backups.backups,
                    backups.snapshots,
                    ssh_keys.router,
                    catalog.router,
                    account.router,
                    openapi,
                ],
            ),
        ],
        request_class=CloudRequest,
        middleware=[DefineMiddleware(BearerToken, exclude_from_auth_key="public")],
        before_request=_refuse_what_is_odd,
        exception_handlers=HANDLERS,
        type_decoders=[(_is_form, _decode_form)],
        state=State({"cloud": cloud}),
        request_max_body_size=LARGEST_BODY_BYTES,
        openapi_config=None,
        logging_config=None,
    )
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if handler.http_methods != {"OPTIONS"} and not handler.opt.get("public"):  # the framework adds that one
                needed(handler)  # raises where a route forgot to say
    return app


async def _refuse_what_is_odd(request: Request[Any, Any, Any]) -> None:
    assert isinstance(request, CloudRequest)
    query = request.route_handler.opt.get("query")
    if request.method != "GET" and request.asks_for("dry_run") and query is not DryRunQuery:
        raise Invalid({"dry_run": ["This cannot be tried: leave dry_run out to do it."]})  # rather than to do it
    # The framework reads ids as Python does: 1_0 and +1 would be numbers.
    numbers: dict[str, Any] = request.scope["path_params"]
    for number in numbers.values():
        if number > _LARGEST_ID or f"/{number}/" not in f"{request.scope['path']}/":
            raise NotFoundException


def _is_form(kind: Any) -> bool:
    return get_origin(kind) is Form


def _decode_form(kind: Any, raw: Any) -> Form[Any]:
    return Form(get_args(kind)[0], raw)
