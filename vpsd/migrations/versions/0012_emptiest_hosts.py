"""The emptiest hosts from an index, however many there are, and what the biller asks every few seconds"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_RESOURCES = {"vcpus": ("cpus", "cpu_ratio"), "memory_mb": ("memory_mb", "memory_ratio")}
_RESOURCES |= {"storage_gb": ("storage_gb", "storage_ratio")}


def upgrade() -> None:
    op.add_column("hosts", sa.Column("fullness", sa.Float(), server_default="0", nullable=False))
    op.execute(f"UPDATE hosts SET fullness = {_fullness('')}")
    _keep_fullness()
    takes_servers = "removed_at_ms IS NULL AND state = 'enabled'"
    _index("ix_hosts_enabled_fullness", "hosts", ["location", "fullness"], takes_servers)
    _index("ix_hosts_shared_pool", "hosts", ["shared_pool"], "shared_pool IS NOT NULL")
    _index("ix_servers_purge_due", "servers", ["purge_due_at_ms"], "purge_due_at_ms IS NOT NULL")
    suspended = "status = 'suspended' AND deleted_at_ms IS NULL"
    _index("ix_servers_suspended", "servers", ["status", "account_id"], suspended)


def _fullness(row: str) -> str:
    """The share of the scarcest resource that is handed out; the ratios of the settings are not known here."""
    most = "max" if op.get_bind().dialect.name == "sqlite" else "greatest"
    shares = (
        f"coalesce({row}used_{name} / nullif({row}{has} * coalesce({row}{ratio}, 1.0), 0), 0)"
        for name, (has, ratio) in _RESOURCES.items()
    )
    return f"{most}({', '.join(shares)})"


def _keep_fullness() -> None:
    columns = [f"used_{name}" for name in _RESOURCES] + [name for names in _RESOURCES.values() for name in names]
    event = f"UPDATE OF {', '.join(columns)} ON hosts FOR EACH ROW"
    if op.get_bind().dialect.name == "sqlite":
        differs = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in columns)
        op.execute(
            f"CREATE TRIGGER hosts_fullness AFTER {event} WHEN ({differs}) BEGIN UPDATE hosts SET fullness = "
            f"{_fullness('NEW.')} WHERE id = NEW.id; END"
        )
        return
    op.execute(
        "CREATE FUNCTION hosts_fullness() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN NEW.fullness := {_fullness('NEW.')}; RETURN NEW; END$$"
    )
    op.execute(f"CREATE TRIGGER hosts_fullness BEFORE {event} EXECUTE FUNCTION hosts_fullness()")


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=False, sqlite_where=condition, postgresql_where=condition)
