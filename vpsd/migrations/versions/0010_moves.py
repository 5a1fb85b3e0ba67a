"""Moves between hosts: where an operation begins and whether it may stop the guest, and hosts that are drained"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    # In words: SQLite takes a reference only together with its column.
    op.execute(
        "ALTER TABLE operations ADD COLUMN host_id BIGINT CONSTRAINT fk_operations_host_id REFERENCES hosts (id)"
    )
    op.add_column("operations", sa.Column("allows_cold", sa.Boolean(), server_default=sa.false(), nullable=False))
    moves = sa.text("host_id IS NOT NULL")
    op.create_index(
        "ix_operations_moves_host", "operations", ["host_id"], unique=False, sqlite_where=moves, postgresql_where=moves
    )
    op.add_column("hosts", sa.Column("draining_since_ms", sa.BigInteger(), nullable=True))
    op.add_column("hosts", sa.Column("drains_cold", sa.Boolean(), server_default=sa.false(), nullable=False))
