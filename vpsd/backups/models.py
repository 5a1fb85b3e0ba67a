"""The table of backups and snapshots: what was copied of which server, when, and what became of it.

Both are made in the same way; a snapshot has a name and a place in a server's five, a backup may be made every day.
"""

from enum import StrEnum

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, String, Table, Text

from vpsd.core.db import metadata
from vpsd.core.tables import identity


class Kind(StrEnum):
    """Who asked for it."""

    MANUAL = "manual"
    AUTOMATIC = "automatic"
    SNAPSHOT = "snapshot"


class BackupStatus(StrEnum):
    """How far it is."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    DAMAGED = "damaged"  # it was completed, and by now its target has lost or changed some of it


backups = Table(
    "backups",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(63)),  # of a snapshot
    Column("description", Text),
    Column("status", String(16), nullable=False),
    Column("error", Text),
    # What it was made of: restoring gives these back.
    Column("os_id", BigInteger, ForeignKey("operating_systems.id"), nullable=False),
    Column("disk", BigInteger, nullable=False),  # which of the server's disks (`servers.disk`)
    Column("base", String(100)),
    Column("kernel_cmdline", Text),
    # How it was made, and where it lies.
    Column("parent_id", BigInteger, ForeignKey("backups.id")),  # what is as in that one was not sent again
    Column("incremental", Boolean),  # only what was written since then was copied
    Column("frozen", Boolean),  # the file systems were at rest
    Column("frozen_ms", BigInteger),  # for how long the guest could not write
    Column("consistency_detail", Text),  # what was frozen and thawed, or why nothing was
    Column("cloud_init", String(16)),  # whether a new server's own cloud-init will run: enabled | disabled | missing
    Column("firmware", String(8)),  # uefi; None: BIOS
    Column("target", Text),
    Column("key_id", String(16)),  # of the key that it is encrypted with
    Column("disk_bytes", BigInteger),  # the size of the disk
    Column("size_bytes", BigInteger),  # what is on it
    Column("sent_bytes", BigInteger),  # what had to be sent for this one
    Column("created_at_ms", BigInteger, nullable=False),
    Column("completed_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("deleted_at_ms", BigInteger),  # nobody sees it any more
    Column("purged_at_ms", BigInteger),  # and nothing of it is left
    sqlite_autoincrement=True,
)
_shown = backups.c.deleted_at_ms.is_(None)
Index(
    "ix_backups_shown_account",
    *(backups.c.account_id, backups.c.id),
    sqlite_where=_shown,
    postgresql_where=_shown,
)
_present = backups.c.purged_at_ms.is_(None)
Index(
    "ix_backups_there_server",
    *(backups.c.server_id, backups.c.id),
    sqlite_where=_present,
    postgresql_where=_present,
)


backup_targets = Table(
    "backup_targets",
    metadata,
    Column("mark", String(36), primary_key=True),  # what lies on the target: it is known by that, wherever it is
    Column("name", String(63), nullable=False, unique=True),
    Column("location", Text, nullable=False),  # where it was seen, the last place first, one a line
    Column("created_at_ms", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
)


damaged_chunks = Table(  # what no new backup refers to, until it is stored anew or found whole
    "damaged_chunks",
    metadata,
    Column("server_id", BigInteger, ForeignKey("servers.id"), primary_key=True, autoincrement=False),
    Column("owner", String(36), primary_key=True),  # the backup in whose folder it is
    Column("digest", String(64), primary_key=True),
    Column("found_at_ms", BigInteger, nullable=False),
)


class Backup(msgspec.Struct, frozen=True):
    """One row, field for column."""

    id: int
    uuid: str
    account_id: int
    server_id: int
    kind: str
    name: str | None
    description: str | None
    status: str
    error: str | None
    os_id: int
    disk: int
    base: str | None
    kernel_cmdline: str | None
    parent_id: int | None
    incremental: bool | None
    frozen: bool | None
    frozen_ms: int | None
    consistency_detail: str | None
    cloud_init: str | None
    firmware: str | None
    target: str | None
    key_id: str | None
    disk_bytes: int | None
    size_bytes: int | None
    sent_bytes: int | None
    created_at_ms: int
    completed_at_ms: int | None
    expires_at_ms: int | None
    deleted_at_ms: int | None
    purged_at_ms: int | None
