"""What goes over the wire about servers. Shapes and names are those of VPS.org's servers page."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.pages import PageQuery
from vpsd.operations.models import Operation
from vpsd.servers.lifecycle import Status
from vpsd.servers.user_data import LARGEST_BYTES

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_END = "$(?!\\n)"  # a bare $ would let a line end through

Name = Annotated[
    str,
    Meta(
        description="Letters, digits and hyphens; at most 63, no hyphen at the ends",
        pattern=f"^{_LABEL}{_END}",
        examples=["web-server-01"],
        extra={"message": "Use letters, digits and hyphens, at most 63, no hyphen at the ends."},
    ),
]
Hostname = Annotated[
    str,
    Meta(
        description="Fully qualified domain name (RFC 1123)",
        max_length=253,
        pattern=rf"^{_LABEL}(\.{_LABEL})*{_END}",
        examples=["web01.example.com"],
        extra={
            "message": "A hostname is labels of letters, digits and hyphens joined by dots, each at most 63 long with "
            "no hyphen at its ends, at most 253 in all (RFC 1123), like web01.example.com."
        },
    ),
]

_TAG = "a lower-case letter or digit, then at most 62 of these and of . _ : -"
Tag = Annotated[str, Meta(pattern=f"^[a-z0-9][a-z0-9._:-]{{0,62}}{_END}", examples=["env:prod"])]
Tags = Annotated[
    list[Tag],
    Meta(
        max_length=20,
        description=f"At most 20, none twice; each {_TAG}",
        extra={"message": f"Give at most 20 tags, each {_TAG}."},
    ),
]
Protected = Annotated[bool, Meta(description="Refuse to delete it")]
DeleteAt = Annotated[
    str | None, Meta(description="When its deletion becomes final; null unless it is deleted and may be undeleted")
]


def an_id(where: str, example: int) -> Meta:
    """An id that a list of the API tells."""
    return Meta(
        ge=1, le=2**63 - 1, description=f"Id, from {where}", examples=[example],
        extra={"message": f"Give an id from {where}."},
    )  # fmt: skip


class ServerQuery(PageQuery):
    """What a list of servers can be narrowed to."""

    status: Annotated[
        Status | UnsetType,
        Meta(
            description="Only servers in this status",
            extra={"message": f"There is no such status. The statuses are {', '.join(Status)}."},
        ),
    ] = UNSET
    location: Annotated[
        str | UnsetType, Meta(description="Only servers at this location code, from /api/v1/locations/")
    ] = UNSET
    tag: Annotated[
        Tag | UnsetType, Meta(description="Only servers with this tag", extra={"message": f"A tag is {_TAG}."})
    ] = UNSET
    name: Annotated[Name | UnsetType, Meta(description="Only servers of exactly this name")] = UNSET


class ServerCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A server to make."""

    name: Name
    plan_id: Annotated[int, an_id("/api/v1/plans/", 1)]
    location: Annotated[str, Meta(description="Location code, from /api/v1/locations/", examples=["us-west"])]
    os_id: Annotated[int, an_id("/api/v1/operating-systems/", 5)] | UnsetType = UNSET
    backup_id: Annotated[
        Annotated[int, an_id("/api/v1/backups/", 501)] | UnsetType,
        Meta(description="In place of os_id: begin with what a backup holds"),
    ] = UNSET
    snapshot_id: Annotated[
        Annotated[int, an_id("/api/v1/snapshots/", 801)] | UnsetType,
        Meta(description="In place of os_id: begin with what a snapshot holds"),
    ] = UNSET
    hostname: Annotated[Hostname | None, Meta(description="By default the name")] = None
    ssh_key_id: Annotated[
        Annotated[int, an_id("/api/v1/ssh-keys/", 7)] | None,
        Meta(description="SSH key to install; without one the answer carries a root password"),
    ] = None
    backups_enabled: Annotated[bool, Meta(description="Make automatic backups")] = False
    tags: Tags = []
    protected: Protected = False
    user_data: Annotated[
        str | None,
        Meta(
            description="What it does once, at its first boot, and again after a rebuild: a script, a #cloud-config or "
            f"another format of cloud-init, at most {LARGEST_BYTES // 1024} KiB of UTF-8. It may hold secrets, so no "
            "answer shows it. Options of its own go before vpsd's; key and password work beside them. Tiny Linux runs "
            "scripts only",
            examples=["#!/bin/sh\necho hello > /root/hello\n"],
        ),
    ] = None


class ServerUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that can be changed; all fields but tags and protection are needed."""

    name: Name
    hostname: Hostname
    backups_enabled: Annotated[bool, Meta(description="Make automatic backups")]
    tags: Tags | UnsetType = UNSET
    protected: Protected | UnsetType = UNSET


class ServerPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What shall change; what is not sent stays."""

    name: Name | UnsetType = UNSET
    hostname: Hostname | UnsetType = UNSET
    backups_enabled: Annotated[bool, Meta(description="Make automatic backups")] | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    protected: Protected | UnsetType = UNSET


class ServerResize(msgspec.Struct, forbid_unknown_fields=True):
    """The plan that a server shall have; its disk may not be smaller than the present one."""

    plan_id: Annotated[int, an_id("/api/v1/plans/", 2)] | UnsetType = UNSET
    plan: Annotated[str, Meta(max_length=36, description="Its uuid, as the official client sends it")] | UnsetType = (
        UNSET
    )


class ServerRebuild(msgspec.Struct, forbid_unknown_fields=True):
    """What a server shall be made anew from. Everything on its disk is lost."""

    os_id: Annotated[int, an_id("/api/v1/operating-systems/", 5)]


class DeleteQuery(msgspec.Struct):
    """How a server is to be deleted."""

    now: Annotated[
        bool,
        Meta(
            description="true: for ever, at once, also where a deletion could be undone for a time",
            extra={"message": "Give true or false."},
        ),
    ] = False


class Power(StrEnum):
    """What the official client calls the power actions."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    HARD_STOP = "hard_stop"


class ServerPower(msgspec.Struct, forbid_unknown_fields=True):
    """A power action."""

    action: Annotated[Power, Meta(extra={"message": f"Give one of {', '.join(Power)}."})]


class PlanBrief(msgspec.Struct):
    """The plan of a server in a list: memory in MB, storage in GB."""

    id: int
    name: str
    vcpus: int
    memory: int
    storage: int


class PlanFull(msgspec.Struct):
    """The plan of a server: memory in MB, storage in GB, bandwidth in GB a month."""

    id: int
    name: str
    vcpus: int
    memory: int
    storage: int
    bandwidth: int


class OsBrief(msgspec.Struct):
    """The operating system of a server."""

    id: int
    name: str


class ResourceUsage(msgspec.Struct):
    """Measured figures; null where nothing was measured."""

    cpu_percent: Annotated[float | None, Meta(description="Of the plan's vCPUs together")]
    memory_used: Annotated[int | None, Meta(description="MB")]
    disk_used: Annotated[float | None, Meta(description="GB, in the guest's file systems")]
    bandwidth_used: Annotated[float | None, Meta(description="GB this month, the larger of in and out")]


class ServerSummary(msgspec.Struct):
    """A server in a list."""

    id: int
    uuid: str
    name: str
    hostname: str
    status: Status
    ip_address: Annotated[str | None, Meta(description="Null until the address works")]
    location: str
    plan: PlanBrief
    os: OsBrief
    tags: list[str]
    protected: bool
    delete_at: DeleteAt
    created_at: str
    updated_at: str

    @classmethod
    def of(
        cls,
        id: int,  # noqa: A002
        uuid: str,
        name: str,
        hostname: str,
        status: str,
        ip_address: str | None,
        location: str,
        plan_id: int,
        plan_name: str,
        vcpus: int,
        memory_mb: int,
        storage_gb: int,
        os_id: int,
        os_name: str,
        tags: str,
        protected: bool,
        delete_at_ms: int | None,
        created_at_ms: int,
        updated_at_ms: int,
    ) -> "ServerSummary":
        """From a row, column by column."""
        return cls(
            id,
            uuid,
            name,
            hostname,
            status,  # type: ignore[arg-type]  # the column holds nothing else, and making the enum costs time
            ip_address,
            location,
            PlanBrief(plan_id, plan_name, vcpus, memory_mb, storage_gb),
            OsBrief(os_id, os_name),
            msgspec.json.decode(tags),
            protected,
            iso_utc_or_none(delete_at_ms),
            iso_utc(created_at_ms),
            iso_utc(updated_at_ms),
        )


class ServerDetail(msgspec.Struct):
    """A server in full."""

    id: int
    uuid: str
    name: str
    hostname: str
    status: Status
    ip_address: Annotated[str | None, Meta(description="Null until the address works")]
    ipv6_address: Annotated[str | None, Meta(description="Null where servers have no IPv6")]
    location: str
    plan: PlanFull
    os: OsBrief
    backups_enabled: bool
    tags: list[str]
    protected: bool
    delete_at: DeleteAt
    resource_usage: ResourceUsage
    ssh: Annotated[str | None, Meta(description="How to log in; null until the address works")]
    error: Annotated[str | None, Meta(description="Why the server is in status error")]
    created_at: str
    updated_at: str


class ServerCreated(msgspec.Struct, omit_defaults=True):
    """A server that is being made."""

    id: int
    uuid: str
    name: str
    hostname: str
    status: Status
    ip_address: str | None
    location: str
    plan: PlanBrief
    os: OsBrief
    backups_enabled: bool
    tags: list[str]
    protected: bool
    created_at: str
    updated_at: str
    message: str
    password: Annotated[
        str | UnsetType, Meta(description="Root password, shown this once; only without an SSH key")
    ] = UNSET


class ServerState(msgspec.Struct):
    """A server in the answer to an action."""

    id: int
    name: str
    status: Status


class ActionAccepted(msgspec.Struct):
    """An action was accepted; the server's status tells when it is done."""

    status: Annotated[str, Meta(examples=["success"])]
    message: Annotated[str, Meta(examples=["Server is starting"])]
    server: ServerState


class ServerRebuilt(ActionAccepted, omit_defaults=True):
    """The server is being made anew."""

    password: Annotated[
        str | UnsetType, Meta(description="New root password, shown this once; only without an SSH key")
    ] = UNSET


class OperationView(msgspec.Struct):
    """A piece of slow work on a server."""

    id: int
    uuid: str
    command: Annotated[str, Meta(examples=["create"])]
    status: Annotated[str, Meta(description="queued, running, succeeded, failed or cancelled")]
    step: Annotated[str | None, Meta(description="The step that is being done or was done last")]
    progress: Annotated[float, Meta(description="From 0 to 1")]
    detail: Annotated[str | None, Meta(description="What is being done, or how it ended")]
    attempts: Annotated[int, Meta(description="How often a worker took it up")]
    error: Annotated[str | None, Meta(description="The last thing that went wrong")]
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, operation: Operation) -> "OperationView":
        """From a row."""
        return cls(
            operation.id,
            operation.uuid,
            operation.command,
            operation.status,
            operation.step,
            round(operation.progress, 3),
            operation.detail,
            operation.attempts,
            operation.error,
            iso_utc(operation.created_at_ms),
            iso_utc_or_none(operation.started_at_ms),
            iso_utc_or_none(operation.finished_at_ms),
        )
