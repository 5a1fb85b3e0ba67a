"""What is answered about servers."""

from typing import Annotated, Any, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.http.forms import Listing
from vpsd.api.http.schemas import one_of
from vpsd.api.vps_org.schemas.operations import OperationBrief
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.units import GIB
from vpsd.lifecycle import Status
from vpsd.servers import queries
from vpsd.servers.commands import Accepted
from vpsd.servers.creation import CreatedServer
from vpsd.servers.user_data import UserDataStatus

DeleteAt = Annotated[
    str | None, Meta(description="When its deletion becomes final; null unless it is deleted and may be undeleted")
]

StatusDetail = Annotated[
    str | None,
    Meta(description="What there is to say about the status: that a running server is silent, say; usually null"),
]


class PlanBrief(msgspec.Struct):
    """The plan of a server in a list: memory in MB, storage in GB."""

    id: int
    name: str
    vcpus: int
    memory: int
    storage: int


class PlanFull(PlanBrief):
    """The plan of a server: memory in MB, storage in GB, bandwidth in GB a month."""

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
    status_detail: StatusDetail
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
    def of(cls, server: queries.ListedServer) -> "ServerSummary":
        """As it is read."""
        return cls(
            server.id,
            server.uuid,
            server.name,
            server.hostname,
            server.status,  # type: ignore[arg-type]  # the column holds nothing else, and making the enum costs time
            server.status_detail,
            server.ip_address,
            server.location,
            PlanBrief(server.plan_id, server.plan_name, server.vcpus, server.memory_mb, server.storage_gb),
            OsBrief(server.os_id, server.os_name),
            server.tag_list,
            server.protected,
            iso_utc_or_none(server.purge_due_at_ms),
            iso_utc(server.created_at_ms),
            iso_utc(server.updated_at_ms),
        )


class ServerList(Listing):
    """A page of servers."""

    results: list[ServerSummary]


class SshHostKey(msgspec.Struct):
    """A key by which the server's SSH server can be told at the first login."""

    type: Annotated[str, Meta(examples=["ssh-ed25519"])]
    fingerprint: Annotated[str, Meta(description="As ssh shows it and ssh-keygen -l prints it: SHA256:...")]
    public_key: Annotated[str, Meta(description="Type and key, as in known_hosts")]


class ServerDetail(msgspec.Struct):
    """A server in full."""

    id: int
    uuid: str
    name: str
    hostname: str
    status: Status
    status_detail: StatusDetail
    ip_address: Annotated[str | None, Meta(description="Null until the address works")]
    ipv6_address: Annotated[str | None, Meta(description="Null where servers have no IPv6")]
    location: str
    plan: PlanFull
    os: OsBrief
    backups_enabled: bool
    freeze_for_backups: bool
    tags: list[str]
    protected: bool
    delete_at: DeleteAt
    placement_group_id: Annotated[int | None, Meta(description="Its placement group, if it belongs to one")]
    resource_usage: ResourceUsage
    ssh: Annotated[str | None, Meta(description="How to log in; null until the address works")]
    error: Annotated[str | None, Meta(description="Why the server is in status error")]
    user_data_status: Annotated[
        UserDataStatus | None,
        Meta(
            description="How far the user data is that runs at the first boot: the guest's own verdict, read through "
            "its agent; a server may be active before. unknown: the guest went off or said nothing for an hour. Null "
            "without user data"
        ),
    ]
    user_data_error: Annotated[str | None, Meta(description="The first error of the user data, in the guest's words")]
    ssh_host_keys: Annotated[
        list[SshHostKey] | None,
        Meta(description="Read through the guest's agent after a boot; null until it has said them"),
    ]
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, server: queries.DetailedServer) -> "ServerDetail":
        """As it is read."""
        moved, used = server.transferred_bytes, server.disk_used_bytes
        memory, bandwidth = server.memory_mb, server.bandwidth_gb
        return cls(
            id=server.id,
            uuid=server.uuid,
            name=server.name,
            hostname=server.hostname,
            status=Status(server.status),
            status_detail=server.status_detail,
            ip_address=server.ip_address,
            ipv6_address=None,  # servers have none yet
            location=server.location,
            plan=PlanFull(server.plan_id, server.plan_name, server.vcpus, memory, server.storage_gb, bandwidth),
            os=OsBrief(server.os_id, server.os_name),
            backups_enabled=server.backups_enabled,
            freeze_for_backups=server.freeze_for_backups,
            tags=server.tag_list,
            protected=server.protected,
            delete_at=iso_utc_or_none(server.purge_due_at_ms),
            placement_group_id=server.placement_group_id,
            resource_usage=ResourceUsage(
                server.cpu_percent,
                server.memory_used_mb,
                None if used is None else round(used / GIB, 2),
                None if moved is None else round(moved / GIB, 3),
            ),
            ssh=ssh_line(server.ip_address, server.ssh_port),
            error=server.error,
            user_data_status=None if server.user_data_status is None else UserDataStatus(server.user_data_status),
            user_data_error=server.user_data_error,
            ssh_host_keys=None
            if server.host_keys is None
            else [SshHostKey(key.type, key.fingerprint, key.public_key) for key in server.host_keys],
            created_at=iso_utc(server.created_at_ms),
            updated_at=iso_utc(server.updated_at_ms),
        )


def ssh_line(ip_address: str | None, ssh_port: int | None) -> str | None:
    """How to log in to a server."""
    if ip_address is None:
        return None
    return f"ssh root@{ip_address}" if ssh_port in (None, 22) else f"ssh -p {ssh_port} root@{ip_address}"


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
    freeze_for_backups: bool
    tags: list[str]
    protected: bool
    created_at: str
    updated_at: str
    message: str
    operation: Annotated[OperationBrief | None, Meta(description="The work that makes it; null in a dry run")]
    password: Annotated[
        str | UnsetType, Meta(description="Root password, shown this once; only without an SSH key")
    ] = UNSET

    @classmethod
    def of(cls, server: CreatedServer) -> "ServerCreated":
        """As the service answers."""
        plan, system, created_at = server.plan, server.system, iso_utc(server.created_at_ms)
        return cls(
            id=server.id,
            uuid=server.uuid,
            name=server.name,
            hostname=server.hostname,
            status=server.status,
            ip_address=None,
            location=server.location,
            plan=PlanBrief(plan.id, plan.name, plan.vcpus, plan.memory_mb, plan.storage_gb),
            os=OsBrief(system.id, system.name),
            backups_enabled=server.backups_enabled,
            freeze_for_backups=server.freeze_for_backups,
            tags=server.tags,
            protected=server.protected,
            created_at=created_at,
            updated_at=created_at,
            message=server.message,
            operation=OperationBrief.of(server.operation),
            password=UNSET if server.password is None else server.password,
        )


class ServerState(msgspec.Struct):
    """A server in the answer to an action."""

    id: int
    name: str
    status: Status


class ActionAccepted(msgspec.Struct):
    """An action was accepted; the server's status tells when it is done."""

    status: Annotated[str, one_of("ActionStatus", ["success"])]
    message: Annotated[str, Meta(examples=["Server is starting"])]
    server: ServerState
    operation: Annotated[
        OperationBrief | None, Meta(description="The work that follows; null where there is none, and in a dry run")
    ]

    @classmethod
    def of(cls, accepted: Accepted, **more: Any) -> Self:
        """As the service answers, and what the subclass has more."""
        return cls(
            status="success",
            message=accepted.message,
            server=ServerState(accepted.server_id, accepted.name, accepted.status),
            operation=OperationBrief.of(accepted.operation),
            **more,
        )


class ServerRebuilt(ActionAccepted, omit_defaults=True):
    """The server is being made anew."""

    password: Annotated[
        str | UnsetType, Meta(description="New root password, shown this once; only without an SSH key")
    ] = UNSET
