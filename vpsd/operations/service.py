"""Operations: queued in the caller's transaction, leased by a worker, fenced, finished, kept as history."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    case,
    column,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    table,
    update,
)

from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.core.units import MINUTE_MS
from vpsd.errors import Busy
from vpsd.hypervisor.owner import TakenOver
from vpsd.lifecycle import RULES, Command, known, supersedes
from vpsd.operations.deadlines import DEADLINE
from vpsd.operations.failure import Failure as Failure
from vpsd.operations.models import Operation, OperationStatus, operations
from vpsd.operations.moves import MAY_BEGIN

LEASE_SECONDS = 15  # a worker that has not renewed for this long has lost the operation
WORK_SECONDS = 12  # after which it stops by itself, by its own clock: well before another takes over

MAX_ATTEMPTS = 20  # of an operation that has a deadline
LONGEST_PAUSE_SECONDS = 300  # between two tries
CLEAN_UP_STEP = "clean_up"  # in place of a step: only the cleaning up is left
CLEAN_UP_SECONDS = 900  # for the cleaning up behind a failure, whatever time the operation had
_ENDED_MS = 0  # when a lease ran out that was ended

_c = operations.c
_waiter = operations.alias()
_MOVES_NO_DISKS = and_(*(_c.command != command for command, rule in RULES.items() if rule.moves_disks))
_UNFINISHED = _c.finished_at_ms.is_(None)
_OPEN = and_(_UNFINISHED, _c.waits_for.is_(None))
_LEASED = (_c.id == bindparam("operation_id"), _c.fence == bindparam("held_fence"), _OPEN)
_OF_SERVER = _c.server_id == bindparam("server_id")


class _OpenServer(msgspec.Struct, frozen=True):
    server_id: int
    command: str


_OPEN_OF = Statement(select(operations).where(_OF_SERVER, _OPEN), into=Operation)
_WAITING = Statement(select(operations).where(_c.waits_for == bindparam("operation_id"), _UNFINISHED), into=Operation)
_OPEN_SERVERS = Statement(select(_c.server_id, _c.command).where(_OPEN), into=_OpenServer)
_ADD = Statement(
    insert(operations).values(status=OperationStatus.QUEUED, progress=0.0, attempts=0, fence=0).returning(operations),
    ("uuid", "server_id", "account_id", "command", "argument", "host_id", "allows_cold", "status", "waits_for")
    + ("progress", "attempts", "fence", "run_at_ms", "deadline_at_ms", "created_at_ms"),
    into=Operation,
)
_COUNT_OPEN = Statement(
    select(func.count()).select_from(operations).where(_c.account_id == bindparam("account_id"), _UNFINISHED), into=int
)
_CANCEL = update(operations).values(
    status=OperationStatus.CANCELLED, detail=bindparam("detail"), finished_at_ms=bindparam("now_ms")
)
# What moves disks is never cancelled behind its worker's back: that has to clean up.
_CANCEL_UNLEASED = Statement(
    _CANCEL.where(_c.id == bindparam("operation_id"), _UNFINISHED, _c.lease_owner.is_(None), _MOVES_NO_DISKS)
)
_CANCEL_WAITING = Statement(_CANCEL.where(_c.id == bindparam("operation_id"), _UNFINISHED))
_HURRY = Statement(update(operations).where(_c.id == bindparam("operation_id"), _OPEN), ("run_at_ms",))
_LET_BEGIN = Statement(
    update(operations).where(_c.id == bindparam("operation_id")).values(waits_for=None),
    ("waits_for", "run_at_ms", "deadline_at_ms"),
)


class Claimed(Operation, frozen=True):
    """An operation that a worker has leased, and the host that its server is on."""

    at_host: int | None = None


_servers = table("servers", column("id"), column("host_id", BigInteger))  # their room lies above this one
_AT_HOST = select(_servers.c.host_id).where(_servers.c.id == _c.server_id).correlate(operations).scalar_subquery()
FULL_HOSTS = [f"full_host_{number}" for number in range(8)]


# What a later vpsd was told beside this one is left to it.
_IS_KNOWN = or_(*(_c.command == literal_column(f"'{command}'") for command in Command))


def _claim(*which: ColumnElement[bool]) -> Statement[Claimed]:
    due = (
        select(_c.id)
        .where(
            _OPEN,
            _c.run_at_ms <= bindparam("now_ms"),
            or_(_c.lease_until_ms.is_(None), _c.lease_until_ms < bindparam("expired_before_ms")),
            MAY_BEGIN,
            _IS_KNOWN,
            *which,
        )
        .order_by(_c.run_at_ms, _c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return Statement(
        update(operations)
        .where(_c.id == due)
        .values(
            status=OperationStatus.RUNNING,
            lease_owner=bindparam("owner"),
            lease_until_ms=bindparam("until_ms"),
            started_at_ms=func.coalesce(_c.started_at_ms, bindparam("now_ms")),
            fence=_c.fence + 1,
            attempts=_c.attempts + 1,
            # Its time begins when it is first taken up: what was asked for while no worker ran is tried all the same.
            deadline_at_ms=case(
                (and_(_c.attempts == 0, _c.deadline_at_ms.is_not(None)), DEADLINE), else_=_c.deadline_at_ms
            ),
        )
        .returning(operations, _AT_HOST.label("at_host")),
        into=Claimed,
    )


_QUICK = or_(_MOVES_NO_DISKS, exists().where(_waiter.c.waits_for == _c.id, _waiter.c.finished_at_ms.is_(None)))
_ELSEWHERE = or_(_AT_HOST.is_(None), and_(*(bindparam(name) != _AT_HOST for name in FULL_HOSTS)))
_CLAIMS = {
    (quick, elsewhere): _claim(*([_QUICK] if quick else []), *([_ELSEWHERE] if elsewhere else []))
    for quick in (False, True)
    for elsewhere in (False, True)
}
_TAKE_FROM_WORKER = Statement(
    update(operations)
    .where(_c.id == bindparam("operation_id"))
    .values(status=OperationStatus.QUEUED, fence=_c.fence + 1, attempts=0, lease_owner=None, lease_until_ms=None),
    ("run_at_ms", "deadline_at_ms"),
)
_END_LEASES = Statement(update(operations).where(_OPEN, _c.lease_owner.is_not(None)), ("lease_until_ms",))
_RENEW = Statement(update(operations).where(*_LEASED), ("lease_until_ms",))
_HOLD = Statement(select(_c.id).where(*_LEASED).with_for_update(), into=int)
_REPORT = Statement(update(operations).where(*_LEASED), ("progress", "detail"))
_STEP = Statement(update(operations).where(*_LEASED).values(detail=None), ("step", "progress", "detail"))
_BEGIN_CLEAN_UP = Statement(
    update(operations).where(*_LEASED).values(progress=0.0), ("step", "detail", "error", "cause", "deadline_at_ms")
)
_UNLEASED = {"lease_owner": None, "lease_until_ms": None}
_RESCHEDULE = Statement(
    update(operations).where(*_LEASED).values(status=OperationStatus.QUEUED, **_UNLEASED),
    ("status", "lease_owner", "lease_until_ms", "error", "cause", "run_at_ms"),
)
_FINISH = Statement(
    update(operations).where(*_LEASED).values(**_UNLEASED),
    ("status", "error", "cause", "detail", "progress", "finished_at_ms", "lease_owner", "lease_until_ms"),
)


class LostLease(TakenOver):
    """Another worker has the operation now, or may have: whatever this one holds must not be saved, nor done."""


class UnderWay(Busy):
    """Another operation on the same server is open, or began at the same moment (`command` is None)."""

    def __init__(self, command: str | None = None) -> None:
        super().__init__(
            "Another operation on this server began at the same moment; try again when it is done."
            if command is None
            else f"Another operation ({command}) on this server is under way; try again when it is done."
        )
        self.command = command


class Lease(msgspec.Struct, frozen=True):
    """A worker's right to save an operation."""

    operation_id: int
    fence: int

    @classmethod
    def of(cls, operation: Operation) -> "Lease":
        """The lease under which the operation was claimed."""
        return cls(operation.id, operation.fence)


async def add(
    ctx: Ctx,
    server_id: int,
    command: Command,
    argument: int | None = None,
    *,
    host_id: int | None = None,
    allows_cold: bool = False,
) -> Operation:
    """Queue a command on a server of the context's account, whose row the caller has locked.

    An open operation that the command supersedes is cancelled or, while a worker has it, followed by this one as soon
    as the worker lets go. Raises `UnderWay` when another operation is open.
    """
    waits_for = None
    present = await open_operation(ctx, server_id)
    if present is not None:
        successor = await waiting(ctx, present.id)
        last = successor or present
        if not supersedes(command, last.command):
            raise UnderWay(last.command)
        superseded = {"detail": f"superseded by {command}", "now_ms": ctx.now_ms}
        if successor is not None:
            await ctx.tx.run(_CANCEL_WAITING, operation_id=successor.id, **superseded)
        cancelled = await ctx.tx.run(_CANCEL_UNLEASED, operation_id=present.id, **superseded)
        if not cancelled and await ctx.tx.run(_HURRY, operation_id=present.id, run_at_ms=ctx.now_ms):
            waits_for = present.id
    try:
        operation = await ctx.tx.first(
            _ADD,
            uuid=ctx.ids.uuid(),
            server_id=server_id,
            account_id=ctx.account_id or None,
            command=command,
            argument=argument,
            host_id=host_id,
            allows_cold=allows_cold,
            waits_for=waits_for,
            run_at_ms=ctx.now_ms,
            deadline_at_ms=_deadline_ms(ctx, command),
            created_at_ms=ctx.now_ms,
        )
    except UniqueViolation:
        raise UnderWay from None
    assert operation is not None
    await ctx.tx.notify()
    return operation


async def take_from_worker(ctx: Ctx, server_id: int) -> None:
    """Have the open operation of a server begin anew, with all of its time; whoever has it can save nothing more."""
    present = await open_operation(ctx, server_id)
    if present is not None:
        deadline_ms = _deadline_ms(ctx, known(present.command))
        await ctx.tx.run(_TAKE_FROM_WORKER, operation_id=present.id, run_at_ms=ctx.now_ms, deadline_at_ms=deadline_ms)
        await ctx.tx.notify()


async def count_open(ctx: Ctx) -> int:
    """How many operations of the account are open."""
    return await ctx.tx.first(_COUNT_OPEN, account_id=ctx.account_id) or 0


async def open_operation(ctx: Ctx, server_id: int) -> Operation | None:
    """The server's open operation, which is its lock."""
    return await ctx.tx.first(_OPEN_OF, server_id=server_id)


async def waiting(ctx: Ctx, operation_id: int) -> Operation | None:
    """The operation that takes over as soon as an open one lets go."""
    return await ctx.tx.first(_WAITING, operation_id=operation_id)


async def last_queued(ctx: Ctx, server_id: int) -> Operation | None:
    """What an unfinished server comes to in the end: the operation that waits, else the open one."""
    present = await open_operation(ctx, server_id)
    return present and (await waiting(ctx, present.id) or present)


async def busy_servers(ctx: Ctx) -> dict[int, str]:
    """Servers with an open operation, and which command that is."""
    return {found.server_id: found.command for found in await ctx.tx.all(_OPEN_SERVERS)}


async def claim(
    ctx: Ctx, owner: str, *, quick: bool = False, take_over: bool = True, full_hosts: Sequence[int] = ()
) -> Claimed | None:
    """Lease the operation that has waited longest; one whose lease ran out is taken over.

    `quick`: none that moves whole disks, unless it is to give way. `full_hosts`: none of a server on the first eight of
    these. `take_over` is False while the clock cannot tell whose lease ran out: then only those are taken over that
    were ended.
    """
    until_ms = ctx.now_ms + LEASE_SECONDS * 1000
    hosts = {name: full_hosts[min(index, len(full_hosts) - 1)] for index, name in enumerate(FULL_HOSTS) if full_hosts}
    expired_before_ms = ctx.now_ms if take_over else _ENDED_MS + 1
    times = {"now_ms": ctx.now_ms, "until_ms": until_ms, "expired_before_ms": expired_before_ms}
    statement, most = _CLAIMS[quick, bool(full_hosts)], ctx.settings.moves_per_host
    return await ctx.tx.first(statement, owner=owner, most_moves=most, **times, **hosts)


async def end_leases(ctx: Ctx) -> None:
    """Let every leased operation be taken over now; only for a process that knows that all others are dead."""
    await ctx.tx.run(_END_LEASES, lease_until_ms=_ENDED_MS)


async def renew(ctx: Ctx, lease: Lease) -> Operation | None:
    """Keep the lease for another while; the answer is the operation that waits to take over. Raises `LostLease`."""
    await _save(ctx, _RENEW, lease, lease_until_ms=ctx.now_ms + LEASE_SECONDS * 1000)
    return await waiting(ctx, lease.operation_id)


async def hold_lease(ctx: Ctx, lease: Lease) -> None:
    """Make sure, for the rest of the transaction, that the lease is still one's own; raises `LostLease`."""
    if await ctx.tx.first(_HOLD, operation_id=lease.operation_id, held_fence=lease.fence) is None:
        raise LostLease


async def report(ctx: Ctx, lease: Lease, progress: float, detail: str) -> None:
    """Show what is being done; raises `LostLease`."""
    await _save(ctx, _REPORT, lease, progress=progress, detail=detail)


async def save_step(ctx: Ctx, lease: Lease, step: str, progress: float) -> None:
    """Save the step that comes next; raises `LostLease`."""
    await _save(ctx, _STEP, lease, step=step, progress=progress)


async def begin_clean_up(ctx: Ctx, lease: Lease, failure: Failure | None) -> None:
    """Save that only the cleaning up is left to do, and why: what failed, or None where it gives way.

    Raises `LostLease`.
    """
    said = {"detail": failure and failure.error, "error": failure and failure.error, "cause": failure and failure.cause}
    deadline_ms = ctx.now_ms + CLEAN_UP_SECONDS * 1000
    await _save(ctx, _BEGIN_CLEAN_UP, lease, step=CLEAN_UP_STEP, deadline_at_ms=deadline_ms, **said)


async def reschedule(ctx: Ctx, lease: Lease, failure: Failure, run_at_ms: int) -> None:
    """Put the operation back for another try; raises `LostLease`."""
    await _save(ctx, _RESCHEDULE, lease, error=failure.error, cause=failure.cause, run_at_ms=run_at_ms)


async def finish(ctx: Ctx, lease: Lease, failure: Failure | None, detail: str | None) -> None:
    """Close the operation as succeeded or, with a failure, failed; raises `LostLease`."""
    await _close(ctx, lease, OperationStatus.FAILED if failure else OperationStatus.SUCCEEDED, failure, detail)


async def hand_over(ctx: Ctx, lease: Lease, successor: Operation) -> None:
    """Close the operation as cancelled and let the one that waits for it begin; raises `LostLease`."""
    await _close(ctx, lease, OperationStatus.CANCELLED, None, f"superseded by {successor.command}")
    deadline_ms = _deadline_ms(ctx, known(successor.command))
    await ctx.tx.run(_LET_BEGIN, operation_id=successor.id, run_at_ms=ctx.now_ms, deadline_at_ms=deadline_ms)
    await ctx.tx.notify()


def _deadline_ms(ctx: Ctx, command: Command | None) -> int | None:
    minutes = None if command is None else RULES[command].minutes
    return None if minutes is None else ctx.now_ms + minutes * MINUTE_MS


async def _close(ctx: Ctx, lease: Lease, status: OperationStatus, failure: Failure | None, detail: str | None) -> None:
    await _save(
        ctx,
        _FINISH,
        lease,
        status=status,
        error=failure and failure.error,
        cause=failure and failure.cause,
        detail=detail,
        progress=1.0 if status is OperationStatus.SUCCEEDED else 0.0,
        finished_at_ms=ctx.now_ms,
    )


async def _save(ctx: Ctx, statement: Statement[Any], lease: Lease, **values: object) -> None:
    if not await ctx.tx.run(statement, operation_id=lease.operation_id, held_fence=lease.fence, **values):
        raise LostLease
