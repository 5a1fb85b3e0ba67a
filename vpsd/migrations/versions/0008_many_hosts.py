"""Many hosts: where servers are, what hosts have handed out, and groups of servers that stay apart"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_USED = (
    ("used_servers", sa.Integer()),
    ("used_vcpus", sa.Integer()),
    ("used_memory_mb", sa.BigInteger()),
    ("used_storage_gb", sa.BigInteger()),
)


def upgrade() -> None:
    _hosts()
    _placement_groups()
    _servers()
    _operations()


def _counter(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, server_default="0", nullable=False)


def _hosts() -> None:
    """The one host becomes one of many, with the columns that the release before reads and writes."""
    columns = ("id", "name", "cpus", "memory_mb", "storage_gb", "storage_free_mb", "seen_at_ms")
    known = op.get_bind().execute(sa.select(sa.table("hosts", *map(sa.column, columns)))).all()
    op.drop_table("hosts")
    op.create_table(
        "hosts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("driver", sa.String(length=16), server_default="libvirt", nullable=False),
        sa.Column("uri", sa.String(length=1000), nullable=True),
        sa.Column("machine", sa.String(length=36), nullable=True),
        sa.Column("pool", sa.String(length=1000), nullable=True),
        sa.Column("location", sa.String(length=63), nullable=True),
        sa.Column("state", sa.String(length=16), server_default="enabled", nullable=False),
        sa.Column("cpu_ratio", sa.Float(), nullable=True),
        sa.Column("memory_ratio", sa.Float(), nullable=True),
        sa.Column("storage_ratio", sa.Float(), nullable=True),
        sa.Column("cpus", sa.Integer(), nullable=True),
        sa.Column("memory_mb", sa.Integer(), nullable=True),
        sa.Column("storage_gb", sa.Integer(), nullable=True),
        sa.Column("storage_free_mb", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.String(length=255), nullable=True),
        sa.Column("virt_type", sa.String(length=16), nullable=True),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("health", sa.String(length=16), server_default="connecting", nullable=False),
        sa.Column("storage", sa.String(length=16), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("unreachable_since_ms", sa.BigInteger(), nullable=True),
        *(_counter(name, kind) for name, kind in _USED),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("removed_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["location"], ["locations.code"], name=op.f("fk_hosts_location")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
        sqlite_autoincrement=True,
    )
    present = sa.text("removed_at_ms IS NULL")
    op.create_index(
        "uq_hosts_present_name", "hosts", ["name"], unique=True, sqlite_where=present, postgresql_where=present
    )
    hosts = sa.table("hosts", *map(sa.column, columns))
    for host in known:  # there is one, or none yet
        op.execute(sa.insert(hosts).values(host._asdict()))
    if known and op.get_bind().dialect.name == "postgresql":
        op.execute("SELECT setval(pg_get_serial_sequence('hosts', 'id'), (SELECT max(id) FROM hosts))")


def _placement_groups() -> None:
    op.create_table(
        "placement_groups",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("policy", sa.String(length=16), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_placement_groups_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_placement_groups")),
        sa.UniqueConstraint("account_id", "name", name=op.f("uq_placement_groups_account_id_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_placement_groups_uuid")),
        sqlite_autoincrement=True,
    )


def _servers() -> None:
    """Every server is on the one host that there was; what has none yet is given one at the next start."""
    for name, table in (
        ("host_id", "hosts"),
        ("previous_host_id", "hosts"),
        ("placement_group_id", "placement_groups"),
    ):
        # In words: SQLite takes a reference only together with its column.
        op.execute(f"ALTER TABLE servers ADD COLUMN {name} BIGINT CONSTRAINT fk_servers_{name} REFERENCES {table} (id)")
    present = sa.text("purged_at_ms IS NULL")
    op.create_index(
        "ix_servers_present_host",
        "servers",
        ["host_id", "id"],
        unique=False,
        sqlite_where=present,
        postgresql_where=present,
    )
    grouped = sa.text("placement_group_id IS NOT NULL AND purged_at_ms IS NULL")
    op.create_index(
        "ix_servers_present_group",
        "servers",
        ["placement_group_id", "host_id"],
        unique=False,
        sqlite_where=grouped,
        postgresql_where=grouped,
    )
    op.execute("UPDATE servers SET host_id = (SELECT min(id) FROM hosts)")
    of_host = "FROM servers s JOIN plans p ON p.id = s.plan_id WHERE s.host_id = hosts.id AND s.purged_at_ms IS NULL"
    op.execute(
        f"UPDATE hosts SET used_servers = (SELECT count(*) {of_host}), "
        f"used_vcpus = (SELECT coalesce(sum(p.vcpus), 0) {of_host}), "
        f"used_memory_mb = (SELECT coalesce(sum(p.memory_mb), 0) {of_host}), "
        f"used_storage_gb = (SELECT coalesce(sum(p.storage_gb), 0) {of_host})"
    )


def _operations() -> None:
    """Operations know their account, so that an account's open ones are counted without its servers."""
    op.execute(
        "ALTER TABLE operations ADD COLUMN account_id BIGINT CONSTRAINT fk_operations_account_id "
        "REFERENCES accounts (id)"
    )
    unfinished = sa.text("finished_at_ms IS NULL")
    op.create_index(
        "ix_operations_open_account",
        "operations",
        ["account_id"],
        unique=False,
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    op.execute(
        "UPDATE operations SET account_id = (SELECT s.account_id FROM servers s WHERE s.id = operations.server_id)"
    )
