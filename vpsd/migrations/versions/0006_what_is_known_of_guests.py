"""What is known of a guest, how its backups were made, addresses that rest, and marks of backup targets"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NAME = ("name VARCHAR(63)", "name VARCHAR(253)")


def upgrade() -> None:
    _lengthen_server_names()
    op.add_column("servers", sa.Column("status_detail", sa.Text(), nullable=True))
    op.add_column("servers", sa.Column("freeze_for_backups", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("servers", sa.Column("unthawed_backup_id", sa.BigInteger(), nullable=True))
    op.add_column("servers", sa.Column("user_data_status", sa.String(length=16), nullable=True))
    op.add_column("servers", sa.Column("user_data_error", sa.Text(), nullable=True))
    op.add_column("servers", sa.Column("ssh_host_keys", sa.Text(), nullable=True))
    op.add_column("servers", sa.Column("firmware", sa.String(length=8), nullable=True))
    op.add_column("backups", sa.Column("consistency_detail", sa.Text(), nullable=True))
    op.add_column("backups", sa.Column("cloud_init", sa.String(length=16), nullable=True))
    op.add_column("backups", sa.Column("firmware", sa.String(length=8), nullable=True))
    op.add_column("operating_systems", sa.Column("min_disk_gb", sa.Integer(), nullable=True))
    op.add_column("operating_systems", sa.Column("image_disk_gb", sa.Integer(), nullable=True))
    op.add_column("hosts", sa.Column("storage_free_mb", sa.BigInteger(), nullable=True))
    op.add_column("addresses", sa.Column("released_at_ms", sa.BigInteger(), nullable=True))
    op.create_table(
        "cloud_config_schemas",
        sa.Column("os_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["os_id"], ["operating_systems.id"]),
        sa.PrimaryKeyConstraint("os_id"),
    )
    op.create_table(
        "backup_targets",
        sa.Column("mark", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("mark"),
        sa.UniqueConstraint("name"),
    )


def _lengthen_server_names() -> None:
    """A name may be as long as a hostname."""
    if op.get_bind().dialect.name != "sqlite":
        op.execute("ALTER TABLE servers ALTER COLUMN name TYPE VARCHAR(253)")
        return
    # SQLite cannot alter a type. This one changes nothing of what is stored, so editing the statement that made the
    # table is enough (sqlite.org/lang_altertable.html, "Making Other Kinds Of Table Schema Changes").
    version = op.get_bind().execute(sa.text("PRAGMA schema_version")).scalar_one()
    op.execute("PRAGMA writable_schema = ON")
    op.execute(
        f"UPDATE sqlite_master SET sql = replace(sql, '{_NAME[0]}', '{_NAME[1]}') "
        "WHERE type = 'table' AND name = 'servers'"
    )
    op.execute(f"PRAGMA schema_version = {version + 1}")
    op.execute("PRAGMA writable_schema = RESET")
