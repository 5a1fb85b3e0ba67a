"""User data, tags, protection from deletion, and a time in which a deletion can be undone"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("servers", sa.Column("tags", sa.Text(), server_default="[]", nullable=False))
    op.add_column("servers", sa.Column("protected", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("servers", sa.Column("delete_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("servers", sa.Column("retired_from", sa.String(length=16), nullable=True))
    op.add_column("servers", sa.Column("user_data", sa.Text(), nullable=True))
