"""Tables of accounts and tokens, and this installation's own id."""

import msgspec
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Table

from vpsd.core.db import metadata
from vpsd.core.tables import identity

installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: there is one row
    Column("instance", String(8), nullable=False),  # part of every name on a host
)

accounts = Table(
    "accounts",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

tokens = Table(
    "tokens",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False, index=True),
    Column("name", String(255), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    sqlite_autoincrement=True,
)


class Account(msgspec.Struct, frozen=True):
    """Who owns servers and keys."""

    id: int
    uuid: str
    name: str
    created_at_ms: int


class Token(msgspec.Struct, frozen=True):
    """A token as it is listed; its value is shown once and stored as a hash."""

    id: int
    uuid: str
    account: str
    name: str
    created_at_ms: int
    revoked_at_ms: int | None


class Caller(msgspec.Struct, frozen=True):
    """Who is asking."""

    account_id: int
    token_id: int
