"""Whether vpsd is well."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from litestar import Response
from msgspec import Meta

from vpsd import __version__
from vpsd.accounts import service as accounts
from vpsd.api.http.authentication import PUBLIC
from vpsd.api.http.routes import get
from vpsd.api.http.schemas import named, one_of
from vpsd.backups.targets import TargetState
from vpsd.core.context import Ctx
from vpsd.core.units import MIB
from vpsd.errors import DatabaseUnavailable
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostHealth
from vpsd.hosts.service import HostHealthRow
from vpsd.hosts.status import StorageState
from vpsd.runtime import Runtime

HEALTH = "/health"
PROBE_SECONDS = 1.0  # that /health waits for the database: monitoring does not wait for long either

HypervisorState: TypeAlias = Literal["connecting", "ok", "degraded", "unavailable"]

_STORAGE_STATES: tuple[StorageState, ...] = ("failing", "full", "low", "ok")  # the worst first
_FULL_BYTES = 32 * MIB  # what has less room left is as good as full


class DatabaseHealth(msgspec.Struct):
    """Whether requests can be answered and carried out."""

    status: Annotated[
        Literal["ok", "unavailable", "locked", "read_only", "full", "failing"],
        named("DatabaseState"),
        Meta(description="unavailable: nothing is answered; otherwise reads are, and changes are not"),
    ]


class DataFolderHealth(msgspec.Struct):
    """The disk of the data folder."""

    status: Annotated[
        Literal["ok", "full"], named("DataFolderState"), Meta(description="full: less than 32 MiB are free")
    ]


class HypervisorHealth(msgspec.Struct):
    """How the hosts are; why one is not well is for the operator's log and `vpsd doctor`, not for everyone."""

    status: Annotated[
        HypervisorState,
        named("HypervisorState"),
        Meta(description="degraded: some hosts do not answer; unavailable: none does, or no worker looks after them"),
    ]
    driver: Annotated[
        Annotated[str, one_of("HypervisorDriver", ("libvirt", "simulator"))] | None,
        Meta(description="Who runs servers"),
    ]
    virt_type: Annotated[
        Annotated[str, one_of("VirtualizationType", ("kvm", "qemu", "none"))] | None,
        Meta(description="How they run; qemu: emulated, on some host at least"),
    ]
    storage: Annotated[
        Annotated[StorageState, named("StorageState")] | None,
        Meta(
            description="Of the host that is worst off. low: nothing begins that takes more; full or failing: servers "
            "are paused until it is better; null before it is known"
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


class ClockHealth(msgspec.Struct):
    """Whether the time can be relied on."""

    status: Annotated[
        Literal["ok", "set"],
        named("ClockState"),
        Meta(
            description="set: within the last hour (by somebody, or because the machine slept); for 15 minutes "
            "after that nothing is charged, suspended or deleted by the clock"
        ),
    ]
    set_by_seconds: Annotated[int | None, Meta(description="How far it was set forward, or back (negative)")]


class Health(msgspec.Struct):
    """How vpsd is."""

    status: Annotated[Literal["ok", "degraded"], named("HealthState")]
    version: str
    database: DatabaseHealth
    data_folder: DataFolderHealth
    hypervisor: HypervisorHealth
    backups: BackupsHealth
    clock: ClockHealth


class Liveness(msgspec.Struct):
    """The process runs, and turns."""

    status: Annotated[Literal["alive"], named("LivenessState")]


class Readiness(msgspec.Struct):
    """Whether requests shall be sent here."""

    status: Annotated[
        Literal["ready", "ending", "database"],
        named("ReadinessState"),
        Meta(description="ending: the process was told to end, and goes on for a little; database: it does not answer"),
    ]


def _report(runtime: Runtime) -> Response[Health]:
    target, database = runtime.repository.status, runtime.database.status
    full = _is_full(runtime.settings.data_dir)
    hypervisor: HypervisorHealth = runtime.serving.hosts_seen or HypervisorHealth("connecting", None, None, None)
    answers = hypervisor.status != "unavailable" and database.problem is None
    is_well = hypervisor.status != "degraded" and hypervisor.storage in (None, "ok") and not full
    well = is_well and target.status not in ("missing", "unavailable")
    answer = Health(
        "ok" if answers and well else "degraded",
        __version__,
        DatabaseHealth(database.problem.value if database.problem else "ok"),
        DataFolderHealth("full" if full else "ok"),
        hypervisor,
        BackupsHealth(target.status),
        _clock(runtime),
    )
    return Response(answer, status_code=200 if answers else 503)


@get(
    HEALTH,
    "health",
    "Health",
    tags=["Service"],
    needs=PUBLIC,
    further={503: "The database or the host does not answer, or the database takes no changes"},
    lenient=True,  # monitoring adds what it likes to defeat caches
    without_database=_report,
    wait_seconds=PROBE_SECONDS,
)
async def health(ctx: Ctx, runtime: Runtime) -> Response[Health]:
    """Whether vpsd can do its work; 503 while its database or its host does not answer, or changes are refused.

    While the storage of the host is low, full or failing, the disk of the data folder is full, or backups cannot be
    made, it is `degraded` and answers 200: requests are served.
    """
    await accounts.instance(ctx)
    runtime.serving.hosts_seen = _hypervisor(await hosts.health(ctx), ctx.now_ms)
    # On a full disk what is small may still fit into what SQLite has: that proves nothing.
    if not _is_full(runtime.settings.data_dir) and runtime.database.status.take_probe():
        with suppress(DatabaseUnavailable):
            async with runtime.write(wait_seconds=PROBE_SECONDS) as probe:
                await accounts.try_to_write(probe)
    return _report(runtime)


@get(
    f"{HEALTH}/live",
    "health_live",
    "Liveness",
    tags=["Service"],
    needs=PUBLIC,
    lenient=True,
    without_database=lambda _: Response(Liveness("alive")),
    asks_database=False,
)
async def live(_: Ctx) -> Liveness:
    """Whether the process runs; nothing else is asked, so that a restart is no answer to what it does not help."""
    raise AssertionError("answered without a transaction")


@get(
    f"{HEALTH}/ready",
    "health_ready",
    "Readiness",
    tags=["Service"],
    needs=PUBLIC,
    further={503: "Send requests to another process: this one ends, or its database does not answer"},
    lenient=True,
    without_database=lambda _: Response(Readiness("database"), status_code=503),
    wait_seconds=PROBE_SECONDS,
)
async def ready(ctx: Ctx, runtime: Runtime) -> Response[Readiness]:
    """Whether requests shall be sent here; 503 from the moment on in which the process is told to end.

    For VPSD_DRAIN_SECONDS it goes on answering all the same: by then a balancer has looked.
    """
    if runtime.serving.is_ending:
        return Response(Readiness("ending"), status_code=503)
    await accounts.instance(ctx)
    return Response(Readiness("ready"))


health_routes = (health, live, ready)


def _hypervisor(found: Sequence[HostHealthRow], now_ms: int) -> HypervisorHealth:
    """All hosts in one word; one that nobody looks after is as good as one that does not answer."""
    states = {one.health if _is_current(one, now_ms) else HostHealth.UNREACHABLE for one in found}
    state: HypervisorState = "connecting"
    if states == {HostHealth.OK}:
        state = "ok"
    elif HostHealth.OK in states:
        state = "degraded"
    elif states == {HostHealth.UNREACHABLE}:
        state = "unavailable"
    known = [one for one in found if one.virt_type is not None]
    virt_types, storages = {one.virt_type for one in known}, {one.storage for one in known}
    return HypervisorHealth(
        state,
        known[0].driver if known else None,
        next((one for one in ("none", "qemu", "kvm") if one in virt_types), None),
        next((one for one in _STORAGE_STATES if one in storages), None),
    )


def _is_current(host: HostHealthRow, now_ms: int) -> bool:
    """Whether somebody keeps up what is said of a host, or has yet to begin."""
    return host.health == HostHealth.CONNECTING or (host.lease_until_ms or 0) >= now_ms


def _is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no room left for this user."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False  # that it is not there is told by what needs it
    return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize < _FULL_BYTES


def _clock(runtime: Runtime) -> ClockHealth:
    runtime.jumps.look()  # where no worker does
    seconds = runtime.jumps.told_seconds
    return ClockHealth("ok" if seconds is None else "set", seconds)
