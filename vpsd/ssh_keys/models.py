"""Table of public keys."""

import msgspec
from sqlalchemy import BigInteger, Column, ForeignKey, String, Table, Text, UniqueConstraint

from vpsd.core.db import metadata
from vpsd.core.tables import identity

ssh_keys = Table(
    "ssh_keys",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("public_key", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("account_id", "fingerprint"),
    sqlite_autoincrement=True,
)


class SshKey(msgspec.Struct, frozen=True):
    """A customer's public key."""

    id: int
    uuid: str
    name: str
    public_key: str
    fingerprint: str
    created_at_ms: int
