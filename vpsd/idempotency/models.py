"""The table of idempotency keys: the request of each, and the encrypted answer."""

import msgspec
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, UniqueConstraint

from vpsd.core.db import metadata
from vpsd.core.tables import identity

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    identity(),
    Column("token_id", BigInteger, ForeignKey("tokens.id"), nullable=False),
    Column("key", String(255), nullable=False),
    Column("fingerprint", String(64), nullable=False),  # of method, path, query and body
    Column("owner", String(36), nullable=False),  # the request that executes it
    Column("lease_until_ms", BigInteger, nullable=False),  # after that its process is considered dead
    Column("status_code", Integer),  # None: not answered yet
    Column("answer", LargeBinary),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("token_id", "key"),
    sqlite_autoincrement=True,
)
Index("ix_idempotency_keys_created_at_ms", idempotency_keys.c.created_at_ms)


class Record(msgspec.Struct, frozen=True):
    """A stored key."""

    fingerprint: str
    owner: str
    lease_until_ms: int
    status_code: int | None
    answer: bytes | None
