"""Whether vpsd is well."""

from typing import Annotated

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Meta

from vpsd import __version__
from vpsd.api.cloud import CloudRequest, cloud_of
from vpsd.catalog import service


class HypervisorHealth(msgspec.Struct):
    """How the host is; why it is not well is for the operator's log and `vpsd doctor`, not for everyone."""

    status: Annotated[str, Meta(description="connecting, ok, unavailable, or elsewhere where no worker runs here")]
    driver: Annotated[str | None, Meta(description="libvirt or simulator")]
    virt_type: Annotated[str | None, Meta(description="kvm, qemu (emulation) or none")]


class Health(msgspec.Struct):
    """How vpsd is."""

    status: Annotated[str, Meta(description="ok or degraded")]
    version: str
    hypervisor: HypervisorHealth


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
    host, facts = cloud.host, cloud.host.facts
    well = host.status != "unavailable"
    hypervisor = HypervisorHealth(host.status, facts.driver if facts else None, facts.virt_type if facts else None)
    return Response(Health("ok" if well else "degraded", __version__, hypervisor), status_code=200 if well else 503)
