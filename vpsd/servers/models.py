"""Tables of servers and of what was measured of them."""

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, false

from vpsd.core.db import metadata
from vpsd.core.tables import identity

servers = Table(
    "servers",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("hostname", String(253), nullable=False),
    Column("status", String(16), nullable=False),
    Column("plan_id", BigInteger, ForeignKey("plans.id"), nullable=False),
    Column("os_id", BigInteger, ForeignKey("operating_systems.id"), nullable=False),
    Column("location", String(63), ForeignKey("locations.code"), nullable=False),
    Column("backups_enabled", Boolean, nullable=False),
    Column("ip_address", String(45)),  # set when it works
    Column("ssh_port", Integer),
    Column("error", Text),  # why it rests in `error`
    Column("suspended_at_ms", BigInteger),
    Column("suspended_from", String(16)),  # the status that it goes back to when there is credit again
    # What the guest is made from; the key is a copy, so that deleting a key changes no server.
    Column("authorized_key", Text),
    Column("root_password_hash", String(255)),
    Column("base", String(100)),  # image key under the disk
    Column("kernel_cmdline", Text),  # None: the disk boots by itself
    Column("disk", BigInteger, nullable=False, server_default="0"),  # 0, or the operation that wrote it: a restore
    Column("replaced", Text),  # JSON of `Made`: what a restore goes back to until the guest has booted
    Column("source_backup_id", BigInteger),  # what its first disk is written from, in place of an image
    Column("next_backup_at_ms", BigInteger),  # the next automatic one
    Column("seed_hostname", String(253)),  # the hostname that the seed on the host says
    Column("provisioned_at_ms", BigInteger),  # when its disk was first made whole and booted
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("deleted_at_ms", BigInteger),  # when the customer deleted it
    Column("gone_at_ms", BigInteger),  # when nothing of it was left
    Column("tags", Text, nullable=False, server_default="[]"),  # a JSON list
    Column("protected", Boolean, nullable=False, server_default=false()),
    Column("delete_at_ms", BigInteger),  # when a deletion that can be undone becomes final
    Column("retired_from", String(16)),  # the status that it goes back to when the deletion is undone
    Column("user_data", Text),  # read alone: it may be large
    sqlite_autoincrement=True,
)
_alive = servers.c.deleted_at_ms.is_(None)
Index(  # it holds all that counting needs: SQLite then never opens the rows
    "ix_servers_alive_account",
    *(servers.c.account_id, servers.c.id, servers.c.deleted_at_ms),
    sqlite_where=_alive,
    postgresql_where=_alive,
)
_present = servers.c.gone_at_ms.is_(None)
Index(  # what a host has handed out is counted from it alone
    "ix_servers_present_plan",
    *(servers.c.plan_id, servers.c.gone_at_ms),
    sqlite_where=_present,
    postgresql_where=_present,
)

_due = servers.c.next_backup_at_ms.is_not(None)
Index("ix_servers_next_backup", servers.c.next_backup_at_ms, sqlite_where=_due, postgresql_where=_due)

usage = Table(
    "usage",
    metadata,
    Column("server_id", BigInteger, ForeignKey("servers.id"), primary_key=True, autoincrement=False),
    Column("sampled_at_ms", BigInteger, nullable=False),
    Column("cpu_percent", Float),  # of the plan's vCPUs
    Column("memory_used_mb", Integer),
    Column("disk_used_bytes", BigInteger),
    # The guest's counters as they were, to see what came since; they begin anew at each boot.
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
    Column("settled_at_ms", BigInteger),  # when what is beyond the plan was charged: nothing is added after that
)
_unsettled = traffic.c.settled_at_ms.is_(None)
Index("ix_traffic_unsettled", traffic.c.month, sqlite_where=_unsettled, postgresql_where=_unsettled)


class Server(msgspec.Struct, frozen=True):
    """A server as the worker needs it: the row and its plan's size."""

    id: int
    uuid: str
    account_id: int
    name: str
    hostname: str
    status: str
    plan_id: int
    os_id: int
    location: str
    backups_enabled: bool
    ip_address: str | None
    ssh_port: int | None
    error: str | None
    suspended_at_ms: int | None
    suspended_from: str | None
    authorized_key: str | None
    root_password_hash: str | None
    base: str | None
    kernel_cmdline: str | None
    disk: int
    replaced: str | None
    source_backup_id: int | None
    next_backup_at_ms: int | None
    seed_hostname: str | None
    provisioned_at_ms: int | None
    created_at_ms: int
    updated_at_ms: int
    deleted_at_ms: int | None
    gone_at_ms: int | None
    tags: str
    protected: bool
    delete_at_ms: int | None
    retired_from: str | None
    vcpus: int
    memory_mb: int
    storage_gb: int


class Made(msgspec.Struct, frozen=True):
    """What a guest is made from: its disk, the system on it, and the image that brings its kernel."""

    disk: int
    os_id: int
    base: str | None
    kernel_cmdline: str | None
