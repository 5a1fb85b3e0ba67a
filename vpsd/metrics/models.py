"""Tables of measurements of servers."""

import msgspec
from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table

from vpsd.core.db import metadata

usage = Table(  # the last sample of each server
    "usage",
    metadata,
    Column("server_id", BigInteger, ForeignKey("servers.id"), primary_key=True, autoincrement=False),
    Column("sampled_at_ms", BigInteger, nullable=False),
    Column("cpu_percent", Float),  # of the plan's vCPUs
    Column("memory_used_mb", Integer),
    Column("disk_used_bytes", BigInteger),
    # The guest's counters at that time, from which increments are computed; they restart at each boot.
    Column("cpu_seconds", Float),
    Column("received_bytes", BigInteger),
    Column("sent_bytes", BigInteger),
)

traffic = Table(
    "traffic",
    metadata,
    Column("server_id", BigInteger, ForeignKey("servers.id"), primary_key=True, autoincrement=False),
    Column("month", String(7), primary_key=True),  # 2026-11
    Column("received_bytes", BigInteger, nullable=False),
    Column("sent_bytes", BigInteger, nullable=False),
    # When the transfer beyond the plan was charged: nothing is added after that. 0: from before there were prices.
    Column("charged_at_ms", BigInteger),
)
_uncharged = traffic.c.charged_at_ms.is_(None)
Index("ix_traffic_uncharged", traffic.c.month, sqlite_where=_uncharged, postgresql_where=_uncharged)


class Sample(msgspec.Struct, frozen=True):
    """A measurement of a server; a row of `usage`."""

    server_id: int
    sampled_at_ms: int
    cpu_percent: float | None
    memory_used_mb: int | None
    disk_used_bytes: int | None
    cpu_seconds: float | None
    received_bytes: int | None
    sent_bytes: int | None


class Transfer(msgspec.Struct, frozen=True):
    """What a server has transferred in a month."""

    received_bytes: int
    sent_bytes: int
