"""Brings databases that unfinished migrations have made onto the line of today's.

Migrations 0001 to 0004 were edited after they had landed. What a database has of the earlier wordings is told from its
schema, never from its stamp alone, and each difference by itself, because later versions went on from any of them:

- 0001 of 49dd861: `ix_servers_alive_account` ends before `deleted_at_ms`. (Since d71b4aa as today.)
- 0002 of a56cc15: as 9094b3b, and without `ix_servers_present_plan`.
- 0002 of 9094b3b and d1f1291: two indexes have other columns, `uq_rentals_going_on`, `plans.price_from_ms` and
  `servers.suspended_at_ms` are missing. (Since e91cbd4 as today.)
- `operations.argument` is missing as well, but not for d1f1291, which had it from a 0003 of its own. That one was taken
  back: what is stamped 0003 and has no `servers.tags` comes from there, and lacks what today's 0003 makes.
- 0004 of a8bb715 follows 0002: its database lacks what 0003 makes. (0003 of b7321fc is today's.)
- 0004 of a8bb715 and 40af3b1: `backups.incremental` is missing. (Since e68e1dd as today.)
"""

import time
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection

from vpsd.migrations.shape import Shape


class Variant(msgspec.Struct, frozen=True):
    """A landed difference: the lines by which it is known, and what ends it."""

    lacks: Shape
    has: Shape
    statements: tuple[str, ...]


_MONTH = {  # that a charge begins in, as `traffic` writes it
    "sqlite": "strftime('%Y-%m', c.from_ms / 1000, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(c.from_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM')",
}

VARIANTS = (
    Variant(
        frozenset(
            ("servers: index ix_servers_alive_account (account_id, id, deleted_at_ms) where deleted_at_ms is null",)
        ),
        frozenset(("servers: index ix_servers_alive_account (account_id, id) where deleted_at_ms is null",)),
        (
            "DROP INDEX ix_servers_alive_account",
            "CREATE INDEX ix_servers_alive_account ON servers (account_id, id, deleted_at_ms) "
            "WHERE deleted_at_ms IS NULL",
        ),
    ),
    Variant(
        frozenset(("servers: index ix_servers_present_plan (plan_id, gone_at_ms) where gone_at_ms is null",)),
        frozenset(),
        ("CREATE INDEX ix_servers_present_plan ON servers (plan_id, gone_at_ms) WHERE gone_at_ms IS NULL",),
    ),
    Variant(
        frozenset(
            (
                "plans: column price_from_ms bigint",
                "servers: column suspended_at_ms bigint",
                "rentals: index ix_rentals_account_id_to_ms (account_id, to_ms, from_ms, price_monthly_micros)",
                "rentals: unique index uq_rentals_going_on (server_id) where to_ms is null",
                "idempotency_keys: index ix_idempotency_keys_created_at_ms (created_at_ms)",
            )
        ),
        frozenset(
            (
                "rentals: index ix_rentals_account_id_to_ms (account_id, to_ms, price_monthly_micros)",
                "idempotency_keys: index ix_idempotency_keys_token_id_created_at_ms (token_id, created_at_ms)",
            )
        ),
        (
            "ALTER TABLE plans ADD COLUMN price_from_ms BIGINT",
            "ALTER TABLE servers ADD COLUMN suspended_at_ms BIGINT",
            "DROP INDEX ix_rentals_account_id_to_ms",
            "CREATE INDEX ix_rentals_account_id_to_ms ON rentals (account_id, to_ms, from_ms, price_monthly_micros)",
            "CREATE UNIQUE INDEX uq_rentals_going_on ON rentals (server_id) WHERE to_ms IS NULL",
            "DROP INDEX ix_idempotency_keys_token_id_created_at_ms",
            "CREATE INDEX ix_idempotency_keys_created_at_ms ON idempotency_keys (created_at_ms)",
            # Nobody knows since when: so the time after which a suspended server is deleted begins now.
            "UPDATE servers SET suspended_at_ms = {now} WHERE suspended_from IS NOT NULL",
            # As in today's 0002, what was moved and is not charged by now never is. That 0002 had counted some of it as
            # settled, which `vpsd billing verify` takes for charges that are missing.
            "UPDATE traffic SET settled_at_ms = 0 WHERE NOT EXISTS (SELECT 1 FROM charges c "
            "WHERE c.server_id = traffic.server_id AND c.kind = 'transfer' AND {month} = traffic.month)",
        ),
    ),
    Variant(
        frozenset(("operations: column argument bigint",)),
        frozenset(),
        ("ALTER TABLE operations ADD COLUMN argument BIGINT",),
    ),
    Variant(
        frozenset(
            (
                "servers: column tags text, not null, default []",
                "servers: column protected boolean, not null, default 0",
                "servers: column delete_at_ms bigint",
                "servers: column retired_from varchar(16)",
                "servers: column user_data text",
            )
        ),
        frozenset(),
        (
            "ALTER TABLE servers ADD COLUMN tags TEXT DEFAULT '[]' NOT NULL",
            "ALTER TABLE servers ADD COLUMN protected BOOLEAN DEFAULT false NOT NULL",
            "ALTER TABLE servers ADD COLUMN delete_at_ms BIGINT",
            "ALTER TABLE servers ADD COLUMN retired_from VARCHAR(16)",
            "ALTER TABLE servers ADD COLUMN user_data TEXT",
        ),
    ),
    Variant(
        frozenset(("backups: column incremental boolean",)),
        frozenset(),
        (
            "ALTER TABLE backups ADD COLUMN incremental BOOLEAN",
            # Until then the parent was noted of incremental ones only, and the target with it.
            "UPDATE backups SET incremental = (parent_id IS NOT NULL) WHERE target IS NOT NULL",
        ),
    ),
)


def recognise(wanted: Shape, found: Shape) -> list[Variant]:
    """The landed differences between what a revision should be and what is found."""
    return [each for each in VARIANTS if each.lacks <= wanted - found and each.has <= found - wanted]


def healed(found: Shape, variants: Iterable[Variant]) -> Shape:
    """What will be there once these differences are ended."""
    for each in variants:
        found = found - each.has | each.lacks
    return found


def heal(connection: Connection, variants: Iterable[Variant]) -> None:
    """End these differences; rows are kept, nobody is charged or suspended by it."""
    now, month = time.time_ns() // 1_000_000, _MONTH[connection.dialect.name]
    for each in variants:
        for statement in each.statements:
            connection.exec_driver_sql(statement.format(now=now, month=month))
