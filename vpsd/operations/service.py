"""Operations: added in the caller's transaction, leased by a worker, fenced, finished, kept as history."""

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, func, insert, or_, select, update

from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.errors import Busy
from vpsd.operations.models import Operation, operations
from vpsd.servers.lifecycle import RULES, Command, supersedes

LEASE_SECONDS = 15  # a worker that has not renewed for this long has lost the operation
MAX_ATTEMPTS = 20  # of an operation that has a deadline

_c = operations.c
MOVES_DISKS = (Command.BACKUP, Command.BACKUP_DAILY, Command.RESTORE)
"""Commands that may take hours; and that a worker has to tidy up after, however they end."""
_MOVES_NO_DISKS = and_(*(_c.command != command for command in MOVES_DISKS))
_OPEN = _c.finished_at_ms.is_(None)
_MINE = (_c.id == bindparam("the_id"), _c.fence == bindparam("the_fence"), _OPEN)

_OPEN_OF = Statement(select(operations).where(_c.server_id == bindparam("the_server"), _OPEN))
_OPEN_SERVERS = Statement(select(_c.server_id).where(_OPEN))
_HISTORY = Statement(
    select(operations)
    .where(_c.server_id == bindparam("the_server"))
    .order_by(_c.id)
    .limit(bindparam("the_limit"))
    .offset(bindparam("the_offset"))
)
_COUNT = Statement(select(func.count()).select_from(operations).where(_c.server_id == bindparam("the_server")))
_SINCE = Statement(
    select(func.count())
    .select_from(operations)
    .where(
        _c.server_id == bindparam("the_server"),
        _c.command == bindparam("the_command"),
        _c.created_at_ms >= bindparam("the_time"),
    )
)
_ADD = Statement(
    insert(operations).values(status="queued", progress=0.0, attempts=0, fence=0),
    ("uuid", "server_id", "command", "argument", "status", "progress", "attempts", "fence")
    + ("run_at_ms", "deadline_at_ms", "created_at_ms"),
)
_CANCEL_WAITING = Statement(
    update(operations)
    .where(_c.id == bindparam("the_id"), _OPEN, _c.lease_owner.is_(None), _MOVES_NO_DISKS)
    .values(status="cancelled", detail=bindparam("b_detail"), finished_at_ms=bindparam("b_now"))
)
_SET_SUCCESSOR = Statement(
    update(operations).where(_c.id == bindparam("the_id"), _OPEN), ("successor", "successor_argument", "run_at_ms")
)


def _claim(*which: ColumnElement[bool]) -> Statement:
    due = (
        select(_c.id)
        .where(
            _OPEN,
            _c.run_at_ms <= bindparam("the_now"),
            or_(_c.lease_until_ms.is_(None), _c.lease_until_ms < bindparam("the_now")),
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
            status="running",
            lease_owner=bindparam("b_owner"),
            lease_until_ms=bindparam("b_until"),
            started_at_ms=func.coalesce(_c.started_at_ms, bindparam("b_now")),
            fence=_c.fence + 1,
            attempts=_c.attempts + 1,
        )
        .returning(operations)
    )


_CLAIM_ANY = _claim()
_CLAIM_QUICK = _claim(or_(_MOVES_NO_DISKS, _c.successor.is_not(None)))
_RENEW = Statement(update(operations).where(*_MINE).returning(_c.successor, _c.successor_argument), ("lease_until_ms",))
_HOLD = Statement(select(_c.id).where(*_MINE).with_for_update())
_REPORT = Statement(update(operations).where(*_MINE), ("progress", "detail"))
_STEP = Statement(update(operations).where(*_MINE).values(detail=None), ("step", "progress"))
_RELEASE = Statement(
    update(operations)
    .where(*_MINE)
    .values(
        status="queued", lease_owner=None, lease_until_ms=None, error=bindparam("b_error"), run_at_ms=bindparam("b_at")
    )
)
_FINISH = Statement(
    update(operations)
    .where(*_MINE)
    .values(
        status=bindparam("b_status"),
        error=bindparam("b_error"),
        detail=bindparam("b_detail"),
        progress=bindparam("b_progress"),
        finished_at_ms=bindparam("b_now"),
        lease_owner=None,
        lease_until_ms=None,
    )
)


class LostLease(Exception):
    """Another worker has the operation now; whatever this one holds must not be saved."""


class Lease(msgspec.Struct, frozen=True):
    """A worker's right to save an operation."""

    operation_id: int
    fence: int

    @classmethod
    def of(cls, operation: Operation) -> "Lease":
        """The lease under which the operation was claimed."""
        return cls(operation.id, operation.fence)


async def add(tx: Tx, ids: Ids, clock: Clock, server_id: int, command: Command, argument: int | None = None) -> None:
    """Queue a command in the caller's transaction.

    An open operation that the command supersedes is cancelled, or, while a worker has it in hand, succeeded by the
    command as soon as the worker lets go. Raises `Busy` when another operation is open.
    """
    present = await open_operation(tx, server_id)
    if present is not None:
        if not supersedes(command, Command(present.successor or present.command)):
            raise Busy(f"Another operation ({present.command}) on this server is under way; try again when it is done.")
        cancelled = await tx.run(
            _CANCEL_WAITING, the_id=present.id, b_detail=f"superseded by {command}", b_now=clock.now_ms()
        )
        if not cancelled and await tx.run(
            _SET_SUCCESSOR,
            the_id=present.id,
            successor=command,
            successor_argument=argument,
            run_at_ms=clock.now_ms(),
        ):
            await tx.notify()
            return
    await _insert(tx, ids, clock, server_id, command, argument)


async def _insert(
    tx: Tx, ids: Ids, clock: Clock, server_id: int, command: Command, argument: int | None = None
) -> None:
    now = clock.now_ms()
    minutes = RULES[command].minutes
    try:
        await tx.run(
            _ADD,
            uuid=ids.uuid(),
            server_id=server_id,
            command=command,
            argument=argument,
            run_at_ms=now,
            deadline_at_ms=None if minutes is None else now + minutes * 60_000,
            created_at_ms=now,
        )
    except UniqueViolation:
        raise Busy("Another operation on this server began at the same moment; try again when it is done.") from None
    await tx.notify()


async def open_operation(tx: Tx, server_id: int) -> Operation | None:
    """The server's open operation."""
    return await tx.first(Operation, _OPEN_OF, the_server=server_id)


async def busy_servers(tx: Tx) -> set[int]:
    """Servers with an open operation."""
    return set(await tx.all(int, _OPEN_SERVERS))


async def history(tx: Tx, server_id: int, page: Page) -> tuple[int, list[Operation]]:
    """How many operations a server had, and a page of them, oldest first."""
    count = await tx.first(int, _COUNT, the_server=server_id)
    return count or 0, await tx.all(
        Operation, _HISTORY, the_server=server_id, the_limit=page.size, the_offset=page.offset
    )


async def count_since(tx: Tx, server_id: int, command: Command, at_ms: int) -> int:
    """How often a server was told a command since a time."""
    return await tx.first(int, _SINCE, the_server=server_id, the_command=command, the_time=at_ms) or 0


async def claim(tx: Tx, clock: Clock, owner: str, *, quick: bool = False) -> Operation | None:
    """Lease the operation that has waited longest; one whose lease ran out is taken over.

    `quick`: none that moves whole disks.
    """
    now = clock.now_ms()
    statement = _CLAIM_QUICK if quick else _CLAIM_ANY
    return await tx.first(
        Operation, statement, the_now=now, b_now=now, b_owner=owner, b_until=now + LEASE_SECONDS * 1000
    )


class Successor(msgspec.Struct, frozen=True):
    """The command that takes over, and its argument."""

    command: Command
    argument: int | None


async def renew(tx: Tx, clock: Clock, lease: Lease) -> Successor | None:
    """Keep the lease for another while; the answer is the command that waits to take over. Raises `LostLease`."""
    rows = await tx.all(
        lambda command, argument: None if command is None else Successor(Command(command), argument),
        _RENEW,
        the_id=lease.operation_id,
        the_fence=lease.fence,
        lease_until_ms=clock.now_ms() + LEASE_SECONDS * 1000,
    )
    if not rows:
        raise LostLease
    return rows[0]


async def hold(tx: Tx, lease: Lease) -> None:
    """Make sure, for the rest of the transaction, that the lease is still one's own; raises `LostLease`."""
    if await tx.first(int, _HOLD, the_id=lease.operation_id, the_fence=lease.fence) is None:
        raise LostLease


async def report(tx: Tx, lease: Lease, progress: float, detail: str) -> None:
    """Show what is being done; raises `LostLease`."""
    await _save(tx, _REPORT, lease, progress=progress, detail=detail)


async def save_step(tx: Tx, lease: Lease, step: str, progress: float) -> None:
    """Note the step that comes next; raises `LostLease`."""
    await _save(tx, _STEP, lease, step=step, progress=progress)


async def release(tx: Tx, lease: Lease, error: str, run_at_ms: int) -> None:
    """Put the operation back for another try; raises `LostLease`."""
    await _save(tx, _RELEASE, lease, b_error=error, b_at=run_at_ms)


async def finish(tx: Tx, clock: Clock, lease: Lease, error: str | None, detail: str | None) -> None:
    """Close the operation as succeeded or, with an error, failed; raises `LostLease`."""
    await _close(tx, clock, lease, "failed" if error else "succeeded", error, detail)


async def hand_over(tx: Tx, ids: Ids, clock: Clock, lease: Lease, server_id: int, successor: Successor) -> None:
    """Close the operation as cancelled and queue the one that takes over; raises `LostLease`."""
    await _close(tx, clock, lease, "cancelled", None, f"superseded by {successor.command}")
    await _insert(tx, ids, clock, server_id, successor.command, successor.argument)


async def _close(tx: Tx, clock: Clock, lease: Lease, status: str, error: str | None, detail: str | None) -> None:
    await _save(
        tx,
        _FINISH,
        lease,
        b_status=status,
        b_error=error,
        b_detail=detail,
        b_progress=1.0 if status == "succeeded" else 0.0,
        b_now=clock.now_ms(),
    )


async def _save(tx: Tx, statement: Statement, lease: Lease, **values: object) -> None:
    if not await tx.run(statement, the_id=lease.operation_id, the_fence=lease.fence, **values):
        raise LostLease
