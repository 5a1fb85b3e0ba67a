"""Shared pools: hosts that see the same folder, and what is known of the base images in each place"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("hosts", sa.Column("shared_pool", sa.String(length=63), nullable=True))
    op.create_table(
        "base_images",
        sa.Column("place", sa.String(length=80), nullable=False),
        sa.Column("image_key", sa.String(length=255), nullable=False),
        sa.Column("operation_id", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=True),
        sa.Column("claimed_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("unused_since_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("place", "image_key", name=op.f("pk_base_images")),
    )
