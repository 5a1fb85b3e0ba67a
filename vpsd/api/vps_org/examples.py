"""Examples for the API's description, by operation: those of the published page, with what vpsd adds to them.

The answers are made of the structs that go over the wire, so that they cannot have another shape.
"""

from typing import Any

import msgspec

from vpsd.api.http.health import Health, HypervisorHealth
from vpsd.api.vps_org.dry_run import DryRun, Placement, Price
from vpsd.api.vps_org.schemas.account import (
    AccountView,
    Balance,
    BandwidthUsage,
    EventList,
    EventTarget,
    EventToken,
    EventTransition,
    EventView,
    Me,
    NamedServer,
    TokenCreated,
    TokenList,
    TokenView,
    Transaction,
    TransactionList,
    Usage,
    UsageOfServer,
)
from vpsd.api.vps_org.schemas.backups import (
    BackupBrief,
    BackupCreated,
    BackupList,
    BackupRestore,
    BackupView,
    OfServer,
    SnapshotBrief,
    SnapshotCreated,
    SnapshotList,
    SnapshotRestore,
    SnapshotView,
    State,
)
from vpsd.api.vps_org.schemas.catalog import (
    LocationList,
    LocationView,
    OperatingSystemList,
    OperatingSystemView,
    PlanList,
    PlanView,
)
from vpsd.api.vps_org.schemas.operations import OperationBrief, OperationList, OperationView
from vpsd.api.vps_org.schemas.servers import (
    ActionAccepted,
    OsBrief,
    PlanBrief,
    PlanFull,
    ResourceUsage,
    ServerCreated,
    ServerDetail,
    ServerList,
    ServerRebuilt,
    ServerState,
    ServerSummary,
)
from vpsd.api.vps_org.schemas.ssh_keys import SshKeyList, SshKeyView
from vpsd.core.money import amount
from vpsd.lifecycle import RULES, Command, Status

_UUIDS = [f"3f0c2a64-8d1e-4b57-9a3c-5e7d1f2b6c{number:02d}" for number in range(4)]
_STANDARD = PlanBrief(1, "Standard VPS", 2, 4096, 80)
_UBUNTU = OsBrief(5, "Ubuntu 22.04 LTS")
_NO_TAGS: list[str] = []
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV ana@laptop"
_SSH_KEY = SshKeyView(
    7, _UUIDS[3], "laptop", _KEY, "SHA256:uzVFf1/MRs46QOr6LE9iUMja+pcJdQ/bcm6Oa3WYODQ", "2025-01-10T14:00:00Z"
)

_SERVER = ServerDetail(
    id=12345,
    uuid=_UUIDS[0],
    name="web-server-01",
    hostname="web01.example.com",
    status=Status.ACTIVE,
    ip_address="127.10.0.2",
    ipv6_address=None,
    location="us-west",
    plan=PlanFull(1, "Standard VPS", 2, 4096, 80, 2048),
    os=_UBUNTU,
    backups_enabled=True,
    tags=["env:prod", "web"],
    protected=False,
    delete_at=None,
    resource_usage=ResourceUsage(23.5, 2048, 35.0, 450.0),
    ssh="ssh root@127.10.0.2",
    error=None,
    created_at="2025-01-10T14:30:00Z",
    updated_at="2025-01-16T15:45:00Z",
)
_SERVERS = ServerList(
    2,
    None,
    None,
    [
        ServerSummary(
            *(12345, _UUIDS[0], "web-server-01", "web01.example.com", Status.ACTIVE, "127.10.0.2", "us-west"),
            *(_STANDARD, _UBUNTU, ["env:prod", "web"], False, None, "2025-01-10T14:30:00Z", "2025-01-15T10:20:00Z"),
        ),
        ServerSummary(
            *(12346, _UUIDS[1], "db-server-01", "db01.example.com", Status.ACTIVE, "127.10.0.3", "us-east"),
            *(PlanBrief(2, "Performance VPS", 4, 8192, 160), OsBrief(3, "Debian 12"), _NO_TAGS, True, None),
            *("2025-01-12T09:15:00Z", "2025-01-16T08:45:00Z"),
        ),
    ],
)
_CREATED = ServerCreated(
    id=12347,
    uuid=_UUIDS[2],
    name="web-server-02",
    hostname="web02.example.com",
    status=Status.PROVISIONING,
    ip_address=None,
    location="us-west",
    plan=_STANDARD,
    os=_UBUNTU,
    backups_enabled=True,
    tags=["env:prod"],
    protected=False,
    created_at="2025-01-16T15:30:00Z",
    updated_at="2025-01-16T15:30:00Z",
    message="Server is being provisioned. This may take 2-5 minutes.",
    operation=OperationBrief(1, "queued"),
    password="Hs4TqvWm8zKd2nRbYc7e",  # noqa: S106  # as it looks
)


def _backup(id: int, description: str, created_at: str, size_mb: int | None) -> dict[str, Any]:  # noqa: A002
    return {
        "id": id,
        "server": OfServer(12345, "web-server-01"),
        "status": State.COMPLETED,
        "size_mb": size_mb,
        "created_at": created_at,
        "description": description,
        "uuid": _UUIDS[1],
        "completed_at": created_at.replace(":00Z", ":42Z"),
        "consistent": True,
        "paused_ms": 180,
        "incremental": True,
        "sent_mb": 61.5,
        "encrypted": True,
        "error": None,
    }


def _daily(expires_at: str) -> dict[str, Any]:
    return {"backup_type": "automatic", "expires_at": expires_at}


def _being_made(id: int, description: str, what: str) -> dict[str, Any]:  # noqa: A002
    unknown = dict.fromkeys(("completed_at", "consistent", "paused_ms", "incremental", "sent_mb", "encrypted"))
    made = _backup(id, description, "2025-01-16T16:15:00Z", None)
    message = f"{what} is being created. This may take 3-10 minutes depending on server size."
    more = {"status": State.IN_PROGRESS, "message": message, "operation": OperationBrief(14, "queued")}
    return {**made, **unknown, **more}


_OPERATION = OperationView(
    id=1,
    uuid=_UUIDS[2],
    command="create",
    status="running",
    step="await_boot",
    progress=0.8,
    detail="waiting for the guest to answer",
    attempts=1,
    error=None,
    created_at="2025-01-16T15:30:00Z",
    started_at="2025-01-16T15:30:00Z",
    finished_at=None,
)


def _accepted(command: Command, status: Status) -> ActionAccepted:
    state = ServerState(12345, "web-server-01", status)
    return ActionAccepted("success", str(RULES[command].message), state, OperationBrief(15, "queued"))


_PLAN = PlanView(
    *(1, "5ad6fbd4-53b7-5d61-ae1c-1f2bca2fd1fa", "Standard VPS", "standard", 2, 4096, 80, 2048),
    *(amount(10_000_000), amount(15_000), True, ["us-west", "us-east", "eu-central"]),
    "For web sites and small applications",
)
_TOKEN = TokenView(
    *(3, _UUIDS[3], "backup-script", ["servers:read"], "john@example.com"),
    *("2025-01-10T14:00:00Z", None, "2025-01-16T15:30:00Z"),
)
_AUTOMATIC = "Automatic daily backup"
_BACKUPS = [
    BackupView(**_backup(501, _AUTOMATIC, "2025-01-16T03:00:00Z", 4523), **_daily("2025-02-16T03:00:00Z")),
    BackupView(
        **_backup(499, "Pre-update backup", "2025-01-14T10:30:00Z", 4456), backup_type="manual", expires_at=None
    ),
    BackupView(**_backup(495, _AUTOMATIC, "2025-01-15T03:00:00Z", 4389), **_daily("2025-02-15T03:00:00Z")),
]
_SNAPSHOTS = [
    SnapshotView(**_backup(801, "Before major migration", "2025-01-15T18:30:00Z", 5120), name="pre-migration-snapshot"),
    SnapshotView(**_backup(798, "Weekly snapshot", "2025-01-08T12:00:00Z", 4856), name="weekly-snapshot-2025-01-08"),
]
_BACKUP_CREATED = BackupCreated(
    **_being_made(502, "Pre-update backup", "Backup"), backup_type="manual", expires_at=None
)
_SNAPSHOT_CREATED = SnapshotCreated(
    **_being_made(802, "Snapshot before system update", "Snapshot"), name="before-update-snapshot"
)
_RESTORING = (ServerState(12345, "web-server-01", Status.RESTORING), OperationBrief(16, "queued"))
DRY_RUN = DryRun(
    dry_run=True,
    answer=msgspec.to_builtins(_CREATED) | dict.fromkeys(("id", "uuid", "password", "operation")),
    price=Price(amount(10_000_000), amount(15_000), "USD"),
    placement=Placement("us-west", "host-1"),
)


BODIES: dict[str, dict[str, Any]] = {
    "server_create": {
        "name": "web-server-02",
        "plan_id": 1,
        "os_id": 5,
        "location": "us-west",
        "hostname": "web02.example.com",
        "backups_enabled": True,
    },
    "server_update": {
        "name": "web-server-updated",
        "hostname": "web-updated.example.com",
        "backups_enabled": True,
    },
    "server_patch": {"name": "new-server-name"},
    "server_power": {"action": "restart"},
    "server_resize": {"plan_id": 2},
    "server_rebuild": {"os_id": 3},
    "backup_of_server": {"label": "before-update"},
    "snapshot_of_server": {"label": "before-update"},
    "backup_create": {"server_id": 12345, "description": "Pre-update backup"},
    "snapshot_create": {
        "server_id": 12345,
        "name": "before-update-snapshot",
        "description": "Snapshot before system update",
    },
    "ssh_key_create": {"name": "laptop", "public_key": _KEY},
    "token_create": {"name": "backup-script", "permissions": ["servers:read"], "expires_in_days": 90},
}

ANSWERS: dict[str, Any] = {
    "server_list": _SERVERS,
    "server_create": _CREATED,
    "server_get": _SERVER,
    "server_update": _SERVER,
    "server_patch": _SERVER,
    "server_undelete": _accepted(Command.UNDELETE, Status.STARTING),
    "server_start": _accepted(Command.START, Status.STARTING),
    "server_stop": _accepted(Command.STOP, Status.STOPPING),
    "server_reboot": _accepted(Command.REBOOT, Status.REBOOTING),
    "server_power": _accepted(Command.REBOOT, Status.REBOOTING),
    "server_resize": _accepted(Command.RESIZE, Status.RESIZING),
    "server_rebuild": ServerRebuilt(
        **msgspec.structs.asdict(_accepted(Command.REBUILD, Status.REBUILDING)),
        password="mT7wQzXk4vNc9HsRb2Ey",  # noqa: S106  # as it looks
    ),
    "server_operations": OperationList(1, None, None, [_OPERATION]),
    "backup_of_server": _BACKUP_CREATED,
    "snapshot_of_server": _SNAPSHOT_CREATED,
    "backup_list": BackupList(3, None, None, _BACKUPS),
    "backup_create": _BACKUP_CREATED,
    "backup_get": _BACKUPS[0],
    "backup_restore": BackupRestore(
        "success",
        "Server is being restored from backup. This may take 5-15 minutes.",
        *_RESTORING,
        BackupBrief(501, "automatic", "2025-01-16T03:00:00Z"),
    ),
    "snapshot_list": SnapshotList(2, None, None, _SNAPSHOTS),
    "snapshot_create": _SNAPSHOT_CREATED,
    "snapshot_get": _SNAPSHOTS[0],
    "snapshot_restore": SnapshotRestore(
        "success",
        "Server is being restored from snapshot. This may take 5-15 minutes.",
        *_RESTORING,
        SnapshotBrief(801, "pre-migration-snapshot", "2025-01-15T18:30:00Z"),
    ),
    "ssh_key_list": SshKeyList(1, None, None, [_SSH_KEY]),
    "ssh_key_create": _SSH_KEY,
    "ssh_key_get": _SSH_KEY,
    "plan_list": PlanList(1, None, None, [_PLAN]),
    "plan_get": _PLAN,
    "operating_system_list": OperatingSystemList(
        1, None, None, [OperatingSystemView(5, "Ubuntu 22.04 LTS", "ubuntu-22.04")]
    ),
    "location_list": LocationList(1, None, None, [LocationView(1, "us-west", "US West", "United States", "US")]),
    "account_me": Me(AccountView("john@example.com", "John", "Doe", "Acme Inc.", "2024-06-15"), _TOKEN),
    "token_list": TokenList(1, None, None, [_TOKEN]),
    "token_create": TokenCreated(**msgspec.structs.asdict(_TOKEN), token="vps_" + "x" * 40),  # as long as it is
    "event_list": EventList(
        1,
        None,
        None,
        [
            EventView(
                id=42,
                at="2025-01-16T15:30:00Z",
                action="server.create",
                actor="token",
                token=EventToken(3, "backup-script"),
                address="203.0.113.7",
                request_id=_UUIDS[1],
                target=EventTarget("server", 12347),
                detail="web-server-02: Standard VPS, Ubuntu 22.04 LTS",
                transition=EventTransition(None, Status.PROVISIONING),
            )
        ],
    ),
    "account_balance": Balance(
        balance=amount(42_500_000),
        currency="USD",
        credit_limit=amount(0),
        price_monthly=amount(10_000_000),
        runs_out_at="2025-05-15T15:30:00Z",
        exhausted_since=None,
        suspends_at=None,
    ),
    "transaction_list": TransactionList(
        2,
        None,
        None,
        [
            Transaction(
                *(8, _UUIDS[2], "usage", amount(-14_880), amount(49_985_120)),
                *("1 server, 2025-01-16T15:00:00Z to 2025-01-16T16:00:00Z", None, "2025-01-16T16:00:04Z"),
            ),
            Transaction(
                *(7, _UUIDS[1], "credit", amount(50_000_000), amount(50_000_000)),
                *("paid by card", "INV-2025-0017", "2025-01-16T15:00:00Z"),
            ),
        ],
    ),
    "account_usage": Usage(
        month="2025-01",
        currency="USD",
        cost=amount(5_000_000),
        forecast=amount(10_000_000),
        servers=[
            UsageOfServer(
                server=NamedServer(12345, "web-server-01"),
                plan_id=1,
                price_monthly=amount(10_000_000),
                hours=336.0,
                cost=amount(5_000_000),
                forecast=amount(10_000_000),
                bandwidth=BandwidthUsage(450.0, 2048.0, amount(0)),
            )
        ],
    ),
    "health": Health(
        "ok",
        "1.0.0",
        HypervisorHealth("ok", "libvirt", "kvm"),
    ),
}
