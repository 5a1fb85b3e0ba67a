"""Sums of an account's servers and money, kept by triggers, and lists by status and location from an index"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_SIZES = ("vcpus", "memory_mb", "storage_gb")
_RENTED = ("price_monthly_micros", "servers", *_SIZES)


def upgrade() -> None:
    _server_counts()
    _account_sums()
    _indexes()


def _sums(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f(f"ix_{name}_account_id"), name, ["account_id"], unique=False)


def _server_counts() -> None:
    _sums(
        "server_counts",
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("location", sa.String(length=63), nullable=False),
        sa.Column("servers", sa.Integer(), nullable=False),
    )
    op.execute(
        "INSERT INTO server_counts (account_id, status, location, servers) SELECT account_id, status, location, "
        "count(*) FROM servers WHERE deleted_at_ms IS NULL GROUP BY account_id, status, location"
    )
    add = "INSERT INTO server_counts (account_id, status, location, servers) SELECT "
    columns = ("account_id", "status", "location", "deleted_at_ms")
    _keep(
        "servers",
        columns,
        lambda row, sign: f"{add} {row}.account_id, {row}.status, {row}.location, {sign}1 "
        f"WHERE {row}.deleted_at_ms IS NULL",
    )


def _account_sums() -> None:
    _sums(
        "account_sums",
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("balance_micros", *_RENTED)
        ),
    )
    op.execute(
        "INSERT INTO account_sums (account_id, balance_micros) SELECT account_id, sum(amount_micros) FROM ledger "
        "GROUP BY account_id"
    )
    columns = f"account_id, {', '.join(_RENTED)}"
    op.execute(
        f"INSERT INTO account_sums ({columns}) SELECT r.account_id, sum(r.price_monthly_micros), count(*), "
        f"{', '.join(f'sum(p.{name})' for name in _SIZES)} FROM rentals r JOIN plans p ON p.id = r.plan_id "
        "WHERE r.to_ms IS NULL GROUP BY r.account_id"
    )
    _keep(
        "rentals",
        ("account_id", "plan_id", "price_monthly_micros", "to_ms"),
        lambda row, sign: f"INSERT INTO account_sums ({columns}) SELECT {row}.account_id, "
        f"{sign}{row}.price_monthly_micros, {sign}1, {', '.join(f'{sign}p.{name}' for name in _SIZES)} "
        f"FROM plans p WHERE p.id = {row}.plan_id AND {row}.to_ms IS NULL",
    )
    add = "INSERT INTO account_sums (account_id, balance_micros) VALUES (NEW.account_id, NEW.amount_micros)"
    _trigger("ledger", "INSERT", "INSERT", add)  # nothing in it is ever changed


def _keep(table: str, columns: tuple[str, ...], add: Any) -> None:
    """Have a row, as it was, taken from the sums, and added to them as it is now."""
    differs = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in columns)
    if op.get_bind().dialect.name == "sqlite":
        differs = differs.replace("IS DISTINCT FROM", "IS NOT")
    _trigger(table, "INSERT", "INSERT", add("NEW", ""))
    _trigger(table, "UPDATE", f"UPDATE OF {', '.join(columns)}", f"{add('OLD', '-')}; {add('NEW', '')}", differs)
    _trigger(table, "DELETE", "DELETE", add("OLD", "-"))


def _trigger(table: str, verb: str, event: str, body: str, when: str | None = None) -> None:
    name = f"{table}_sum_{verb.lower()}"
    head = f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW {'' if when is None else f'WHEN ({when}) '}"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"{head}BEGIN {body}; END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; RETURN NULL; END$$"
    )
    op.execute(f"{head}EXECUTE FUNCTION {name}()")


def _indexes() -> None:
    alive = sa.text("deleted_at_ms IS NULL")
    for column in ("status", "location"):
        op.create_index(
            f"ix_servers_alive_{column}",
            "servers",
            ["account_id", column, "id"],
            unique=False,
            sqlite_where=alive,
            postgresql_where=alive,
        )
