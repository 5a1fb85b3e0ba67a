"""Examples for the API's description, by operation: those of the published page, with what vpsd adds to them.

The answers are made of the structs that go over the wire and of the messages that are sent, so that they cannot differ.
"""

from typing import Any

import msgspec

from vpsd.api.http.forms import Listing
from vpsd.api.http.health import (
    BackupsHealth,
    ClockHealth,
    DatabaseHealth,
    DataFolderHealth,
    Health,
    HypervisorHealth,
    Liveness,
    Readiness,
)
from vpsd.api.vps_org.dry_run import DryRun, Placement, Price
from vpsd.api.vps_org.schemas import account, backups, catalog, operations, placement_groups, servers, ssh_keys
from vpsd.api.vps_org.schemas.amounts import amount
from vpsd.api.vps_org.schemas.backups import BackupType
from vpsd.api.vps_org.schemas.operator import ServerMigration
from vpsd.backups.models import BackupStatus
from vpsd.catalog.models import Plan
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations.models import OperationStatus
from vpsd.servers.groups import Policy
from vpsd.servers.queries import PlanOffer
from vpsd.servers.user_data import UserDataStatus


def _page(kind: type[Listing], *entries: Any) -> Listing:
    return kind(len(entries), None, None, list(entries))


_UUIDS = [f"3f0c2a64-8d1e-4b57-9a3c-5e7d1f2b6c{number:02d}" for number in range(4)]
STANDARD = Plan(
    *(1, "Standard VPS", "standard", 2, 4096, 80, 2048, 10_000_000, None, "For web sites and small applications", True)
)
_STANDARD = servers.PlanBrief(1, "Standard VPS", 2, 4096, 80)
_UBUNTU = servers.OsBrief(5, "Ubuntu 22.04 LTS")
_PERFORMANCE = servers.PlanBrief(2, "Performance VPS", 4, 8192, 160)
_DEBIAN = servers.OsBrief(3, "Debian 12")
_NO_TAGS: list[str] = []
_QUEUED = operations.OperationBrief(15, OperationStatus.QUEUED)
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV ana@laptop"
_GROUP = placement_groups.PlacementGroupView(
    id=3, uuid=_UUIDS[0], name="database", policy=Policy.SPREAD, servers=2, created_at="2026-02-20T15:30:00Z"
)
_SSH_KEY = ssh_keys.SshKeyView(
    7, _UUIDS[3], "laptop", _KEY, "SHA256:uzVFf1/MRs46QOr6LE9iUMja+pcJdQ/bcm6Oa3WYODQ", "2025-01-10T14:00:00Z"
)

_SERVER = servers.ServerDetail(
    id=12345,
    uuid=_UUIDS[0],
    name="web-server-01",
    hostname="web01.example.com",
    status=Status.ACTIVE,
    status_detail=None,
    ip_address="127.10.0.2",
    ipv6_address=None,
    location="us-west",
    plan=servers.PlanFull(1, "Standard VPS", 2, 4096, 80, 2048),
    os=_UBUNTU,
    backups_enabled=True,
    freeze_for_backups=True,
    tags=["env:prod", "web"],
    protected=False,
    delete_at=None,
    placement_group_id=None,
    resource_usage=servers.ResourceUsage(23.5, 2048, 35.0, 450.0),
    ssh="ssh root@127.10.0.2",
    error=None,
    user_data_status=UserDataStatus.DONE,
    user_data_error=None,
    ssh_host_keys=[servers.SshHostKey("ssh-ed25519", _SSH_KEY.fingerprint, _KEY.rpartition(" ")[0])],
    created_at="2025-01-10T14:30:00Z",
    updated_at="2025-01-16T15:45:00Z",
)
_SERVERS = _page(
    servers.ServerList,
    servers.ServerSummary(
        *(12345, _UUIDS[0], "web-server-01", "web01.example.com", Status.ACTIVE, None, "127.10.0.2", "us-west"),
        *(_STANDARD, _UBUNTU, ["env:prod", "web"], False, None, "2025-01-10T14:30:00Z", "2025-01-15T10:20:00Z"),
    ),
    servers.ServerSummary(
        *(12346, _UUIDS[1], "db-server-01", "db01.example.com", Status.ACTIVE, None, "127.10.0.3", "us-east"),
        *(_PERFORMANCE, _DEBIAN, _NO_TAGS, True, None, "2025-01-12T09:15:00Z", "2025-01-16T08:45:00Z"),
    ),
)
_CREATED = servers.ServerCreated(
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
    freeze_for_backups=True,
    tags=["env:prod"],
    protected=False,
    created_at="2025-01-16T15:30:00Z",
    updated_at="2025-01-16T15:30:00Z",
    message=RULES[Command.CREATE].message,
    operation=_QUEUED,
    password="Hs4TqvWm8zKd2nRbYc7e",  # noqa: S106  # as it looks
)


def _backup(id: int, description: str, created_at: str, size_mb: int | None) -> dict[str, Any]:  # noqa: A002
    return {
        "id": id,
        "server": backups.OfServer(12345, "web-server-01"),
        "status": BackupStatus.COMPLETED,
        "size_mb": size_mb,
        "created_at": created_at,
        "description": description,
        "uuid": _UUIDS[1],
        "completed_at": created_at.replace(":00Z", ":42Z"),
        "consistent": True,
        "consistency_detail": "Frozen for 180 ms: /.",
        "paused_ms": 180,
        "cloud_init": "enabled",
        "incremental": True,
        "sent_mb": 61.5,
        "encrypted": True,
        "error": None,
    }


def _daily(expires_at: str) -> dict[str, Any]:
    return {"backup_type": BackupType.AUTOMATIC, "expires_at": expires_at}


def _being_made(id: int, description: str, noun: str) -> dict[str, Any]:  # noqa: A002
    unknown = dict.fromkeys(
        ("completed_at", "consistent", "consistency_detail", "paused_ms", "cloud_init", "incremental", "sent_mb")
        + ("encrypted",)
    )
    made = _backup(id, description, "2025-01-16T16:15:00Z", None)
    message = RULES[Command.BACKUP].message.format(noun=noun)
    return {**made, **unknown, "status": BackupStatus.IN_PROGRESS, "message": message, "operation": _QUEUED}


_OPERATION = operations.OperationView(
    id=1,
    uuid=_UUIDS[2],
    command=Command.CREATE,
    status=OperationStatus.RUNNING,
    step="await_boot",
    progress=0.8,
    detail="waiting for the guest to answer",
    attempts=1,
    error=None,
    created_at="2025-01-16T15:30:00Z",
    started_at="2025-01-16T15:30:00Z",
    finished_at=None,
)


def _accepted(
    command: Command, noun: str = "", kind: type[servers.ActionAccepted] = servers.ActionAccepted, **more: Any
) -> servers.ActionAccepted:
    rule = RULES[command]
    state = servers.ServerState(12345, "web-server-01", rule.working or Status.ACTIVE)
    return kind("success", rule.message.format(noun=noun), state, _QUEUED, **more)


_PLAN = msgspec.structs.replace(
    catalog.PlanView.of(PlanOffer(STANDARD, ["us-west", "us-east", "eu-central"], 15_000)),
    uuid="5ad6fbd4-53b7-5d61-ae1c-1f2bca2fd1fa",
)
_TOKEN = account.TokenView(
    *(3, _UUIDS[3], "backup-script", ["servers:read"], "john@example.com"),
    account.TokenMaker("token", account.EventToken(2, "laptop")),
    *("2025-01-10T14:00:00Z", None, "2025-01-16T15:30:00Z"),
)
_AUTOMATIC = "Automatic daily backup"
_BACKUPS = [
    backups.BackupView(**_backup(501, _AUTOMATIC, "2025-01-16T03:00:00Z", 4523), **_daily("2025-02-16T03:00:00Z")),
    backups.BackupView(
        **_backup(499, "Pre-update backup", "2025-01-14T10:30:00Z", 4456),
        backup_type=BackupType.MANUAL,
        expires_at=None,
    ),
    backups.BackupView(**_backup(495, _AUTOMATIC, "2025-01-15T03:00:00Z", 4389), **_daily("2025-02-15T03:00:00Z")),
]
_SNAPSHOTS = [
    backups.SnapshotView(
        **_backup(801, "Before major migration", "2025-01-15T18:30:00Z", 5120), name="pre-migration-snapshot"
    ),
    backups.SnapshotView(
        **_backup(798, "Weekly snapshot", "2025-01-08T12:00:00Z", 4856), name="weekly-snapshot-2025-01-08"
    ),
]
_BACKUP_CREATED = backups.BackupCreated(
    **_being_made(502, "Pre-update backup", "Backup"), backup_type=BackupType.MANUAL, expires_at=None
)
_SNAPSHOT_CREATED = backups.SnapshotCreated(
    **_being_made(802, "Snapshot before system update", "Snapshot"), name="before-update-snapshot"
)
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
    "placement_group_create": {"name": "database"},
    "placement_group_patch": {"name": "database"},
    "token_create": {"name": "backup-script", "permissions": ["servers:read"], "expires_in_days": 90},
    "server_migrate": {"host": "node2"},
}

ANSWERS: dict[str, Any] = {
    "server_list": _SERVERS,
    "server_create": _CREATED,
    "server_get": _SERVER,
    "server_update": _SERVER,
    "server_patch": _SERVER,
    "server_undelete": _accepted(Command.UNDELETE),
    "server_start": _accepted(Command.START),
    "server_stop": _accepted(Command.STOP),
    "server_reboot": _accepted(Command.REBOOT),
    "server_power": _accepted(Command.REBOOT),
    "server_resize": _accepted(Command.RESIZE),
    "server_rebuild": _accepted(Command.REBUILD, kind=servers.ServerRebuilt, password="mT7wQzXk4vNc9HsRb2Ey"),  # noqa: S106
    "server_operations": _page(operations.OperationList, _OPERATION),
    "backup_of_server": _BACKUP_CREATED,
    "snapshot_of_server": _SNAPSHOT_CREATED,
    "backup_list": _page(backups.BackupList, *_BACKUPS),
    "backup_create": _BACKUP_CREATED,
    "backup_get": _BACKUPS[0],
    "backup_restore": _accepted(
        *(Command.RESTORE, "backup", backups.BackupRestore),
        backup=backups.BackupBrief(501, BackupType.AUTOMATIC, "2025-01-16T03:00:00Z"),
    ),
    "snapshot_list": _page(backups.SnapshotList, *_SNAPSHOTS),
    "snapshot_create": _SNAPSHOT_CREATED,
    "snapshot_get": _SNAPSHOTS[0],
    "snapshot_restore": _accepted(
        *(Command.RESTORE, "snapshot", backups.SnapshotRestore),
        snapshot=backups.SnapshotBrief(801, "pre-migration-snapshot", "2025-01-15T18:30:00Z"),
    ),
    "ssh_key_list": _page(ssh_keys.SshKeyList, _SSH_KEY),
    "ssh_key_create": _SSH_KEY,
    "ssh_key_get": _SSH_KEY,
    "placement_group_list": _page(placement_groups.PlacementGroupList, _GROUP),
    "placement_group_create": _GROUP,
    "placement_group_get": _GROUP,
    "placement_group_patch": _GROUP,
    "plan_list": _page(catalog.PlanList, _PLAN),
    "plan_get": _PLAN,
    "operating_system_list": _page(
        catalog.OperatingSystemList, catalog.OperatingSystemView(5, "Ubuntu 22.04 LTS", "ubuntu-22.04", 3)
    ),
    "location_list": _page(catalog.LocationList, catalog.LocationView(1, "us-west", "US West", "United States", "US")),
    "account_me": account.Me(account.AccountView("john@example.com", "John", "Doe", "Acme Inc.", "2024-06-15"), _TOKEN),
    "token_list": _page(account.TokenList, _TOKEN),
    "token_create": account.TokenCreated(**msgspec.structs.asdict(_TOKEN), token="vps_" + "x" * 40),  # as long as it is
    "event_list": _page(
        account.EventList,
        account.EventView(
            id=42,
            at="2025-01-16T15:30:00Z",
            action="server.create",
            actor="token",
            token=account.EventToken(3, "backup-script"),
            address="203.0.113.7",
            request_id=_UUIDS[1],
            target=account.EventTarget("server", 12347),
            detail="web-server-02: Standard VPS, Ubuntu 22.04 LTS",
            transition=account.EventTransition(None, Status.PROVISIONING),
        ),
    ),
    "account_balance": account.Balance(
        balance=amount(42_500_000),
        currency="USD",
        credit_limit=amount(0),
        price_monthly=amount(10_000_000),
        runs_out_at="2025-05-15T15:30:00Z",
        exhausted_since=None,
        suspends_at=None,
    ),
    "transaction_list": _page(
        account.TransactionList,
        account.Transaction(
            *(8, _UUIDS[2], "usage", amount(-14_880), amount(49_985_120)),
            *("1 server, 2025-01-16T15:00:00Z to 2025-01-16T16:00:00Z", None, "2025-01-16T16:00:04Z"),
        ),
        account.Transaction(
            *(7, _UUIDS[1], "credit", amount(50_000_000), amount(50_000_000)),
            *("paid by card", "INV-2025-0017", "2025-01-16T15:00:00Z"),
        ),
    ),
    "account_usage": account.Usage(
        month="2025-01",
        currency="USD",
        cost=amount(5_000_000),
        forecast=amount(10_000_000),
        servers=[
            account.UsageOfServer(
                server=account.NamedServer(12345, "web-server-01"),
                plan_id=1,
                price_monthly=amount(10_000_000),
                hours=336.0,
                cost=amount(5_000_000),
                forecast=amount(10_000_000),
                bandwidth=account.BandwidthUsage(450.0, 2048.0, amount(0)),
            )
        ],
        count=1,
        next=None,
        previous=None,
    ),
    "server_migrate": _accepted(Command.MIGRATE, kind=ServerMigration, from_host="node1", to_host="node2"),
    "operation_get": _OPERATION,
    "health_live": Liveness("alive"),
    "health_ready": Readiness("ready"),
    "health": Health(
        *("ok", "1.0.0", DatabaseHealth("ok"), DataFolderHealth("ok")),
        *(HypervisorHealth("ok", "libvirt", "kvm", "ok"), BackupsHealth("ok"), ClockHealth("ok", None)),
    ),
}
