"""Tables of accounts, their people and tokens, and this installation's own id."""

import msgspec
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Table, UniqueConstraint

from vpsd.accounts.permissions import Role, may
from vpsd.core.context import Actor
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
    Column("name", String(255), nullable=False, unique=True),  # the company
    Column("credit_limit_micros", BigInteger),  # how far below zero the balance may go; None: no limit
    Column("max_servers", Integer),  # None: as many as there is room for
    Column("max_vcpus", Integer),
    Column("max_memory_mb", Integer),
    Column("max_storage_gb", Integer),
    Column("exhausted_at_ms", BigInteger),  # since when there has been no credit left
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

people = Table(
    "people",
    metadata,
    identity(),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("email", String(254), nullable=False),
    Column("first_name", String(255), nullable=False),
    Column("last_name", String(255), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("account_id", "email"),
    sqlite_autoincrement=True,
)

tokens = Table(
    "tokens",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False, index=True),
    Column("person_id", BigInteger, ForeignKey("people.id")),  # whose role limits it
    Column("name", String(255), nullable=False),
    Column("lookup", String(16), nullable=False, index=True),  # the hash's first digits; the rest is compared in Python
    Column("hash", String(64), nullable=False, unique=True),
    Column("permissions", String(1000), nullable=False),  # separated by spaces
    Column("created_by", String(16), nullable=False, server_default="operator"),  # token | operator | vpsd
    Column("parent_id", BigInteger, ForeignKey("tokens.id"), index=True),  # the token that created it
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("last_used_at_ms", BigInteger),  # to the minute
    Column("revoked_at_ms", BigInteger),
    sqlite_autoincrement=True,
)


class Account(msgspec.Struct, frozen=True):
    """An account, which owns servers and keys, and pays for them; a row of `accounts`."""

    id: int
    uuid: str
    name: str
    credit_limit_micros: int | None
    max_servers: int | None
    max_vcpus: int | None
    max_memory_mb: int | None
    max_storage_gb: int | None
    exhausted_at_ms: int | None
    created_at_ms: int


class Person(msgspec.Struct, frozen=True):
    """A person who belongs to an account."""

    id: int
    account: str
    email: str
    first_name: str
    last_name: str
    role: str
    created_at_ms: int


class Token(msgspec.Struct, frozen=True):
    """A token as it is listed; its value is shown once and stored as a hash."""

    id: int
    uuid: str
    account: str
    person: str | None
    name: str
    permissions: list[str]
    created_by: str
    parent_id: int | None
    parent: str | None  # its name
    created_at_ms: int
    expires_at_ms: int | None
    last_used_at_ms: int | None
    revoked_at_ms: int | None


class Profile(msgspec.Struct, frozen=True):
    """A caller: account, token with its effective permissions, and its person or else the first owner."""

    account: Account
    token: Token
    person: Person | None


class Caller(Actor, frozen=True, kw_only=True):
    """The caller of an API request."""

    kind: str = "token"
    token_id: int
    permissions: frozenset[str] = frozenset(("*:*",))
    role: Role | None = None  # of the person whose token it is

    def may(self, needed: str) -> bool:
        """Whether both the token and its person's role allow it."""
        return may(self.permissions, self.role, needed)
