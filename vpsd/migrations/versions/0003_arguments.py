"""Commands with an argument"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("operations", sa.Column("argument", sa.BigInteger(), nullable=True))
