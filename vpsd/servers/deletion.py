"""How servers go: for good, or for a time in which that can be undone."""

from sqlalchemy import bindparam, update

from vpsd.billing import rentals
from vpsd.core.clock import iso_utc
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.units import HOUR_MS
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.servers.checks import check_operations, check_unprotected
from vpsd.servers.commands import Accepted, accepted, check_status, enqueue
from vpsd.servers.models import LockedServer, servers
from vpsd.servers.queries import lock_server
from vpsd.servers.transitions import given, transition

_OFF = RULES[Command.SOFT_DELETE].at_once

_ONE = update(servers).where(servers.c.id == bindparam("id"))
_SET_DELETED = Statement(_ONE, ("deleted_at_ms",))
_SET_PURGE_DUE = Statement(_ONE, ("purge_due_at_ms", "deleted_from"))


async def delete(ctx: Ctx, server_id: int, *, at_once: bool) -> Operation | None:
    """Delete a server: for its owner now, from the host when a worker has been there.

    Where deletions can be undone for a time it is only shut down, unless it shall go `at_once` or has never worked.
    The answer is the operation that does it, None where nothing has to be done on the host. Raises `NotFound` or
    `IsProtected`.
    """
    server = await lock_server(ctx, server_id)
    check_unprotected(server)
    never_worked = server.provisioned_at_ms is None and server.status != Status.REBUILDING
    if at_once or never_worked or not ctx.settings.undelete_hours:
        return await purge(ctx, server)
    if server.purge_due_at_ms is not None:
        return await operations.last_queued(ctx, server_id)
    return await _soft_delete(ctx, server)


async def purge(ctx: Ctx, server: LockedServer) -> Operation:
    """Delete for good a server whose row the caller has locked."""
    ctx = ctx.in_account(server.account_id)
    await rentals.end_rental(ctx, server.id)
    operation = await enqueue(ctx, server, Command.DELETE, event="server.delete")
    await ctx.tx.run(_SET_DELETED, id=server.id, deleted_at_ms=ctx.now_ms)
    return operation


async def _soft_delete(ctx: Ctx, server: LockedServer) -> Operation | None:
    """Shut a server down; it keeps what it has, and costs, until its deletion is final."""
    under_way = await operations.last_queued(ctx, server.id)
    before = Status(server.status)
    purge_due_at_ms = ctx.now_ms + ctx.settings.undelete_hours * HOUR_MS
    detail = f"It can be undeleted until {iso_utc(purge_due_at_ms)}."
    operation = None
    if under_way is None and before in _OFF:
        cause = given(Command.SOFT_DELETE, event="server.delete", detail=detail)
        await transition(ctx, server, Status.DELETED, cause, error=server.error)
    else:
        operation = await enqueue(ctx, server, Command.SOFT_DELETE, event="server.delete", detail=detail)
    if before is Status.STOPPING:  # it goes back to where it was on its way to
        suspends = under_way is not None and under_way.command == Command.SUSPEND
        before = Status.SUSPENDED if suspends else Status.STOPPED
    elif before not in _OFF:  # those may have a backup under way
        before = Status.ACTIVE
    await ctx.tx.run(_SET_PURGE_DUE, id=server.id, purge_due_at_ms=purge_due_at_ms, deleted_from=before)
    return operation


async def undelete(ctx: Ctx, server_id: int) -> Accepted:
    """Bring a deleted server back to what it was; one that ran starts, and needs credit for it.

    Raises `NotFound`, `WrongStatus` or `PaymentRequired`.
    """
    server = await lock_server(ctx, server_id)
    check_status(server, Command.UNDELETE)
    await check_operations(ctx)
    back = Status(server.deleted_from or Status.ACTIVE)
    await ctx.tx.run(_SET_PURGE_DUE, id=server_id, purge_due_at_ms=None, deleted_from=None)
    if back is Status.ACTIVE:
        operation = await enqueue(ctx, server, Command.UNDELETE, event="server.undelete")
        return accepted(server, Command.UNDELETE, operation)
    cause = given(Command.UNDELETE, event="server.undelete")
    if await operations.open_operation(ctx, server_id) is None:
        await transition(ctx, server, back, cause, error=server.error)
        text = f"Server is back: {back}"
        return Accepted(server_id=server.id, name=server.name, status=back, message=text)
    # It is still going down, and comes to rest where it was.
    command = Command.SUSPEND if back is Status.SUSPENDED else Command.STOP
    operation = await operations.add(ctx, server_id, command)
    await transition(ctx, server, Status.STOPPING, cause)
    text = RULES[Command.UNDELETE].message
    return Accepted(server_id=server.id, name=server.name, status=Status.STOPPING, message=text, operation=operation)
