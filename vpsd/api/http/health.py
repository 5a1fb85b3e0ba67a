"""Whether vpsd is well."""

from typing import Annotated, Literal

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from vpsd import __version__
from vpsd.api.http.authentication import PUBLIC
from vpsd.api.http.routes import get
from vpsd.api.http.schemas import named, one_of
from vpsd.backups.targets import TargetState, TargetStatus
from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.hosts.status import HostState, HostStatus, StorageState
from vpsd.runtime import Runtime


class HypervisorHealth(msgspec.Struct):
    """How the host is; why it is not well is for the operator's log and `vpsd doctor`, not for everyone."""

    status: Annotated[HostState, named("HostState"), Meta(description="elsewhere: no worker runs here")]
    driver: Annotated[
        Annotated[str, one_of("HypervisorDriver", ("libvirt", "simulator"))] | None,
        Meta(description="Who runs servers"),
    ]
    virt_type: Annotated[
        Annotated[str, one_of("VirtualizationType", ("kvm", "qemu", "none"))] | None,
        Meta(description="How they run; qemu: emulated"),
    ]
    storage: Annotated[
        Annotated[StorageState, named("StorageState")] | None,
        Meta(
            description="low: nothing begins that takes more; full or failing: servers are paused until it is "
            "better; null before it is known"
        ),
    ]


class BackupsHealth(msgspec.Struct):
    """Whether backups can be made and restored; where they are kept, and what is wrong, is for the operator alone."""

    status: Annotated[
        TargetState,
        named("BackupTargetState"),
        Meta(
            description="unused: before the first backup; missing: the target is not the one that was there (not "
            "mounted?); unavailable: it does not answer; unknown: before the first look; elsewhere: no worker runs here"
        ),
    ]


class Health(msgspec.Struct):
    """How vpsd is."""

    status: Annotated[Literal["ok", "degraded"], named("HealthState")]
    version: str
    hypervisor: HypervisorHealth
    backups: BackupsHealth


def health_of(runtime: Runtime | None) -> HTTPRouteHandler:
    """The route that tells how vpsd, this host and the backups' target are."""
    host, target = (runtime.host, runtime.repository.status) if runtime else (HostStatus(), TargetStatus())

    @get(
        "/health",
        "health",
        "Health",
        tags=["Service"],
        needs=PUBLIC,
        further={503: "The host does not answer"},
        lenient=True,  # monitoring adds what it likes to defeat caches
    )
    async def health(ctx: Ctx) -> Response[Health]:
        """Whether vpsd can do its work; 503 while its host does not answer.

        While the storage of the host is low, full or failing, or backups cannot be made, it is `degraded` and answers
        200: requests are served.
        """
        await catalog.list_locations(ctx)
        answers, facts = host.status != "unavailable", host.facts
        driver, virt_type = (facts.driver, facts.virt_type) if facts else (None, None)
        hypervisor = HypervisorHealth(host.status, driver, virt_type, host.storage)
        well = answers and host.storage in (None, "ok") and target.status not in ("missing", "unavailable")
        answer = Health("ok" if well else "degraded", __version__, hypervisor, BackupsHealth(target.status))
        return Response(answer, status_code=200 if answers else 503)

    return health
