"""Guards: what was missing against broken worlds and hostile neighbours"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    _tags()


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
