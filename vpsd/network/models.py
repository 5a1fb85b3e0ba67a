"""The table of addresses that servers hold or have held; one that nobody ever had has no row."""

from sqlalchemy import BigInteger, Column, ForeignKey, String, Table

from vpsd.core.db import metadata

addresses = Table(
    "addresses",
    metadata,
    Column("address", String(45), primary_key=True),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False, unique=True),  # the last, if it rests
    Column("assigned_at_ms", BigInteger, nullable=False),
    Column("released_at_ms", BigInteger),  # it rests since then
)
