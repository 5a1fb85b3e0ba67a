"""How servers come to be: everything is checked, written down, and its making queued, in one transaction."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import insert

from vpsd.accounts import service as accounts
from vpsd.billing import credit, rentals
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem, Plan
from vpsd.core.context import Actor, Ctx, Transactions
from vpsd.core.crypt import password_hash
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.tables import RaiseIdentity
from vpsd.events import service as events
from vpsd.images.clones import CloudInit
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.servers import groups, hostnames, user_data
from vpsd.servers.capacity import find_room
from vpsd.servers.checks import (
    check_disk,
    check_operations,
    offered_plan,
    offered_system,
)
from vpsd.servers.faults import NobodyRunsUserData, UnknownLocation, UnknownPlacementGroup, UnknownSshKey
from vpsd.servers.hostnames import NotAsHostname
from vpsd.servers.models import servers
from vpsd.servers.schedule import next_backup_slot_ms
from vpsd.servers.tags import check_tags, set_tags
from vpsd.servers.user_data import UserDataStatus
from vpsd.ssh_keys import service as ssh_keys

_ADD = Statement(
    insert(servers).returning(servers.c.id),
    ("uuid", "account_id", "name", "hostname", "status", "plan_id", "os_id", "location", "backups_enabled")
    + ("freeze_for_backups", "authorized_key", "root_password_hash", "source_backup_id", "next_backup_at_ms")
    + ("created_at_ms", "updated_at_ms", "protected", "user_data", "user_data_status", "host_id", "placement_group_id"),
    into=int,
)
_RAISE_IDS = Statement(RaiseIdentity(servers))
_WITHOUT_CLOUD_INIT = (CloudInit.DISABLED, CloudInit.MISSING)


class NewServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server to make; what was not sent, or cannot be read, is unset."""

    name: str | UnsetType = UNSET
    hostname: str | None = None  # by default the name
    plan_id: int | UnsetType = UNSET
    os_id: int | UnsetType = UNSET  # unless it begins with a backup
    location: str | UnsetType = UNSET
    ssh_key_id: int | None = None  # without one it gets a root password
    backups_enabled: bool = False
    freeze_for_backups: bool = True
    tags: list[str] = []
    protected: bool = False
    user_data: str | None = None
    placement_group_id: int | None = None


class BackupSource(msgspec.Struct, frozen=True):
    """A backup or snapshot that a server begins with in place of an operating system; its row is locked."""

    backup_id: int
    os_id: int
    disk_bytes: int | None
    copy: str  # what people call it: backup | snapshot
    cloud_init: str | None  # enabled | disabled | missing; None: nobody could be asked

    def note(self, login: str) -> str:
        """What whoever makes a server from it has to know, where its cloud-init may not give it what is promised."""
        if self.cloud_init == CloudInit.ENABLED:
            return ""
        given = f"network, {login}, hostname and host keys"
        if self.cloud_init is None:
            return (
                f" Nobody could be asked whether cloud-init runs in this {self.copy}. If not, vpsd sets {given} "
                "through the guest's agent; where that does not answer, they stay the backed up server's."
            )
        return (
            f" cloud-init is {self.cloud_init} in this {self.copy}: vpsd sets {given} through the guest's agent at the "
            "first boot, and reboots it once. If the agent does not answer, the server ends in error."
        )


class CreatedServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is being made."""

    id: int
    uuid: str
    name: str
    hostname: str
    status: Status
    location: str
    plan: Plan
    system: OperatingSystem
    backups_enabled: bool
    freeze_for_backups: bool
    tags: list[str]
    protected: bool
    created_at_ms: int
    message: str
    password: str | None  # the root password, known only now; None where there is a key
    operation: Operation


async def check_user_data(transactions: Transactions, actor: Actor, new: NewServer, faults: Faults) -> None:
    """Add what is wrong with the user data; before `create`, because no transaction may be open that long."""
    if new.user_data is None:
        return
    async with transactions.read() as ctx:
        schema = await catalog.find_cloud_config_schema(ctx, None if new.os_id is UNSET else new.os_id)
    schema = schema or user_data.installed_schema()
    has_password = new.ssh_key_id is None
    refused = await user_data.check(new.user_data, schema, has_password=has_password, account_id=actor.account_id)
    if refused is not None:
        faults.add("user_data", refused)


async def create(ctx: Ctx, new: NewServer, source: BackupSource | None, faults: Faults) -> CreatedServer:
    """Write a server down and queue its making; `check_user_data` has looked at its user data.

    Raises `Invalid` with everything that is wrong, `PaymentRequired`, `OverQuota`, `TooManyOperations`, or what
    `find_room` does.
    """
    plan = await offered_plan(ctx, new.plan_id, faults)
    if source is not None:
        system = await catalog.find_operating_system(ctx, source.os_id)
        needed = f"The {source.copy}", source.disk_bytes or 0
    else:
        system = await offered_system(ctx, new.os_id, faults)
        needed = ("", 0) if system is None else (system.name, system.disk_bytes)
    if plan is not None and plan.available:
        await check_disk(ctx, plan, *needed, faults)
    if new.location is not UNSET:
        codes = [location.code for location in await catalog.offered_locations(ctx)]
        if new.location not in codes:
            faults.add("location", UnknownLocation(new.location, codes))
    key = None
    if new.ssh_key_id is not None:
        key = await ssh_keys.find(ctx, new.ssh_key_id)
        if key is None:
            faults.add("ssh_key_id", UnknownSshKey(new.ssh_key_id))
    apart_from: frozenset[int] = frozenset()
    if new.placement_group_id is not None:
        apart_from = await _apart_from(ctx, new.placement_group_id, faults)
    _check_hostname(new, faults)
    check_tags(new.tags, faults)
    if new.user_data is not None and source is not None and source.cloud_init in _WITHOUT_CLOUD_INIT:
        faults.add("user_data", NobodyRunsUserData(source.copy, source.cloud_init))
    faults.check()
    assert plan is not None
    assert system is not None
    assert new.name is not UNSET
    assert new.location is not UNSET
    await credit.check_create(ctx, plan)
    await check_operations(ctx)
    host_id = await find_room(ctx, plan, new.location, apart_from)
    password = None if key else ctx.ids.password()
    note = "" if source is None else source.note("SSH key" if key else "password")
    values: dict[str, Any] = {
        "uuid": ctx.ids.uuid(),
        "name": new.name,
        "hostname": new.hostname or new.name,
        "status": RULES[Command.CREATE].working,
        "location": new.location,
        "backups_enabled": new.backups_enabled,
        "freeze_for_backups": new.freeze_for_backups,
        "protected": new.protected,
    }
    slot_ms = next_backup_slot_ms(ctx.settings, values["uuid"], ctx.now_ms) if new.backups_enabled else None
    server_id = await ctx.tx.first(
        _ADD,
        **values,
        host_id=host_id,
        placement_group_id=new.placement_group_id,
        source_backup_id=None if source is None else source.backup_id,
        next_backup_at_ms=slot_ms,
        account_id=ctx.account_id,
        plan_id=plan.id,
        os_id=system.id,
        user_data=new.user_data,
        user_data_status=None if new.user_data is None else UserDataStatus.RUNNING,
        authorized_key=None if key is None else key.public_key,
        root_password_hash=None if password is None else password_hash(password),
        created_at_ms=ctx.now_ms,
        updated_at_ms=ctx.now_ms,
    )
    assert server_id is not None
    await set_tags(ctx, server_id, new.tags)
    await rentals.open_rental(ctx, server_id, plan)
    operation = await operations.add(ctx, server_id, Command.CREATE)
    detail = f"{new.name}: {plan.name}, {system.name}"
    await events.record(ctx, "server.create", "server", server_id, detail, status_after=values["status"])
    return CreatedServer(
        id=server_id,
        **values,
        plan=plan,
        system=system,
        tags=new.tags,
        created_at_ms=ctx.now_ms,
        message=RULES[Command.CREATE].message + note,
        password=password,
        operation=operation,
    )


async def _apart_from(ctx: Ctx, group_id: int, faults: Faults) -> frozenset[int]:
    """The hosts that a group keeps a further server away from."""
    await accounts.lock_account(ctx, ctx.account_id)  # before the group, as the checks of credit do
    found = await groups.hosts_of(ctx, group_id)
    if found is None:
        faults.add("placement_group_id", UnknownPlacementGroup(group_id))
    return found or frozenset()


def _check_hostname(new: NewServer, faults: Faults) -> None:
    hostname = new.hostname or new.name
    refused = None if hostname is UNSET else hostnames.refusal(hostname)
    if refused is not None and new.hostname:
        faults.add("hostname", refused)
    elif refused is not None and not faults.has("hostname"):
        faults.add("name", NotAsHostname(str(refused)))


async def give_ids_above(ctx: Ctx, server_id: int) -> bool:
    """Have new servers get ids above that one; whether they would not have by themselves."""
    return bool(await ctx.tx.run(_RAISE_IDS, last=server_id))
