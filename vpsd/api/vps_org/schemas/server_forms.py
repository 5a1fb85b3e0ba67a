"""What is sent about servers."""

from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.http.forms import NO_LINE_END, PageQuery
from vpsd.api.http.schemas import as_format, one_of
from vpsd.lifecycle import Status
from vpsd.servers.listing import SORTS
from vpsd.servers.user_data import LARGEST_BYTES

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_END = f"${NO_LINE_END}"
_LABELS = rf"^{_LABEL}(\.{_LABEL})*{_END}"

Name = Annotated[
    str,
    Meta(
        description="Labels of letters, digits and hyphens, joined by dots, like a hostname",
        max_length=253,
        pattern=_LABELS,
        examples=["web-server-01"],
        extra={
            "message": "A name is labels of letters, digits and hyphens joined by dots, each at most 63 long with no "
            "hyphen at its ends, at most 253 in all, like web-server-01 or web.example.com."
        },
    ),
]
Hostname = Annotated[
    str,
    Meta(
        description="Fully qualified domain name (RFC 1123); not localhost, and nothing that reads as an IPv4 address",
        max_length=253,
        pattern=_LABELS,
        examples=["web01.example.com"],
        extra={
            "message": "A hostname is labels of letters, digits and hyphens joined by dots, each at most 63 long with "
            "no hyphen at its ends, at most 253 in all (RFC 1123), like web01.example.com."
        },
    ),
]

_ORDERS = (*SORTS, *(f"-{sort}" for sort in SORTS))
_TAG = "a lower-case letter or digit, then at most 62 of these and of . _ : -"
Tag = Annotated[str, Meta(pattern=f"^[a-z0-9][a-z0-9._:-]{{0,62}}{_END}", examples=["env:prod"])]
Tags = Annotated[
    list[Tag],
    Meta(
        max_length=20,
        description=f"At most 20, none twice; each {_TAG}",
        extra={"message": f"Give at most 20 tags, each {_TAG}."},
        extra_json_schema={"uniqueItems": True},
    ),
]
FreezeFlag = Annotated[
    bool,
    Meta(description="Have the agent freeze the file systems for the moment in which a backup or snapshot begins"),
]
ProtectedFlag = Annotated[bool, Meta(description="Refuse to delete, rebuild or restore it: what is on its disk stays")]


def an_id(where: str, example: int) -> Meta:
    """An id that a list of this API shows."""
    return Meta(
        ge=1, le=2**63 - 1, description=f"Id, from {where}", examples=[example],
        extra={"message": f"Give an id from {where}."},
    )  # fmt: skip


class ServerQuery(PageQuery):
    """What a list of servers can be narrowed to."""

    status: Annotated[
        Annotated[list[Status], Meta(min_length=1)] | UnsetType,
        Meta(
            description="Only servers in this status, or in one of several with commas between them",
            extra={
                "message": f"There is no such status. The statuses are {', '.join(Status)}; several have commas "
                "between them."
            },
        ),
    ] = UNSET
    location: Annotated[
        str | UnsetType, Meta(description="Only servers at this location code, from /api/v1/locations/")
    ] = UNSET
    placement_group_id: Annotated[
        Annotated[int, an_id("/api/v1/placement-groups/", 3)] | UnsetType,
        Meta(description="Only servers of this placement group"),
    ] = UNSET
    tag: Annotated[
        Tag | UnsetType, Meta(description="Only servers with this tag", extra={"message": f"A tag is {_TAG}."})
    ] = UNSET
    name: Annotated[Name | UnsetType, Meta(description="Only servers of exactly this name")] = UNSET
    q: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | UnsetType,
        Meta(
            description="Only servers with this in their name, hostname, address or a tag, whatever the case",
            extra={"message": "Give 1 to 253 characters to look for; leave q out to list all."},
        ),
    ] = UNSET
    sort: Annotated[
        Annotated[str, Meta(pattern=f"^-?({'|'.join(SORTS)}){_END}"), one_of("ServerSort", _ORDERS)] | UnsetType,
        Meta(
            description=f"What to order them by: {', '.join(SORTS)}; backwards with - before it, like -created_at. "
            "By default id. While one goes on by cursor, a server whose place in the order changes may be missed or "
            "come twice; its id never changes",
            extra={"message": f"Give one of {', '.join(SORTS)}, or one with - before it to go backwards."},
        ),
    ] = UNSET


class ServerCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A server to make."""

    exactly_one_of: ClassVar = {
        "os_id": "ServerFromOperatingSystem",
        "backup_id": "ServerFromBackup",
        "snapshot_id": "ServerFromSnapshot",
    }

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
    freeze_for_backups: FreezeFlag = True
    tags: Tags = []
    protected: ProtectedFlag = False
    placement_group_id: Annotated[
        Annotated[int, an_id("/api/v1/placement-groups/", 3)] | None,
        Meta(description="Placement group that it belongs to for its life"),
    ] = None
    user_data: Annotated[
        str | None,
        Meta(
            description="What it does once, at its first boot, and again after a rebuild: a script, a #cloud-config or "
            f"another format of cloud-init, at most {LARGEST_BYTES // 1024} KiB of UTF-8. It may hold secrets, so no "
            "answer shows it. Options of its own go before vpsd's; key and password work in any case. user_data_status "
            "of the server tells how it went. Tiny Linux runs scripts only",
            examples=["#!/bin/sh\necho hello > /root/hello\n"],
            extra_json_schema={"minLength": 1, "maxLength": LARGEST_BYTES},
        ),
    ] = None


class ServerUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that can be changed; name, hostname and backups_enabled are needed."""

    name: Name
    hostname: Hostname
    backups_enabled: Annotated[bool, Meta(description="Make automatic backups")]
    freeze_for_backups: FreezeFlag | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    protected: ProtectedFlag | UnsetType = UNSET


class ServerPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What shall change; what is not sent stays."""

    name: Name | UnsetType = UNSET
    hostname: Hostname | UnsetType = UNSET
    backups_enabled: Annotated[bool, Meta(description="Make automatic backups")] | UnsetType = UNSET
    freeze_for_backups: FreezeFlag | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    protected: ProtectedFlag | UnsetType = UNSET


class ServerResize(msgspec.Struct, forbid_unknown_fields=True):
    """The plan that a server shall have; its disk may not be smaller than the present one."""

    exactly_one_of: ClassVar = {"plan_id": "ResizeToPlan", "plan": "ResizeToPlanByUuid"}

    plan_id: Annotated[int, an_id("/api/v1/plans/", 2)] | UnsetType = UNSET
    plan: Annotated[
        Annotated[str, Meta(max_length=36), as_format("uuid")] | UnsetType,
        Meta(description="Its uuid, as the official client sends it"),
    ] = UNSET


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
