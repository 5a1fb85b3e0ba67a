"""Says what a server waits for while what is done to it is tried again: in `status_detail`, and in its operation."""

from vpsd.core.context import Ctx
from vpsd.errors import Unavailable
from vpsd.flows.job import Job
from vpsd.lifecycle import RULES, Command
from vpsd.operations import service as operations
from vpsd.operations.failure import Failure
from vpsd.operations.models import Operation
from vpsd.operations.service import Lease
from vpsd.servers import queries as servers
from vpsd.servers import updates

NO_HOST = "no host has room for it, or there is none yet: start `vpsd up`, or add one"
_WAITS = "Waiting for "


async def tell(ctx: Ctx, operation: Operation, progress: float, waits_for: str) -> None:
    """Say it, until the step that waits is done; whatever else there is to say of the server stays."""
    text = f"{_WAITS}{waits_for}. It is tried again by itself."
    server = await servers.lock(ctx, operation.server_id)  # before the operation, as requests do
    await operations.report(ctx, Lease.of(operation), progress, text)
    is_under_way = server.status == RULES[Command(operation.command)].working
    if is_under_way and (server.status_detail is None or _is_said(server.status_detail)):
        await updates.set_status_detail(ctx, server.id, text)


async def put_back(ctx: Ctx, operation: Operation, run_at_ms: int, why: str, waits_for: str) -> None:
    """Have what cannot be done now wait: `servers.unplaced` finds its server a host, or the operator mends it."""
    await tell(ctx, operation, 0, waits_for)
    await operations.reschedule(ctx, Lease.of(operation), Failure.of(Unavailable(why)), run_at_ms)


async def end(job: Job) -> None:
    """A step is done: if it is what was waited for, take that back."""
    if not _is_said(job.server.status_detail):
        return
    async with job.write() as ctx:
        if _is_said((await servers.lock(ctx, job.server.id)).status_detail):
            await updates.set_status_detail(ctx, job.server.id, None)


def _is_said(status_detail: str | None) -> bool:
    return status_detail is not None and status_detail.startswith(_WAITS)
