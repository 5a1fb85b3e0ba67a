"""Whether vpsd is well."""

from typing import Annotated

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from vpsd import __version__
from vpsd.api.http.authentication import PUBLIC
from vpsd.api.http.routes import get
from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.hosts.status import HostStatus


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


def health_of(host: HostStatus) -> HTTPRouteHandler:
    """The route that tells how vpsd and this host are."""

    @get("/health", "health", "Health", tags=["Service"], needs=PUBLIC, further={503: "The host does not answer"})
    async def health(ctx: Ctx) -> Response[Health]:
        """Whether vpsd can do its work; 503 while its host does not answer."""
        await catalog.list_locations(ctx)
        well, facts = host.status != "unavailable", host.facts
        hypervisor = HypervisorHealth(host.status, facts.driver if facts else None, facts.virt_type if facts else None)
        answer = Health("ok" if well else "degraded", __version__, hypervisor)
        return Response(answer, status_code=200 if well else 503)

    return health
