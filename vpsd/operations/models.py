"""The table of operations.

An open operation (no `finished_at_ms`) is the lock of its server: there can be one. Its lease says which worker has it
and until when; `fence` counts the leases, so that a worker that lost its own cannot save any more. Beside it one more
may wait (`waits_for`): the command that takes over as soon as the open one lets go.
"""

from enum import StrEnum

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    and_,
    false,
)

from vpsd.core.db import metadata
from vpsd.core.tables import identity


class OperationStatus(StrEnum):
    """How far an operation is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


operations = Table(
    "operations",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False, index=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id")),  # the server's; None: an older vpsd has queued it
    Column("command", String(16), nullable=False),
    # Of the command: for rebuild the operating system, for backup and restore the backup, for a recover
    # behind a restore that failed that operation, for migrate the host that it leads to.
    Column("argument", BigInteger),
    Column("host_id", BigInteger, ForeignKey("hosts.id")),  # of migrate: where it begins, and in whose queue it waits
    Column("allows_cold", Boolean, nullable=False, server_default=false()),  # of migrate: the guest may be stopped
    Column("status", String(16), nullable=False),
    Column("waits_for", BigInteger, ForeignKey("operations.id")),  # what it has superseded and what is still open
    Column("step", String(32)),  # the step to do, or that was done last
    Column("progress", Float, nullable=False),  # 0 to 1
    Column("detail", Text),  # what is being done, or how it ended
    Column("attempts", Integer, nullable=False),
    Column("error", Text),  # in words for customers
    Column("cause", Text),  # the same for the operator, in full
    Column("lease_owner", String(64)),
    Column("lease_until_ms", BigInteger),
    Column("fence", Integer, nullable=False),
    Column("run_at_ms", BigInteger, nullable=False),  # not before
    Column("deadline_at_ms", BigInteger),  # None: tried until it is done
    Column("created_at_ms", BigInteger, nullable=False),
    Column("started_at_ms", BigInteger),
    Column("finished_at_ms", BigInteger),
    sqlite_autoincrement=True,
)

_unfinished = operations.c.finished_at_ms.is_(None)
_open = and_(_unfinished, operations.c.waits_for.is_(None))
_waiting = and_(_unfinished, operations.c.waits_for.is_not(None))
for _name, _which in (("uq_operations_open_server", _open), ("uq_operations_waiting_server", _waiting)):
    Index(_name, operations.c.server_id, unique=True, sqlite_where=_which, postgresql_where=_which)
Index(  # what is open in an account is counted from it alone
    "ix_operations_open_account", operations.c.account_id, sqlite_where=_unfinished, postgresql_where=_unfinished
)
_moves = operations.c.host_id.is_not(None)
Index("ix_operations_moves_host", operations.c.host_id, sqlite_where=_moves, postgresql_where=_moves)
Index("ix_operations_open_run_at", operations.c.run_at_ms, sqlite_where=_unfinished, postgresql_where=_unfinished)


class Operation(msgspec.Struct, frozen=True):
    """One row of slow work, field for column."""

    id: int
    uuid: str
    server_id: int
    account_id: int | None
    command: str
    argument: int | None
    host_id: int | None
    allows_cold: bool
    status: str
    waits_for: int | None
    step: str | None
    progress: float
    detail: str | None
    attempts: int
    error: str | None
    cause: str | None
    lease_owner: str | None
    lease_until_ms: int | None
    fence: int
    run_at_ms: int
    deadline_at_ms: int | None
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
