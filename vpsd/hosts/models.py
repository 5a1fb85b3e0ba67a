"""The table of hosts. There is only one so far."""

import msgspec
from sqlalchemy import BigInteger, Column, Integer, String, Table

from vpsd.core.db import metadata

hosts = Table(
    "hosts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("name", String(255), nullable=False),
    Column("cpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("storage_gb", Integer),  # None: not known yet
    Column("storage_free_mb", BigInteger),  # None: not known yet
    Column("seen_at_ms", BigInteger, nullable=False),
)


class Host(msgspec.Struct, frozen=True):
    """A host as it was last seen."""

    id: int
    name: str
    cpus: int
    memory_mb: int
    storage_gb: int | None
    storage_free_mb: int | None
    seen_at_ms: int
