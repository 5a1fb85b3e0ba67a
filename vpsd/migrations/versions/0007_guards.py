"""Guards: what was missing against broken worlds and hostile neighbours"""


revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    pass
