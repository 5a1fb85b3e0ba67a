"""Plainer column names, operations that wait for another, and changes of status in events"""

import uuid
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_RENAMED = (
    ("servers", "delete_at_ms", "purge_due_at_ms"),
    ("servers", "gone_at_ms", "purged_at_ms"),
    ("servers", "retired_from", "deleted_from"),
    ("servers", "replaced", "previous_boot"),
    ("backups", "gone_at_ms", "purged_at_ms"),
    ("traffic", "settled_at_ms", "charged_at_ms"),
)
_OPEN = "finished_at_ms IS NULL"


def upgrade() -> None:
    for table, before, after in _RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {before} TO {after}")
    op.drop_index("ix_traffic_unsettled", "traffic")
    _create_partial_index("ix_traffic_uncharged", "traffic", "month", "charged_at_ms IS NULL")
    op.add_column("events", sa.Column("status_before", sa.String(length=16), nullable=True))
    op.add_column("events", sa.Column("status_after", sa.String(length=16), nullable=True))
    # In words: SQLite takes a reference only together with its column.
    op.execute(
        "ALTER TABLE operations ADD COLUMN waits_for BIGINT "
        "CONSTRAINT fk_operations_waits_for REFERENCES operations (id)"
    )
    op.drop_index("uq_operations_open_server", "operations")
    _create_partial_index(
        "uq_operations_open_server", "operations", "server_id", f"{_OPEN} AND waits_for IS NULL", unique=True
    )
    _create_partial_index(
        "uq_operations_waiting_server", "operations", "server_id", f"{_OPEN} AND waits_for IS NOT NULL", unique=True
    )
    _give_successors_rows_of_their_own()
    for column in ("successor", "successor_argument"):
        op.execute(f"ALTER TABLE operations DROP COLUMN {column}")


def _create_partial_index(name: str, table: str, column: str, where: str, *, unique: bool = False) -> None:
    op.create_index(name, table, [column], unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _give_successors_rows_of_their_own() -> None:
    names = (
        *("id", "uuid", "server_id", "command", "argument", "status", "waits_for", "progress", "attempts", "fence"),
        *("run_at_ms", "deadline_at_ms", "created_at_ms", "finished_at_ms", "successor", "successor_argument"),
    )
    operations: Any = sa.table("operations", *map(sa.column, names))
    c = operations.c
    waiting = sa.select(c.id, c.server_id, c.successor, c.successor_argument, c.run_at_ms)
    for row in op.get_bind().execute(waiting.where(c.finished_at_ms.is_(None), c.successor.is_not(None))).all():
        op.execute(
            sa.insert(operations).values(
                uuid=str(uuid.uuid4()),
                server_id=row.server_id,
                command=row.successor,
                argument=row.successor_argument,
                status="queued",
                waits_for=row.id,
                progress=0.0,
                attempts=0,
                fence=0,
                run_at_ms=row.run_at_ms,
                created_at_ms=row.run_at_ms,
            )
        )
