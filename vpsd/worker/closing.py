"""How an operation ends: in one transaction with what the server comes to."""

from vpsd.core.context import Ctx
from vpsd.flows.job import Job
from vpsd.flows.table import RECORD_END
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations import service as operations
from vpsd.operations.service import Failure
from vpsd.servers import queries as servers
from vpsd.servers.transitions import ended, found, transition


async def close(ctx: Ctx, job: Job, failure: Failure | None) -> bool:
    """Close the operation, and bring the server's status to rest. False, and nothing is done, where a command waits.

    Raises `LostLease`.
    """
    error = None if failure is None else failure.error
    command = Command(job.operation.command)
    rule, detail = RULES[command], job.result if error is None else error
    to = rule.success if error is None else rule.failure
    server = await servers.lock(ctx, job.server.id)  # before the operation, as requests do
    if await operations.waiting(ctx, job.operation.id) is not None:
        return False
    await operations.finish(ctx, job.lease, failure, job.result if failure is None else None)
    await record_end(ctx, job, error)
    if to is not None and to is not rule.working and server.status == rule.working:
        reason = error if to is Status.ERROR else None
        await transition(ctx, server, to, ended(command, detail), error=reason)
        if job.went_off and to is Status.ACTIVE:  # in the same moment: nobody sees it active
            server = await servers.lock(ctx, server.id)
            await transition(ctx, server, Status.STOPPED, found("the guest went down by itself"))
    return True


async def record_end(ctx: Ctx, job: Job, error: str | None) -> None:
    """Put down what else a command leaves at its end; `error` is why it came to nothing."""
    record = RECORD_END.get(Command(job.operation.command))
    if record is not None:
        await record(ctx, job.operation, error)
