"""The table of operations.

An open operation (no `finished_at_ms`) is the lock of its server: there can be one. Its lease says which worker has it
in hand and until when; `fence` counts the leases, so that a worker that lost its own cannot save any more.
"""

import msgspec
from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table, Text

from vpsd.core.db import metadata
from vpsd.core.tables import identity

operations = Table(
    "operations",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False, index=True),
    Column("command", String(16), nullable=False),
    Column(
        "argument", BigInteger
    ),  # of the command: for rebuild the operating system, for backup and restore the backup
    Column("status", String(16), nullable=False),  # queued | running | succeeded | failed | cancelled
    Column("step", String(32)),  # the step to do, or that was done last
    Column("progress", Float, nullable=False),  # 0 to 1
    Column("detail", Text),  # what is being done, or how it ended
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("successor", String(16)),  # the command that takes over when this one lets go
    Column("successor_argument", BigInteger),
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

_open = operations.c.finished_at_ms.is_(None)
Index(
    "uq_operations_open_server",
    operations.c.server_id,
    unique=True,
    sqlite_where=_open,
    postgresql_where=_open,
)
Index("ix_operations_open_run_at", operations.c.run_at_ms, sqlite_where=_open, postgresql_where=_open)


class Operation(msgspec.Struct, frozen=True):
    """One row of slow work, field for column."""

    id: int
    uuid: str
    server_id: int
    command: str
    argument: int | None
    status: str
    step: str | None
    progress: float
    detail: str | None
    attempts: int
    error: str | None
    successor: str | None
    successor_argument: int | None
    lease_owner: str | None
    lease_until_ms: int | None
    fence: int
    run_at_ms: int
    deadline_at_ms: int | None
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
