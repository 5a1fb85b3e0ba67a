"""The table of events."""

import msgspec
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from vpsd.core.db import metadata
from vpsd.core.tables import identity

events = Table(  # append-only: triggers refuse to change a row, or to delete one that `event_retention` keeps
    "events",
    metadata,
    identity(),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(16), nullable=False),  # token | operator | vpsd
    Column("token_id", BigInteger, ForeignKey("tokens.id")),
    Column("address", String(45)),
    Column("request_id", String(64)),
    Column("action", String(32), nullable=False),  # server.create
    Column("target", String(16)),  # server
    Column("target_id", BigInteger),
    Column("detail", Text),
    Column("status_before", String(16)),  # of the server, where the event changed it
    Column("status_after", String(16)),
    sqlite_autoincrement=True,
)
Index("ix_events_account_id_id", events.c.account_id, events.c.id)
Index(None, events.c.at_ms)

event_retention = Table(
    "event_retention",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: there is at most one row
    Column("kept_from_ms", BigInteger, nullable=False),  # what is older may be deleted
)


class Event(msgspec.Struct, frozen=True):
    """Something that was done in an account, field for column."""

    id: int
    account_id: int
    at_ms: int
    actor: str
    token_id: int | None
    address: str | None
    request_id: str | None
    action: str
    target: str | None
    target_id: int | None
    detail: str | None
    status_before: str | None
    status_after: str | None
