"""The application: every section under /api/v1, and /health."""

from typing import Any, get_args, get_origin

import msgspec
from litestar import Litestar, Response, Router, get
from litestar.datastructures import State
from litestar.middleware import DefineMiddleware
from litestar.openapi.config import OpenAPIConfig

from vpsd import __version__
from vpsd.api import catalog, servers, ssh_keys
from vpsd.api.access import BearerToken
from vpsd.api.cloud import Cloud, CloudRequest, HostStatus, cloud_of
from vpsd.api.errors import HANDLERS
from vpsd.api.openapi import FormSchema, describe
from vpsd.core.forms import Form

# Larger than any body that makes sense; what is larger is refused with 413 before it is read to its end.
_LARGEST_BODY_BYTES = 256 * 1024


class Health(msgspec.Struct):
    """How vpsd is."""

    status: str
    version: str
    hypervisor: HostStatus


@get("/health", operation_id="health", summary="Health", tags=["Service"], opt={"public": True})
async def health(request: CloudRequest) -> Response[Health]:
    """Whether vpsd can do its work; 503 while its host does not answer."""
    cloud = cloud_of(request)
    async with cloud.database.read() as tx:
        await catalog.service.list_locations(tx)
    well = cloud.host.status != "unavailable"
    return Response(Health("ok" if well else "degraded", __version__, cloud.host), status_code=200 if well else 503)


@get("/openapi.json", include_in_schema=False, opt={"public": True}, media_type="application/vnd.oai.openapi+json")
async def openapi(request: CloudRequest) -> bytes:
    """This API, described."""
    state = request.app.state
    if "openapi" not in state:
        state.openapi = openapi_json()
    described: bytes = state.openapi
    return described


def make_app(cloud: Cloud | None) -> Litestar:
    """The application for a cloud; without one it can only be described."""
    return Litestar(
        route_handlers=[
            health,
            Router("/api/v1", route_handlers=[servers.router, ssh_keys.router, catalog.router, openapi]),
        ],
        middleware=[DefineMiddleware(BearerToken, exclude_from_auth_key="public")],
        exception_handlers=HANDLERS,
        type_decoders=[(_is_form, _decode_form)],
        plugins=[FormSchema()],
        state=State({"cloud": cloud}),
        request_max_body_size=_LARGEST_BODY_BYTES,
        openapi_config=None if cloud else OpenAPIConfig(title="vpsd", version="1", use_handler_docstrings=True),
        logging_config=None,
    )


def openapi_json() -> bytes:
    """The API's description: OpenAPI 3.1."""
    return describe(make_app(None))


def _is_form(kind: Any) -> bool:
    return get_origin(kind) is Form


def _decode_form(kind: Any, raw: Any) -> Form[Any]:
    return Form(get_args(kind)[0], raw)
