"""Accounts with people and permissions, money, hosts, idempotency keys"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_APPEND_ONLY = ("events", "ledger", "charges")


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("cpus", sa.Integer(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("storage_gb", sa.Integer(), nullable=True),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
    )
    op.create_table(
        "ledger",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("reference", sa.String(length=255), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_ledger_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger")),
        sa.UniqueConstraint("account_id", "reference", name=op.f("uq_ledger_account_id_reference")),
        sa.UniqueConstraint("uuid", name=op.f("uq_ledger_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ledger_account_id_id", "ledger", ["account_id", "id", "amount_micros"], unique=False)

    op.create_table(
        "people",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("first_name", sa.String(length=255), nullable=False),
        sa.Column("last_name", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_people_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
        sa.UniqueConstraint("account_id", "email", name=op.f("uq_people_account_id_email")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "charges",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("ledger_id", sa.BigInteger(), nullable=False),
        sa.Column("server_id", sa.BigInteger(), nullable=False),
        sa.Column("plan_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("rate_micros", sa.BigInteger(), nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["ledger_id"], ["ledger.id"], name=op.f("fk_charges_ledger_id")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_charges_plan_id")),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name=op.f("fk_charges_server_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_charges")),
        sa.UniqueConstraint("server_id", "kind", "from_ms", name=op.f("uq_charges_server_id_kind_from_ms")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_charges_ledger_id"), "charges", ["ledger_id"], unique=False)

    op.create_table(
        "rentals",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("server_id", sa.BigInteger(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("plan_id", sa.BigInteger(), nullable=False),
        sa.Column("price_monthly_micros", sa.BigInteger(), nullable=False),
        sa.Column("bandwidth_gb", sa.Integer(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=True),
        sa.Column("confirmed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("charged_until_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_rentals_account_id")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_rentals_plan_id")),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name=op.f("fk_rentals_server_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rentals")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_rentals_account_id_to_ms", "rentals", ["account_id", "to_ms", "from_ms", "price_monthly_micros"]
    )
    op.create_index(
        "uq_rentals_going_on",
        "rentals",
        ["server_id"],
        unique=True,
        sqlite_where=sa.text("to_ms IS NULL"),
        postgresql_where=sa.text("to_ms IS NULL"),
    )
    op.create_index(op.f("ix_rentals_server_id"), "rentals", ["server_id"], unique=False)
    op.create_index(
        "ix_rentals_uncharged",
        "rentals",
        ["charged_until_ms", "account_id"],
        unique=False,
        sqlite_where=sa.text("confirmed_at_ms IS NOT NULL AND (to_ms IS NULL OR charged_until_ms < to_ms)"),
        postgresql_where=sa.text("confirmed_at_ms IS NOT NULL AND (to_ms IS NULL OR charged_until_ms < to_ms)"),
    )

    op.create_table(
        "events",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=16), nullable=False),
        sa.Column("token_id", sa.BigInteger(), nullable=True),
        sa.Column("address", sa.String(length=45), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=16), nullable=True),
        sa.Column("target_id", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_events_account_id")),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name=op.f("fk_events_token_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_account_id_id", "events", ["account_id", "id"], unique=False)

    op.create_table(
        "idempotency_keys",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("token_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=36), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name=op.f("fk_idempotency_keys_token_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotency_keys")),
        sa.UniqueConstraint("token_id", "key", name=op.f("uq_idempotency_keys_token_id_key")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_idempotency_keys_created_at_ms", "idempotency_keys", ["created_at_ms"])

    for name, kind in (
        ("credit_limit_micros", sa.BigInteger()),
        *((limit, sa.Integer()) for limit in ("max_servers", "max_vcpus", "max_memory_mb", "max_storage_gb")),
        ("exhausted_at_ms", sa.BigInteger()),
    ):
        op.add_column("accounts", sa.Column(name, kind, nullable=True))
    op.add_column("plans", sa.Column("price_monthly_micros", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("plans", sa.Column("price_from_ms", sa.BigInteger(), nullable=True))
    op.add_column("operations", sa.Column("argument", sa.BigInteger(), nullable=True))
    op.add_column("servers", sa.Column("suspended_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("servers", sa.Column("suspended_from", sa.String(length=16), nullable=True))
    op.create_index(
        "ix_servers_present_plan",
        "servers",
        ["plan_id", "gone_at_ms"],
        sqlite_where=sa.text("gone_at_ms IS NULL"),
        postgresql_where=sa.text("gone_at_ms IS NULL"),
    )
    op.add_column("traffic", sa.Column("settled_at_ms", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_traffic_unsettled",
        "traffic",
        ["month"],
        sqlite_where=sa.text("settled_at_ms IS NULL"),
        postgresql_where=sa.text("settled_at_ms IS NULL"),
    )
    # In words: SQLite takes a reference only together with its column.
    op.execute("ALTER TABLE tokens ADD COLUMN person_id BIGINT CONSTRAINT fk_tokens_person_id REFERENCES people (id)")
    op.add_column("tokens", sa.Column("lookup", sa.String(length=16), nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("permissions", sa.String(length=1000), nullable=False, server_default="*:*"))
    op.add_column("tokens", sa.Column("expires_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("tokens", sa.Column("last_used_at_ms", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_tokens_lookup"), "tokens", ["lookup"])
    op.execute("UPDATE tokens SET lookup = substr(hash, 1, 16)")
    _keep_what_there_is()
    for table in _APPEND_ONLY:
        _refuse_changes(table)


def _keep_what_there_is() -> None:
    """Accounts go on without a limit, servers at the price of nothing: an upgrade suspends and charges nobody.

    Servers that are there are rented from now on. What was moved until now is never charged: `settled_at_ms` 0.
    """
    now = sa.literal(time.time_ns() // 1_000_000, sa.BigInteger())
    s = sa.table("servers", *map(sa.column, ("id", "account_id", "plan_id", "provisioned_at_ms", "deleted_at_ms")))
    p = sa.table("plans", *map(sa.column, ("id", "bandwidth_gb")))
    traffic = sa.table("traffic", sa.column("settled_at_ms"))
    names = (
        *("server_id", "account_id", "plan_id", "price_monthly_micros", "bandwidth_gb"),
        *("from_ms", "confirmed_at_ms", "charged_until_ms"),
    )
    rentals = sa.table("rentals", *map(sa.column, names))
    kept = sa.select(
        *(s.c.id, s.c.account_id, s.c.plan_id, sa.literal(0), p.c.bandwidth_gb, now, s.c.provisioned_at_ms, now)
    ).where(s.c.deleted_at_ms.is_(None), p.c.id == s.c.plan_id)
    op.execute(sa.insert(rentals).from_select(names, kept))
    op.execute(sa.update(traffic).values(settled_at_ms=0))


def _refuse_changes(table: str) -> None:
    """Rows are added and stay: the database itself refuses to change or delete them."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()"
    )
