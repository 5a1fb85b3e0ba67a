"""Whether vpsd is well."""

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec

from vpsd import __version__
from vpsd.api.cloud import CloudRequest, HostStatus, cloud_of
from vpsd.catalog import service


class Health(msgspec.Struct):
    """How vpsd is."""

    status: str
    version: str
    hypervisor: HostStatus


@get(
    "/health",
    operation_id="health",
    summary="Health",
    tags=["Service"],
    opt={"public": True},
    responses={503: ResponseSpec(Health, description="The host does not answer")},
)
async def health(request: CloudRequest) -> Response[Health]:
    """Whether vpsd can do its work; 503 while its host does not answer."""
    cloud = cloud_of(request)
    async with cloud.database.read() as tx:
        await service.list_locations(tx)
    well = cloud.host.status != "unavailable"
    return Response(Health("ok" if well else "degraded", __version__, cloud.host), status_code=200 if well else 503)
