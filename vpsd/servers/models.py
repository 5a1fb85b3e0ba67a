"""The table of servers."""

from collections.abc import Iterable

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    literal,
    literal_column,
    select,
    true,
)

from vpsd.core.db import metadata
from vpsd.core.sums import Sums
from vpsd.core.tables import identity
from vpsd.hypervisor.names import disk_name, guest_of, names_server
from vpsd.lifecycle import Status

servers = Table(
    "servers",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("name", String(253), nullable=False),
    Column("hostname", String(253), nullable=False),
    Column("status", String(16), nullable=False),  # written by `transitions.transition` alone
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
    Column("base", String(100)),  # key of the image that the disk stands on
    Column("kernel_cmdline", Text),  # None: the disk boots by itself
    Column("disk", BigInteger, nullable=False, server_default="0"),  # `disk_generation` of the operation that made it
    Column("previous_boot", Text),  # JSON of `BootSource`: what a restore goes back to until the guest has booted
    Column("source_backup_id", BigInteger),  # what its first disk is written from, in place of an image
    Column("next_backup_at_ms", BigInteger),  # the next automatic one
    Column("seed_hostname", String(253)),  # the hostname in the seed on the host
    Column("provisioned_at_ms", BigInteger),  # when it first booted from a disk of its own
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("deleted_at_ms", BigInteger),  # when it was deleted for good
    Column("purged_at_ms", BigInteger),  # when nothing of it was left on the host
    Column("protected", Boolean, nullable=False, server_default=false()),
    Column("purge_due_at_ms", BigInteger),  # when a deletion that can be undone becomes final
    Column("deleted_from", String(16)),  # the status that it goes back to when the deletion is undone
    Column("user_data", Text),  # read alone: it may be large
    Column("status_detail", Text),  # what there is to say about a status that is not `error`
    Column("freeze_for_backups", Boolean, nullable=False, server_default=true()),
    Column("unthawed_backup_id", BigInteger),  # it was frozen for that one, and has not been seen to write since
    Column("user_data_status", String(16)),  # the guest's own verdict on its first boot
    Column("user_data_error", Text),
    Column("ssh_host_keys", Text),  # a JSON list, as the guest's agent read them
    Column("firmware", String(8)),  # uefi; None: BIOS
    Column("host_id", BigInteger, ForeignKey("hosts.id")),  # where it is, or was; None: an older vpsd has made it
    Column("previous_host_id", BigInteger, ForeignKey("hosts.id")),  # where something of it may still be
    Column("placement_group_id", BigInteger, ForeignKey("placement_groups.id")),
    sqlite_autoincrement=True,
)
placement_groups = Table(
    "placement_groups",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("name", String(253), nullable=False),
    Column("policy", String(16), nullable=False),  # spread: no two of its servers on one host
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("account_id", "name"),
    sqlite_autoincrement=True,
)
server_tags = Table(
    "server_tags",
    metadata,
    Column("server_id", BigInteger, ForeignKey("servers.id"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # among the server's tags, from 0
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("key", String(317), nullable=False),  # of a label: a prefix of 253, a slash, a name of 63
    Column("value", String(63), nullable=False),  # empty: there is none
    UniqueConstraint("server_id", "key", "value"),
)
Index(  # all that a filter needs
    "ix_server_tags_account_key_value",
    *(server_tags.c.account_id, server_tags.c.key, server_tags.c.value, server_tags.c.server_id),
)
_alive = servers.c.deleted_at_ms.is_(None)
Index(  # it holds all that counting needs: SQLite then never opens the rows
    "ix_servers_alive_account",
    *(servers.c.account_id, servers.c.id, servers.c.deleted_at_ms),
    sqlite_where=_alive,
    postgresql_where=_alive,
)
for _column in (servers.c.status, servers.c.location):
    Index(
        f"ix_servers_alive_{_column.name}",
        *(servers.c.account_id, _column, servers.c.id),
        sqlite_where=_alive,
        postgresql_where=_alive,
    )
server_counts = Sums(
    "server_counts",
    by=(Column("status", String(16), nullable=False), Column("location", String(63), nullable=False)),
    added=(Column("servers", Integer, nullable=False),),
    over=(
        select(
            *(servers.c.account_id, servers.c.status, servers.c.location, literal(1).label("servers")),
        ).where(_alive),
    ),
)
_present = servers.c.purged_at_ms.is_(None)
Index(  # what a host has handed out is counted from it alone
    "ix_servers_present_plan",
    *(servers.c.plan_id, servers.c.purged_at_ms),
    sqlite_where=_present,
    postgresql_where=_present,
)
Index(  # what reconcile and placement ask of a host
    "ix_servers_present_host",
    *(servers.c.host_id, servers.c.id),
    sqlite_where=_present,
    postgresql_where=_present,
)
_grouped = and_(servers.c.placement_group_id.is_not(None), _present)
Index(
    "ix_servers_present_group",
    *(servers.c.placement_group_id, servers.c.host_id),
    sqlite_where=_grouped,
    postgresql_where=_grouped,
)
_due = servers.c.next_backup_at_ms.is_not(None)
Index("ix_servers_next_backup", servers.c.next_backup_at_ms, sqlite_where=_due, postgresql_where=_due)
_to_purge = servers.c.purge_due_at_ms.is_not(None)
Index("ix_servers_purge_due", servers.c.purge_due_at_ms, sqlite_where=_to_purge, postgresql_where=_to_purge)
is_suspended = and_(servers.c.status == literal_column(f"'{Status.SUSPENDED}'"), _alive)
Index(  # by the status as well, though it is the same: SQLite would not take it otherwise
    "ix_servers_suspended",
    *(servers.c.status, servers.c.account_id),
    sqlite_where=is_suspended,
    postgresql_where=is_suspended,
)


class ServerRow(msgspec.Struct, frozen=True):
    """A server's row, all but its user data."""

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
    previous_boot: str | None
    source_backup_id: int | None
    next_backup_at_ms: int | None
    seed_hostname: str | None
    provisioned_at_ms: int | None
    created_at_ms: int
    updated_at_ms: int
    deleted_at_ms: int | None
    purged_at_ms: int | None
    protected: bool
    purge_due_at_ms: int | None
    deleted_from: str | None
    status_detail: str | None
    freeze_for_backups: bool
    unthawed_backup_id: int | None
    user_data_status: str | None
    user_data_error: str | None
    ssh_host_keys: str | None
    firmware: str | None
    host_id: int | None
    previous_host_id: int | None
    placement_group_id: int | None

    @property
    def boot_source(self) -> "BootSource":
        """What the guest is made from."""
        return BootSource(self.disk, self.os_id, self.base, self.kernel_cmdline, self.firmware)

    @property
    def previous_boot_source(self) -> "BootSource | None":
        """What a restore goes back to that the guest has not booted from yet."""
        return None if self.previous_boot is None else msgspec.json.decode(self.previous_boot, type=BootSource)


class LockedServer(ServerRow, frozen=True):
    """A server whose row is kept from others until the transaction ends."""


class Server(ServerRow, frozen=True):
    """A server as workers need it: the row, and its plan's size."""

    vcpus: int
    memory_mb: int
    storage_gb: int


class BootSource(msgspec.Struct, frozen=True):
    """What a guest is made from: its disk, the system on it, the image that brings its kernel, and its firmware."""

    disk: int
    os_id: int
    base: str | None
    kernel_cmdline: str | None
    firmware: str | None = None  # rows of older versions lack it


def disks_of(server: ServerRow, guest: str, disks: Iterable[str]) -> set[str]:
    """Those of a host's disks that are a server's: they say so in their names, or its row says so.

    Disks of older versions of vpsd do not say whose they are. Of those only a server that has one itself may have more:
    to another they are those of the server that had its id before an older copy of the database was put back.
    """
    boots = [boot for boot in (server.boot_source, server.previous_boot_source) if boot is not None]
    row = {disk_name(guest, boot.disk) for boot in boots if boot.base is not None}
    named = {disk: names_server(disk, server.uuid) for disk in disks if guest_of(disk) == guest}
    has_unnamed = any(names_server(disk, server.uuid) is None for disk in row)
    return {disk for disk, is_its in named.items() if is_its or disk in row or (is_its is None and has_unnamed)}
