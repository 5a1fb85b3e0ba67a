"""Guards: what was missing against broken worlds and hostile neighbours"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    _damaged_chunks()
    _tags()
    _tokens()
    _events()
    _causes()


def _damaged_chunks() -> None:
    op.create_table(
        "damaged_chunks",
        sa.Column("server_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(length=36), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("found_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"]),
        sa.PrimaryKeyConstraint("server_id", "owner", "digest"),
    )


def _tags() -> None:
    """Tags become rows; their text was a JSON list in a column of servers."""
    op.create_table(
        "server_tags",
        sa.Column("server_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=317), nullable=False),
        sa.Column("value", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_server_tags_account_id")),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name=op.f("fk_server_tags_server_id")),
        sa.PrimaryKeyConstraint("server_id", "position", name=op.f("pk_server_tags")),
        sa.UniqueConstraint("server_id", "key", "value", name=op.f("uq_server_tags_server_id_key_value")),
    )
    op.create_index(
        "ix_server_tags_account_key_value", "server_tags", ["account_id", "key", "value", "server_id"], unique=False
    )
    servers = sa.table("servers", *map(sa.column, ("id", "account_id", "tags")))
    names = ("server_id", "position", "account_id", "key", "value")
    server_tags = sa.table("server_tags", *map(sa.column, names))
    for server_id, account_id, tags in op.get_bind().execute(sa.select(servers).where(servers.c.tags != "[]")).all():
        for position, tag in enumerate(json.loads(tags)):
            key, _, value = tag.partition(":")
            halves = (key, value) if key and value else (tag, "")
            row = (server_id, position, account_id, *halves)
            op.execute(sa.insert(server_tags).values(dict(zip(names, row, strict=True))))
    op.execute("ALTER TABLE servers DROP COLUMN tags")


def _tokens() -> None:
    """Tokens know who made them; the events have told of it so far."""
    op.add_column("tokens", sa.Column("created_by", sa.String(length=16), server_default="operator", nullable=False))
    # In words: SQLite takes a reference only together with its column.
    op.execute("ALTER TABLE tokens ADD COLUMN parent_id BIGINT CONSTRAINT fk_tokens_parent_id REFERENCES tokens (id)")
    op.create_index(op.f("ix_tokens_parent_id"), "tokens", ["parent_id"], unique=False)
    tokens = sa.table("tokens", *map(sa.column, ("id", "created_by", "parent_id")))
    events = sa.table("events", *map(sa.column, ("id", "action", "target_id", "actor", "token_id")))
    made = sa.select(events).where(events.c.action == "token.create", events.c.target_id.is_not(None))
    for event in op.get_bind().execute(made).all():
        op.execute(
            sa.update(tokens)
            .where(tokens.c.id == event.target_id)
            .values(created_by=event.actor, parent_id=event.token_id)
        )


def _events() -> None:
    """Events may be deleted from before a time that a row says, and only from there."""
    op.create_table(
        "event_retention",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kept_from_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_retention")),
    )
    op.create_index(op.f("ix_events_at_ms"), "events", ["at_ms"], unique=False)
    kept = "OLD.at_ms >= (SELECT coalesce(max(kept_from_ms), 0) FROM event_retention)"
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER events_refuse_delete")
        op.execute(
            f"CREATE TRIGGER events_refuse_delete BEFORE DELETE ON events WHEN {kept} "
            "BEGIN SELECT RAISE(ABORT, 'events is append-only'); END"
        )
        return
    op.execute("DROP TRIGGER events_refuse ON events")
    op.execute(
        "CREATE TRIGGER events_refuse BEFORE UPDATE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION events_refuse()"
    )
    op.execute(
        "CREATE FUNCTION events_refuse_kept() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {kept} THEN RAISE EXCEPTION 'events is append-only'; END IF; RETURN OLD; END $$"
    )
    op.execute(
        "CREATE TRIGGER events_refuse_kept BEFORE DELETE ON events "
        "FOR EACH ROW EXECUTE FUNCTION events_refuse_kept()"
    )


def _causes() -> None:
    """What went wrong, in full, beside the words for customers. What old rows say was told to both."""
    op.add_column("operations", sa.Column("cause", sa.Text(), nullable=True))
    op.execute("UPDATE operations SET cause = error")
