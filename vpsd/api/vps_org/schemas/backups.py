"""What goes over the wire about backups and snapshots."""

from enum import StrEnum
from typing import Annotated, Any, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.http.forms import NO_LINE_END, Listing, PageQuery
from vpsd.api.vps_org.schemas.operations import OperationBrief
from vpsd.api.vps_org.schemas.server_forms import an_id
from vpsd.api.vps_org.schemas.servers import ActionAccepted
from vpsd.backups.commands import CreatedBackup
from vpsd.backups.models import BackupStatus, Kind
from vpsd.backups.queries import NamedBackup
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.units import MIB
from vpsd.images.clones import CloudInit
from vpsd.servers.commands import Accepted

_MadeBy = Annotated[OperationBrief | None, Meta(description="The work that makes it")]

FreeText = Annotated[str, Meta(max_length=1000, description="Free text", examples=["Before system update"])]
_ServerId = Annotated[int, an_id("/api/v1/servers/", 12345)]
SnapshotName = Annotated[
    str,
    Meta(
        description="Letters, digits, hyphens and underscores; at most 63",
        pattern=rf"^[A-Za-z0-9_-]{{1,63}}${NO_LINE_END}",
        examples=["before-update-snapshot"],
        extra={"message": "Use letters, digits, hyphens and underscores, at most 63."},
    ),
]


class BackupType(StrEnum):
    """Who asked for a backup: somebody, or the clock."""

    MANUAL = Kind.MANUAL
    AUTOMATIC = Kind.AUTOMATIC


class SnapshotQuery(PageQuery):
    """What a list of snapshots can be narrowed to."""

    server_id: Annotated[
        _ServerId | UnsetType, Meta(description="Only those of this server", extra={"message": "Give a server's id."})
    ] = UNSET


class BackupQuery(SnapshotQuery):
    """What a list of backups can be narrowed to."""

    backup_type: Annotated[
        BackupType | UnsetType,
        Meta(description="Only manual or only automatic ones", extra={"message": "Give manual or automatic."}),
    ] = UNSET


class BackupCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A backup to make."""

    server_id: _ServerId
    description: FreeText | None = None


class SnapshotCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A snapshot to make."""

    server_id: _ServerId
    name: SnapshotName
    description: FreeText | None = None


class CopyLabel(msgspec.Struct, forbid_unknown_fields=True):
    """What the official client calls a backup or snapshot that it asks a server for."""

    label: Annotated[
        Annotated[str, Meta(max_length=255)] | None, Meta(description="What it is for", examples=["before-update"])
    ] = None


class OfServer(msgspec.Struct):
    """The server that something belongs to; it may be deleted by now."""

    id: int
    name: str


class CopyView(msgspec.Struct):
    """What a backup and a snapshot have in common."""

    id: int
    server: OfServer
    status: Annotated[BackupStatus, Meta(description="damaged: completed, and parts of it were lost later")]
    size_mb: Annotated[int | None, Meta(description="What is on the disk, in MB; null until it is completed")]
    created_at: str
    description: str | None
    uuid: str
    completed_at: str | None
    consistent: Annotated[
        bool | None,
        Meta(
            description="Nothing was being written: the file systems on its disk were frozen by the agent, or the "
            "server was off"
        ),
    ]
    consistency_detail: Annotated[
        str | None,
        Meta(description="What was frozen and for how long, and what was not and why; null for old ones"),
    ]
    paused_ms: Annotated[
        int | None,
        Meta(
            description="For how long at most the running server could not write, in ms; null where its agent was told "
            "to freeze and did not answer any more"
        ),
    ]
    cloud_init: Annotated[
        CloudInit | None,
        Meta(
            description="Whether cloud-init sets up a new server made from it. Where it is disabled (or told to leave "
            "the network alone) or missing, vpsd does, through the guest's agent. Null where the agent could not be "
            "asked"
        ),
    ]
    incremental: Annotated[bool | None, Meta(description="Only what was written since the one before was copied")]
    sent_mb: Annotated[float | None, Meta(description="What had to be sent for it, compressed, in MB")]
    encrypted: bool | None
    error: Annotated[str | None, Meta(description="Why it failed, or what became of it")]

    @classmethod
    def of(cls, backup: NamedBackup, **more: Any) -> Self:
        """From a row, and what the subclass has more."""
        completed = backup.status in (BackupStatus.COMPLETED, BackupStatus.DAMAGED)
        return cls(
            id=backup.id,
            server=OfServer(backup.server_id, backup.server_name),
            status=BackupStatus(backup.status),
            size_mb=None if backup.size_bytes is None or not completed else -(-backup.size_bytes // MIB),
            created_at=iso_utc(backup.created_at_ms),
            description=backup.description,
            uuid=backup.uuid,
            completed_at=iso_utc_or_none(backup.completed_at_ms),
            consistent=backup.frozen,
            consistency_detail=backup.consistency_detail,
            paused_ms=backup.frozen_ms,
            cloud_init=None if backup.cloud_init is None else CloudInit(backup.cloud_init),
            incremental=backup.incremental,
            sent_mb=None if backup.sent_bytes is None or not completed else round(backup.sent_bytes / MIB, 2),
            encrypted=None if backup.target is None else backup.key_id is not None,
            error=backup.error,
            **more,
        )

    @classmethod
    def of_new(cls, made: CreatedBackup) -> Self:
        """One that is being made, for the subclasses that say so."""
        return cls.of(made.backup, message=made.message, operation=OperationBrief.of(made.operation))


class BackupView(CopyView):
    """A backup."""

    backup_type: BackupType
    expires_at: Annotated[str | None, Meta(description="When it is deleted by itself; null: never")]

    @classmethod
    def of(cls, backup: NamedBackup, **more: Any) -> Self:
        """From a row."""
        expires_at = iso_utc_or_none(backup.expires_at_ms)
        return super().of(backup, backup_type=BackupType(backup.kind), expires_at=expires_at, **more)


class SnapshotView(CopyView):
    """A snapshot."""

    name: str

    @classmethod
    def of(cls, backup: NamedBackup, **more: Any) -> Self:
        """From a row."""
        return super().of(backup, name=backup.name or "", **more)


class BackupList(Listing):
    """A page of backups."""

    results: list[BackupView]


class SnapshotList(Listing):
    """A page of snapshots."""

    results: list[SnapshotView]


class BackupCreated(BackupView):
    """A backup that is being made."""

    message: str
    operation: _MadeBy


class SnapshotCreated(SnapshotView):
    """A snapshot that is being made."""

    message: str
    operation: _MadeBy


class BackupBrief(msgspec.Struct):
    """The backup that a server is restored from."""

    id: int
    backup_type: BackupType
    created_at: str


class SnapshotBrief(msgspec.Struct):
    """The snapshot that a server is restored from."""

    id: int
    name: str
    created_at: str


class BackupRestore(ActionAccepted):
    """The server is being restored."""

    backup: BackupBrief

    @classmethod
    def of_backup(cls, backup: NamedBackup, accepted: Accepted) -> Self:
        """As the service answers."""
        return cls.of(accepted, backup=BackupBrief(backup.id, BackupType(backup.kind), iso_utc(backup.created_at_ms)))


class SnapshotRestore(ActionAccepted):
    """The server is being restored."""

    snapshot: SnapshotBrief

    @classmethod
    def of_backup(cls, backup: NamedBackup, accepted: Accepted) -> Self:
        """As the service answers."""
        return cls.of(accepted, snapshot=SnapshotBrief(backup.id, backup.name or "", iso_utc(backup.created_at_ms)))
