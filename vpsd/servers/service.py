"""Servers, as customers may see and change them.

Nothing here touches a host: a wish becomes a row, the worker does the rest.
"""

from functools import cache
from typing import Any

import msgspec
from passlib.hash import sha256_crypt
from sqlalchemy import Select, and_, bindparam, func, insert, select, update

from vpsd.accounts import events
from vpsd.accounts.models import Actor, Caller
from vpsd.backups import rows as backups
from vpsd.backups import schedule
from vpsd.backups.models import Backup, Kind, State
from vpsd.billing import service as billing
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem, Plan, operating_systems, plans
from vpsd.core.clock import Clock, iso_utc, iso_utc_or_none
from vpsd.core.db import Statement, Tx
from vpsd.core.forms import REQUIRED, Form
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.errors import Busy, NotFound, Protected, Unavailable, WrongStatus
from vpsd.hosts import service as hosts
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.servers import rows, user_data
from vpsd.servers.lifecycle import RULES, Command, Status, refusal
from vpsd.servers.models import servers, traffic, usage
from vpsd.servers.schemas import (
    ActionAccepted,
    OsBrief,
    PlanBrief,
    PlanFull,
    ResourceUsage,
    ServerCreate,
    ServerCreated,
    ServerDetail,
    ServerPatch,
    ServerQuery,
    ServerRebuild,
    ServerRebuilt,
    ServerResize,
    ServerState,
    ServerSummary,
    ServerUpdate,
)
from vpsd.settings import Settings
from vpsd.ssh_keys import service as ssh_keys

# A figure older than this says nothing about now.
_FRESH_MS = 120_000
_GB = 1 << 30

_c = servers.c
_OWN = and_(_c.account_id == bindparam("the_account"), _c.deleted_at_ms.is_(None))
_ONE = and_(_OWN, _c.id == bindparam("the_id"))
_WITH_CATALOG = servers.join(plans, plans.c.id == _c.plan_id).join(
    operating_systems, operating_systems.c.id == _c.os_id
)

_DETAIL = Statement(
    select(
        *(_c.id, _c.uuid, _c.name, _c.hostname, _c.status, _c.ip_address, _c.location, _c.plan_id, plans.c.name),
        *(plans.c.vcpus, plans.c.memory_mb, plans.c.storage_gb, plans.c.bandwidth_gb, _c.os_id),
        *(operating_systems.c.name, _c.backups_enabled, _c.tags, _c.protected, _c.delete_at_ms),
        *(_c.ssh_port, _c.error, _c.created_at_ms, _c.updated_at_ms),
        *(usage.c.sampled_at_ms, usage.c.cpu_percent, usage.c.memory_used_mb, usage.c.disk_used_bytes),
        *(traffic.c.received_bytes, traffic.c.sent_bytes),
    )
    .select_from(
        _WITH_CATALOG.outerjoin(usage, usage.c.server_id == _c.id).outerjoin(
            traffic, and_(traffic.c.server_id == _c.id, traffic.c.month == bindparam("the_month"))
        )
    )
    .where(_ONE)
)
_EXISTS = Statement(select(_c.id).where(_ONE))
_STATE = Statement(
    select(_c.id, _c.name, _c.status, _c.protected, _c.provisioned_at_ms, _c.delete_at_ms, _c.retired_from)
    .where(_ONE)
    .with_for_update(key_share=True)
)
_ADD = Statement(
    insert(servers).returning(_c.id),
    ("uuid", "account_id", "name", "hostname", "status", "plan_id", "os_id", "location", "backups_enabled")
    + ("authorized_key", "root_password_hash", "source_backup_id", "next_backup_at_ms")
    + ("created_at_ms", "updated_at_ms", "tags", "protected", "user_data"),
)
_SET_STATUS = Statement(update(servers).where(_c.id == bindparam("the_id")), ("status", "error", "updated_at_ms"))
_SET_RETIRED = Statement(
    update(servers).where(_c.id == bindparam("the_id")), ("status", "updated_at_ms", "delete_at_ms", "retired_from")
)
_DELETE = Statement(update(servers).where(_c.id == bindparam("the_id")), ("status", "updated_at_ms", "deleted_at_ms"))

_SET_PLAN = Statement(update(servers).where(_c.id == bindparam("the_id")), ("plan_id", "updated_at_ms"))
_SET_PASSWORD = Statement(update(servers).where(_c.id == bindparam("the_id")), ("root_password_hash",))
_KEY = Statement(select(_c.authorized_key).where(_c.id == bindparam("the_id")))
_PLAN = Statement(select(plans).join_from(servers, plans).where(_ONE))


class Standing(msgspec.Struct, frozen=True):
    """What decides whether a server can be told something."""

    id: int
    name: str
    status: str
    protected: bool
    provisioned_at_ms: int | None
    delete_at_ms: int | None
    retired_from: str | None


MESSAGES = {
    Command.START: "Server is starting",
    Command.STOP: "Server is stopping",
    Command.HARD_STOP: "Server is being powered off",
    Command.REBOOT: "Server is rebooting",
    Command.RESIZE: "Server is being resized. It reboots once.",
    Command.GROW: "Server is being resized while it runs. Its file system fills the larger disk when it boots next.",
    Command.REBUILD: "Server is being rebuilt. This may take 2-5 minutes.",
    Command.UNDELETE: "Server is being brought back",
}


_FILTERS = {
    "status": _c.status == bindparam("the_status"),
    "location": _c.location == bindparam("the_location"),
    "tag": _c.tags.like(bindparam("the_tag"), escape="\\"),
    "name": _c.name == bindparam("the_name"),
}


def _narrowed(statement: Select[Any], filters: tuple[str, ...]) -> Select[Any]:
    return statement.where(_OWN, *(_FILTERS[name] for name in filters))


@cache
def _count(filters: tuple[str, ...]) -> Statement:
    return Statement(_narrowed(select(func.count()).select_from(servers), filters))


@cache
def _page(filters: tuple[str, ...]) -> Statement:
    # The ids of the page first, from the index alone: joining what an offset skips would cost ten times as much.
    ids = _narrowed(select(_c.id), filters).order_by(_c.id)
    return Statement(
        select(
            *(_c.id, _c.uuid, _c.name, _c.hostname, _c.status, _c.ip_address, _c.location, _c.plan_id),
            *(plans.c.name, plans.c.vcpus, plans.c.memory_mb, plans.c.storage_gb, _c.os_id),
            *(operating_systems.c.name, _c.tags, _c.protected, _c.delete_at_ms, _c.created_at_ms, _c.updated_at_ms),
        )
        .select_from(_WITH_CATALOG)
        .where(_c.id.in_(ids.limit(bindparam("the_limit")).offset(bindparam("the_offset")).correlate(None)))
        .order_by(_c.id)
    )


async def list_servers(tx: Tx, caller: Caller, asked: Form[ServerQuery]) -> tuple[int, list[ServerSummary]]:
    """How many servers the account has, and a page of them, newest last; raises `Invalid` for a query that is none."""
    location, tag = asked.get("location"), asked.get("tag")
    if location is not None and await catalog.find_location(tx, location) is None:
        asked.wrong("location", await catalog.no_location(tx, location))
    asked.done()
    filters = tuple(name for name in _FILTERS if asked.has(name))
    page = Page.of(asked)
    values = {"the_account": caller.account_id, **{f"the_{name}": asked.get(name) for name in filters}}
    if tag is not None:  # as it stands in the JSON; of what LIKE reads in its own way a tag has only _
        values["the_tag"] = '%"' + tag.replace("_", r"\_") + '"%'
    count = await tx.first(int, _count(filters), **values) or 0
    rows = await tx.all(ServerSummary.of, _page(filters), **values, the_limit=page.size, the_offset=page.offset)
    return count, rows


async def get(tx: Tx, caller: Caller, clock: Clock, server_id: int) -> ServerDetail:
    """A server in full; raises `NotFound`."""
    now = clock.now_ms()

    def detail(*row: Any) -> ServerDetail:
        return _detail(now, *row)

    found = await tx.first(detail, _DETAIL, the_account=caller.account_id, the_id=server_id, the_month=iso_utc(now)[:7])
    if found is None:
        raise NotFound(f"There is no server {server_id}.")
    return found


def _detail(
    now_ms: int,
    id: int,  # noqa: A002
    uuid: str,
    name: str,
    hostname: str,
    status: Status,
    ip_address: str | None,
    location: str,
    plan_id: int,
    plan_name: str,
    vcpus: int,
    memory_mb: int,
    storage_gb: int,
    bandwidth_gb: int,
    os_id: int,
    os_name: str,
    backups_enabled: bool,
    tags: str,
    protected: bool,
    delete_at_ms: int | None,
    ssh_port: int | None,
    error: str | None,
    created_at_ms: int,
    updated_at_ms: int,
    sampled_at_ms: int | None,
    cpu_percent: float | None,
    memory_used_mb: int | None,
    disk_used_bytes: int | None,
    received_bytes: int | None,
    sent_bytes: int | None,
) -> ServerDetail:
    fresh = status == Status.ACTIVE and sampled_at_ms is not None and now_ms - sampled_at_ms <= _FRESH_MS
    moved = None if received_bytes is None or sent_bytes is None else max(received_bytes, sent_bytes)
    return ServerDetail(
        id=id,
        uuid=uuid,
        name=name,
        hostname=hostname,
        status=status,
        ip_address=ip_address,
        ipv6_address=None,  # servers have none yet
        location=location,
        plan=PlanFull(plan_id, plan_name, vcpus, memory_mb, storage_gb, bandwidth_gb),
        os=OsBrief(os_id, os_name),
        backups_enabled=backups_enabled,
        tags=msgspec.json.decode(tags),
        protected=protected,
        delete_at=iso_utc_or_none(delete_at_ms),
        resource_usage=ResourceUsage(
            cpu_percent if fresh else None,
            memory_used_mb if fresh else None,
            round(disk_used_bytes / _GB, 2) if fresh and disk_used_bytes is not None else None,
            None if moved is None else round(moved / _GB, 3),
        ),
        ssh=ssh_line(ip_address, ssh_port),
        error=error,
        created_at=iso_utc(created_at_ms),
        updated_at=iso_utc(updated_at_ms),
    )


def ssh_line(ip_address: str | None, ssh_port: int | None) -> str | None:
    """How to log in to a server."""
    if ip_address is None:
        return None
    return f"ssh root@{ip_address}" if ssh_port in (None, 22) else f"ssh -p {ssh_port} root@{ip_address}"


async def create(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, form: Form[ServerCreate]
) -> ServerCreated:
    """Write a server down and queue its making.

    Raises `Invalid` with everything that is wrong, `PaymentRequired`, `OverQuota`, or `Unavailable` where no host has
    room.
    """
    plan = await _chosen_plan(tx, form)
    backup = await _chosen_backup(tx, caller, form, plan)
    system = await _chosen_system(tx, form) if backup is None else await _system_of(tx, backup)
    await _check_location(tx, form)
    key = await _chosen_key(tx, caller, form)
    tags = _chosen_tags(form)
    said = user_data.wrong(form.get("user_data")) if form.get("user_data") is not None else None
    if said is not None:
        form.wrong("user_data", said)
    form.done()
    assert plan is not None
    assert system is not None
    await billing.check_create(tx, clock, settings, caller.account_id, plan)
    await _check_room(tx, settings, plan)
    now = clock.now_ms()
    name = form.get("name")
    password = None if key else ids.password()
    values = {
        "uuid": ids.uuid(),
        "name": name,
        "hostname": form.get("hostname") or name,
        "status": Status.PROVISIONING,
        "location": form.get("location"),
        "backups_enabled": form.get("backups_enabled", False),
        "protected": form.get("protected", False),
    }
    uuid = values["uuid"]
    server_id = await tx.first(
        int,
        _ADD,
        **values,
        source_backup_id=None if backup is None else backup.id,
        next_backup_at_ms=schedule.next_slot_ms(settings, uuid, now) if values["backups_enabled"] else None,
        account_id=caller.account_id,
        plan_id=plan.id,
        os_id=system.id,
        tags=_tags_text(tags),
        user_data=form.get("user_data"),
        authorized_key=key,
        root_password_hash=None if password is None else _password_hash(password),
        created_at_ms=now,
        updated_at_ms=now,
    )
    assert server_id is not None
    await billing.open_rental(tx, caller.account_id, server_id, plan, now)
    await operations.add(tx, ids, clock, server_id, Command.CREATE)
    await events.add(tx, clock, caller, "server.create", "server", server_id, f"{name}: {plan.name}, {system.name}")
    return ServerCreated(
        id=server_id,
        **values,  # the columns are those of the answer
        ip_address=None,
        plan=PlanBrief(plan.id, plan.name, plan.vcpus, plan.memory_mb, plan.storage_gb),
        os=OsBrief(system.id, system.name),
        tags=tags,
        created_at=iso_utc(now),
        updated_at=iso_utc(now),
        message="Server is being provisioned. This may take 2-5 minutes.",
        password=msgspec.UNSET if password is None else password,
    )


async def _check_room(tx: Tx, settings: Settings, plan: Plan, instead_of: Plan | None = None) -> None:
    lacking = (await hosts.room(tx, settings, reserve=True)).lacks(plan, instead_of)
    if lacking:
        raise Unavailable(
            f"No host has room for a {plan.name} now: too little {', '.join(lacking)}. "
            "Choose a smaller plan, or try later."
        )


# The password has 116 random bits: rounds that slow down guessing would only slow down the request.
_password_hash = sha256_crypt.using(rounds=1000).hash


async def _chosen_plan(tx: Tx, form: Form[ServerCreate]) -> Plan | None:
    if not form.has("plan_id"):
        return None
    plan = await catalog.find_plan(tx, form.get("plan_id"))
    if plan is None or not plan.available:
        offered = ", ".join(f"{plan.id} ({plan.name})" for plan in await catalog.list_plans(tx) if plan.available)
        form.wrong("plan_id", f"There is no plan {form.get('plan_id')}. The plans are {offered}.")
    return plan


_SOURCES = ("os_id", "backup_id", "snapshot_id")


async def _chosen_backup(tx: Tx, caller: Caller, form: Form[ServerCreate], plan: Plan | None) -> Backup | None:
    """What the server begins with, where that is no operating system."""
    given = [name for name in _SOURCES if form.has(name)]
    if len(given) != 1 and not form.is_wrong(*_SOURCES):
        form.wrong("os_id", REQUIRED if not given else f"Give one of {', '.join(_SOURCES)}.")
    if len(given) != 1 or given == ["os_id"]:
        return None
    (field,) = given
    backup, what = await backups.lock(tx, form.get(field)), field.removesuffix("_id")
    mine = backup is not None and backup.account_id == caller.account_id and backup.deleted_at_ms is None
    if backup is None or not mine or (backup.kind == Kind.SNAPSHOT) != (what == "snapshot"):
        form.wrong(field, f"There is no {what} {form.get(field)}. List yours at /api/v1/{what}s/.")
        return None
    if backup.status != State.COMPLETED:
        form.wrong(field, f"The {what} {backup.id} is {backup.status.replace('_', ' ')}. Choose a completed one.")
    elif plan is not None and backup.disk_bytes is not None and plan.storage_gb * _GB < backup.disk_bytes:
        needed = -(-backup.disk_bytes // _GB)
        form.wrong("plan_id", f"The {what}'s disk has {needed} GB. Choose a plan with at least as much.")
    return backup


async def _system_of(tx: Tx, backup: Backup) -> OperatingSystem:
    system = await catalog.find_operating_system(tx, backup.os_id)
    assert system is not None
    return system


async def _chosen_system(tx: Tx, form: Form[ServerCreate] | Form[ServerRebuild]) -> OperatingSystem | None:
    if not form.has("os_id"):
        return None
    system = await catalog.find_operating_system(tx, form.get("os_id"))
    if system is None or not system.available:
        offered = ", ".join(f"{os.id} ({os.name})" for os in await catalog.list_operating_systems(tx) if os.available)
        form.wrong("os_id", f"There is no operating system {form.get('os_id')}. They are {offered}.")
    return system


async def _check_location(tx: Tx, form: Form[ServerCreate]) -> None:
    if form.has("location"):
        location = await catalog.find_location(tx, form.get("location"))
        if location is None or not location.available:
            form.wrong("location", await catalog.no_location(tx, form.get("location")))


async def _chosen_key(tx: Tx, caller: Caller, form: Form[ServerCreate]) -> str | None:
    key_id = form.get("ssh_key_id")
    if key_id is None:
        return None
    key = await ssh_keys.find(tx, caller, key_id)
    if key is None:
        form.wrong("ssh_key_id", f"There is no SSH key {key_id}. List yours at /api/v1/ssh-keys/.")
    return None if key is None else key.public_key


def _chosen_tags(form: Form[Any]) -> list[str]:
    tags: list[str] = form.get("tags", [])
    for place, tag in enumerate(tags):
        if tag in tags[:place]:
            form.wrong("tags", f"Entry {place + 1}: {tag} is there already. Give each tag once.")
    return tags


def _tags_text(tags: list[str]) -> str:
    return msgspec.json.encode(tags).decode()


_CHANGEABLE = ("name", "hostname", "backups_enabled", "tags", "protected")


@cache
def _update(columns: tuple[str, ...]) -> Statement:
    return Statement(update(servers).where(_c.id == bindparam("the_id")), (*columns, "updated_at_ms"))


async def change(
    tx: Tx,
    caller: Caller,
    ids: Ids,
    clock: Clock,
    settings: Settings,
    server_id: int,
    form: Form[ServerUpdate] | Form[ServerPatch],
) -> None:
    """Change the fields that were sent.

    Raises `Invalid` or `NotFound`; `WrongStatus` when a server shall be protected that is deleted already.
    """
    state = await state_of(tx, caller, server_id)
    tags = _chosen_tags(form)
    form.done()
    if form.get("protected") and state.delete_at_ms is not None:
        raise WrongStatus(_is_deleted(state))
    changes = {name: form.get(name) for name in _CHANGEABLE if form.has(name)}
    if not changes:
        return
    if "tags" in changes:
        changes["tags"] = _tags_text(tags)
    if "backups_enabled" in changes:
        await _schedule_backups(tx, clock, settings, server_id, wanted=changes["backups_enabled"])
    detail = ", ".join(f"{name} {value}" for name, value in changes.items())
    await tx.run(_update(tuple(changes)), the_id=server_id, updated_at_ms=clock.now_ms(), **changes)
    await events.add(tx, clock, caller, "server.change", "server", server_id, detail)
    # While another operation is open the seed is written by it, or brought up to date by reconcile.
    if (
        "hostname" in changes
        and state.status == Status.ACTIVE
        and await operations.open_operation(tx, server_id) is None
    ):
        await operations.add(tx, ids, clock, server_id, Command.CONFIGURE)


async def _schedule_backups(tx: Tx, clock: Clock, settings: Settings, server_id: int, *, wanted: bool) -> None:
    server = await rows.get(tx, server_id)
    if not wanted:
        await rows.set_next_backup(tx, server_id, None)
    elif server.next_backup_at_ms is None:
        slot_ms = schedule.next_slot_ms(settings, server.uuid, clock.now_ms())
        await rows.set_next_backup(tx, server_id, slot_ms)


async def tell(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, server_id: int, command: Command
) -> ActionAccepted:
    """Give a server a command; raises `NotFound`, `PaymentRequired`, `WrongStatus` or `Busy`."""
    state = await state_of(tx, caller, server_id)
    runs = state.status == Status.ACTIVE
    if (command is Command.START and not runs) or (command is Command.REBOOT and runs):
        await billing.check_start(tx, clock, settings, caller.account_id, runs=runs)
    check_status(state, command)
    await begin(tx, ids, clock, server_id, command)
    await events.add(tx, clock, caller, f"server.{command}", "server", server_id)
    return _accepted(state, command)


def check_status(state: Standing, command: Command) -> None:
    """Raise `WrongStatus` where the status does not allow the command."""
    refused = refusal(Status(state.status), command)
    if refused is not None:
        raise WrongStatus(refused if state.delete_at_ms is None else _is_deleted(state))


def _is_deleted(state: Standing) -> str:
    way = f"POST /api/v1/servers/{state.id}/undelete/"
    return (
        f"The server is {state.status}, and gone for ever at {iso_utc_or_none(state.delete_at_ms)}. Undelete it: {way}."
    )


async def resize(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, server_id: int, form: Form[ServerResize]
) -> ActionAccepted:
    """Give a server another plan; one that runs reboots for it, another takes its new size when it starts.

    A disk grows under a running guest: where that is all, there is no reboot.

    It costs the new plan's price from now on. Raises `NotFound`, `Invalid`, `PaymentRequired`, `OverQuota`,
    `Unavailable`, `WrongStatus` or `Busy`.
    """
    old = await tx.first(Plan, _PLAN, the_account=caller.account_id, the_id=server_id)
    if old is None:
        raise NotFound(f"There is no server {server_id}.")
    plan = await _other_plan(tx, form, old)
    await billing.check_create(tx, clock, settings, caller.account_id, plan, instead_of=(server_id, old))
    await _check_room(tx, settings, plan, instead_of=old)
    state = await state_of(tx, caller, server_id)
    check_status(state, Command.RESIZE)
    present = await tx.first(Plan, _PLAN, the_account=caller.account_id, the_id=server_id)
    if present != old:
        raise Busy("The server was given another plan at the same moment. Look at it, and ask again.")
    await billing.change_plan(tx, server_id, plan, clock.now_ms())
    await tx.run(_SET_PLAN, the_id=server_id, plan_id=plan.id, updated_at_ms=clock.now_ms())
    await events.add(tx, clock, caller, "server.resize", "server", server_id, f"{old.name} to {plan.name}")
    if state.status != Status.ACTIVE:
        text = "Server is resized. It has its new size when it starts."
        return ActionAccepted("success", text, ServerState(state.id, state.name, Status(state.status)))
    only_disk = (plan.vcpus, plan.memory_mb) == (old.vcpus, old.memory_mb)
    command = Command.GROW if only_disk else Command.RESIZE
    await begin(tx, ids, clock, server_id, command)
    return _accepted(state, command)


async def _other_plan(tx: Tx, form: Form[ServerResize], old: Plan) -> Plan:
    uuid = form.get("plan")
    named = ("plan" if uuid is not None else "plan_id", uuid if uuid is not None else form.get("plan_id"))
    if form.has("plan") == form.has("plan_id"):
        form.wrong("plan_id", "Give the new plan: its id as plan_id, or its uuid as plan.")
    form.done()
    offered = [plan for plan in await catalog.list_plans(tx) if plan.available]
    (field, wanted) = named
    found = [plan for plan in offered if wanted in (plan.id, plan.uuid)]
    if not found:
        names = ", ".join(f"{plan.id} ({plan.name})" for plan in offered if plan.storage_gb >= old.storage_gb)
        form.wrong(field, f"There is no plan {wanted}. The plans with a disk that is large enough are {names}.")
    elif found[0].id == old.id:
        form.wrong(field, f"The server has the plan {old.name} already.")
    elif found[0].storage_gb < old.storage_gb:
        sizes = f"{found[0].storage_gb} GB instead of {old.storage_gb}"
        form.wrong(field, f"A disk cannot shrink ({sizes}). Choose a plan with at least {old.storage_gb} GB.")
    form.done()
    return found[0]


async def rebuild(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, server_id: int, form: Form[ServerRebuild]
) -> ServerRebuilt:
    """Make a server anew from an operating system: a new disk, everything else stays.

    Raises `NotFound`, `Invalid`, `PaymentRequired`, `WrongStatus` or `Busy`.
    """
    state = await state_of(tx, caller, server_id)
    system = await _chosen_system(tx, form)
    form.done()
    assert system is not None
    runs = state.status == Status.ACTIVE
    await billing.check_start(tx, clock, settings, caller.account_id, runs=runs)  # it runs in the end
    check_status(state, Command.REBUILD)
    password = None
    if await tx.first(lambda key: key, _KEY, the_id=server_id) is None:
        password = ids.password()
        await tx.run(_SET_PASSWORD, the_id=server_id, root_password_hash=_password_hash(password))
    await begin(tx, ids, clock, server_id, Command.REBUILD, system.id)
    await events.add(tx, clock, caller, "server.rebuild", "server", server_id, system.name)
    accepted = _accepted(state, Command.REBUILD)
    return ServerRebuilt(
        accepted.status, accepted.message, accepted.server, msgspec.UNSET if password is None else password
    )


def _accepted(state: Standing, command: Command) -> ActionAccepted:
    working = RULES[command].working
    assert working is not None
    return ActionAccepted("success", MESSAGES[command], ServerState(state.id, state.name, working))


async def begin(tx: Tx, ids: Ids, clock: Clock, server_id: int, command: Command, argument: int | None = None) -> None:
    """Queue a command that the status allows, and show that it is under way; raises `Busy`."""
    await operations.add(tx, ids, clock, server_id, command, argument)
    working = RULES[command].working
    if working is not None:
        await tx.run(_SET_STATUS, the_id=server_id, status=working, error=None, updated_at_ms=clock.now_ms())


async def delete(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, server_id: int, *, at_once: bool
) -> None:
    """Make a server vanish: for its owner now, from the host when the worker has been there.

    Where deletions can be undone for a time it is only shut down, unless it shall go `at_once` or has never worked.
    Raises `NotFound` or `Protected`.
    """
    state = await state_of(tx, caller, server_id)
    if state.protected:
        raise Protected(
            "The server is protected from being deleted. Lift that first: "
            f'PATCH /api/v1/servers/{server_id}/ with {{"protected": false}}.'
        )
    never_worked = state.provisioned_at_ms is None and state.status != Status.REBUILDING
    if at_once or never_worked or not settings.undelete_hours:
        await vanish(tx, caller, ids, clock, server_id)
    elif state.delete_at_ms is None:
        await _retire(tx, caller, ids, clock, state, clock.now_ms() + settings.undelete_hours * 3_600_000)


_OFF = (Status.STOPPED, Status.SUSPENDED, Status.ERROR)


async def _retire(tx: Tx, caller: Caller, ids: Ids, clock: Clock, state: Standing, delete_at_ms: int) -> None:
    """Shut a server down; it keeps what it has, and costs, until that time."""
    under_way = await operations.open_operation(tx, state.id)
    before = Status(state.status)
    off = under_way is None and before in _OFF
    if not off:
        await operations.add(tx, ids, clock, state.id, Command.RETIRE)
    if before is Status.STOPPING:  # it goes back to where it was on its way to
        suspends = under_way is not None and under_way.command == Command.SUSPEND
        before = Status.SUSPENDED if suspends else Status.STOPPED
    elif before not in _OFF:  # those may have a backup under way
        before = Status.ACTIVE
    now = Status.DELETED if off else Status.DELETING
    await _set_retired(tx, clock, state.id, now, delete_at_ms, before)
    detail = f"It can be undeleted until {iso_utc(delete_at_ms)}."
    await events.add(tx, clock, caller, "server.delete", "server", state.id, detail)


async def _set_retired(
    tx: Tx, clock: Clock, server_id: int, status: Status, delete_at_ms: int | None, retired_from: Status | None
) -> None:
    values = {"status": status, "delete_at_ms": delete_at_ms, "retired_from": retired_from}
    await tx.run(_SET_RETIRED, the_id=server_id, updated_at_ms=clock.now_ms(), **values)


async def undelete(
    tx: Tx, caller: Caller, ids: Ids, clock: Clock, settings: Settings, server_id: int
) -> ActionAccepted:
    """Bring a deleted server back to what it was; one that ran starts, and needs credit for it.

    Raises `NotFound`, `WrongStatus` or `PaymentRequired`.
    """
    state = await state_of(tx, caller, server_id)
    check_status(state, Command.UNDELETE)
    back = Status(state.retired_from or Status.ACTIVE)
    goes_down = await operations.open_operation(tx, server_id) is not None
    if back is Status.ACTIVE:
        await billing.check_start(tx, clock, settings, caller.account_id)
        command = Command.UNDELETE
    else:  # one that is still going down comes to rest where it was
        command = Command.SUSPEND if back is Status.SUSPENDED else Command.STOP
    await _set_retired(tx, clock, server_id, back, None, None)
    await events.add(tx, clock, caller, "server.undelete", "server", server_id)
    if back is not Status.ACTIVE and not goes_down:
        return ActionAccepted("success", f"Server is back: {back}", ServerState(state.id, state.name, back))
    await begin(tx, ids, clock, server_id, command)
    working = RULES[command].working
    assert working is not None
    return ActionAccepted("success", MESSAGES[Command.UNDELETE], ServerState(state.id, state.name, working))


async def vanish(tx: Tx, actor: Actor, ids: Ids, clock: Clock, server_id: int) -> None:
    """Delete a server that exists and that the caller has locked."""
    now = clock.now_ms()
    await billing.end_rental(tx, server_id, now)
    await operations.add(tx, ids, clock, server_id, Command.DELETE)
    await events.add(tx, clock, actor, "server.delete", "server", server_id)
    await tx.run(_DELETE, the_id=server_id, status=Status.DELETING, updated_at_ms=now, deleted_at_ms=now)


async def state_of(tx: Tx, caller: Caller, server_id: int) -> Standing:
    """A server of the account, kept from others until the transaction ends; raises `NotFound`."""
    state = await tx.first(Standing, _STATE, the_account=caller.account_id, the_id=server_id)
    if state is None:
        raise NotFound(f"There is no server {server_id}.")
    return state


async def history(tx: Tx, caller: Caller, server_id: int, page: Page) -> tuple[int, list[Operation]]:
    """The operations of a server, oldest first; raises `NotFound`."""
    if await tx.first(int, _EXISTS, the_account=caller.account_id, the_id=server_id) is None:
        raise NotFound(f"There is no server {server_id}.")
    return await operations.history(tx, server_id, page)
