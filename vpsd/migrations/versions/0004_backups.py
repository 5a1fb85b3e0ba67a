"""Backups and snapshots"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "backups",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("server_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("os_id", sa.BigInteger(), nullable=False),
        sa.Column("disk", sa.BigInteger(), nullable=False),
        sa.Column("base", sa.String(length=100), nullable=True),
        sa.Column("kernel_cmdline", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("incremental", sa.Boolean(), nullable=True),
        sa.Column("frozen", sa.Boolean(), nullable=True),
        sa.Column("frozen_ms", sa.BigInteger(), nullable=True),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("key_id", sa.String(length=16), nullable=True),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("completed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("gone_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_backups_account_id")),
        sa.ForeignKeyConstraint(["os_id"], ["operating_systems.id"], name=op.f("fk_backups_os_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["backups.id"], name=op.f("fk_backups_parent_id")),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name=op.f("fk_backups_server_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backups")),
        sa.UniqueConstraint("uuid", name=op.f("uq_backups_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_backups_shown_account",
        "backups",
        ["account_id", "id"],
        unique=False,
        sqlite_where=sa.text("deleted_at_ms IS NULL"),
        postgresql_where=sa.text("deleted_at_ms IS NULL"),
    )
    op.create_index(
        "ix_backups_there_server",
        "backups",
        ["server_id", "id"],
        unique=False,
        sqlite_where=sa.text("gone_at_ms IS NULL"),
        postgresql_where=sa.text("gone_at_ms IS NULL"),
    )
    op.add_column("operations", sa.Column("successor_argument", sa.BigInteger(), nullable=True))
    op.add_column("servers", sa.Column("disk", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("servers", sa.Column("replaced", sa.Text(), nullable=True))
    op.add_column("servers", sa.Column("source_backup_id", sa.BigInteger(), nullable=True))
    op.add_column("servers", sa.Column("next_backup_at_ms", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_servers_next_backup",
        "servers",
        ["next_backup_at_ms"],
        unique=False,
        sqlite_where=sa.text("next_backup_at_ms IS NOT NULL"),
        postgresql_where=sa.text("next_backup_at_ms IS NOT NULL"),
    )
    # A successor had no argument of its own: it lay in that of the operation that it waited for.
    op.execute("UPDATE operations SET successor_argument = argument WHERE successor IS NOT NULL")
    # Servers that have asked for backups all along get their first one within a day, each at a time of its own.
    op.execute(
        sa.text(
            "UPDATE servers SET next_backup_at_ms = :now + id * 7919 % 1440 * 60000 "
            "WHERE backups_enabled AND deleted_at_ms IS NULL"
        ).bindparams(now=int(time.time() * 1000))
    )
