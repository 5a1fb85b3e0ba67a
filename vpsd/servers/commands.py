"""Servers, changed: what customers may ask of them, and the door that everybody else uses too.

Nothing here touches a host: what is asked for becomes a row, and a worker does the rest.
"""

from functools import cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import bindparam, select, update

from vpsd.billing import credit, rentals
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem, Plan, plans
from vpsd.core.context import Ctx
from vpsd.core.crypt import password_hash
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.errors import NotFound
from vpsd.events import service as events
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.servers import hostnames
from vpsd.servers.capacity import change_room
from vpsd.servers.checks import (
    check_disk,
    check_operations,
    check_unprotected,
    offered_system,
)
from vpsd.servers.faults import (
    CommandRefused,
    DiskCannotShrink,
    IsDeleted,
    NoPlanNamed,
    PlanChanged,
    SamePlan,
    UnknownPlan,
)
from vpsd.servers.models import LockedServer, servers
from vpsd.servers.queries import lock_server, operating_system
from vpsd.servers.schedule import next_backup_slot_ms
from vpsd.servers.tags import check_tags, set_tags
from vpsd.servers.transitions import STATUS_EVENT, given, transition
from vpsd.servers.updates import set_next_backup

_c = servers.c

_PLAN = Statement(
    select(plans)
    .join_from(servers, plans)
    .where(_c.account_id == bindparam("account_id"), _c.deleted_at_ms.is_(None), _c.id == bindparam("id")),
    into=Plan,
)


class ServerChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What shall change; what is unset stays."""

    name: str | UnsetType = UNSET
    hostname: str | UnsetType = UNSET
    backups_enabled: bool | UnsetType = UNSET
    freeze_for_backups: bool | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    protected: bool | UnsetType = UNSET


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A command was accepted: the status that the server has by now, and the operation that does the work, if any."""

    server_id: int
    name: str
    status: Status
    message: str
    operation: Operation | None = None
    password: str | None = None  # a new root password, known only now


@cache
def _update(columns: tuple[str, ...]) -> Statement[Any]:
    return Statement(update(servers).where(_c.id == bindparam("id")), columns)


async def change(ctx: Ctx, server_id: int, wanted: ServerChanges, faults: Faults) -> None:
    """Change what is set. Raises `Invalid`, `NotFound`, or `IsDeleted` where a deleted server shall be protected."""
    server = await lock_server(ctx, server_id)
    if wanted.tags is not UNSET:
        check_tags(wanted.tags, faults)
    refused = None if wanted.hostname is UNSET else hostnames.refusal(wanted.hostname)
    if refused is not None and wanted.hostname != server.hostname:
        faults.add("hostname", refused)
    faults.check()
    if wanted.protected is True and server.purge_due_at_ms is not None:
        raise IsDeleted(server.id, Status(server.status), server.purge_due_at_ms)
    changes = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not UNSET}
    if not changes:
        return
    shown = changes if wanted.tags is UNSET else {**changes, "tags": msgspec.json.encode(wanted.tags).decode()}
    if wanted.tags is not UNSET:
        await set_tags(ctx, server_id, changes.pop("tags"))
    if wanted.backups_enabled is False:
        await set_next_backup(ctx, server_id, None)
    elif wanted.backups_enabled is True and server.next_backup_at_ms is None:
        await set_next_backup(ctx, server_id, next_backup_slot_ms(ctx.settings, server.uuid, ctx.now_ms))
    await ctx.tx.run(_update((*changes, "updated_at_ms")), id=server_id, updated_at_ms=ctx.now_ms, **changes)
    detail = ", ".join(f"{name} {value}" for name, value in shown.items())
    await events.record(ctx, "server.change", "server", server_id, detail)
    # While another operation is open the seed is written by it, or brought up to date by reconcile.
    if (
        "hostname" in changes
        and server.status == Status.ACTIVE
        and await operations.open_operation(ctx, server_id) is None
    ):
        await enqueue(ctx, server, Command.CONFIGURE)


async def run_command(ctx: Ctx, server_id: int, command: Command) -> Accepted:
    """Give a server a command; raises `NotFound`, `PaymentRequired`, `WrongStatus` or `Busy`."""
    server = await lock_server(ctx, server_id)
    return accepted(server, command, await enqueue(ctx, server, command, event=f"server.{command}"))


async def enqueue(
    ctx: Ctx,
    server: LockedServer,
    command: Command,
    argument: int | None = None,
    *,
    event: str = STATUS_EVENT,
    detail: str | None = None,
) -> Operation:
    """Queue a command on a server whose row the caller has locked, and show that it is under way.

    `event` is the request's own, which carries the change of status. Raises `PaymentRequired`,
    `WrongStatus`, `TooManyOperations` or `Busy`.
    """
    runs, rule = server.status == Status.ACTIVE, RULES[command]
    if rule.needs_credit and (Status.ACTIVE in rule.begins_from if runs else rule.begins_from - {Status.ACTIVE}):
        await credit.check_start(ctx, runs=runs)
    check_status(server, command)
    if command not in (Command.DELETE, Command.SOFT_DELETE):
        await check_operations(ctx)
    operation = await operations.add(ctx.in_account(server.account_id), server.id, command, argument)
    if rule.working is not None:
        await transition(ctx, server, rule.working, given(command, event=event, detail=detail))
    return operation


def check_status(server: LockedServer, command: Command) -> None:
    """Raise `WrongStatus` where the status does not allow the command."""
    if server.status in RULES[command].begins_from:
        return
    if server.purge_due_at_ms is not None:
        raise IsDeleted(server.id, Status(server.status), server.purge_due_at_ms)
    raise CommandRefused(Status(server.status), command)


def accepted(server: LockedServer, command: Command, operation: Operation, password: str | None = None) -> Accepted:
    """What whoever gave a command is told."""
    rule = RULES[command]
    assert rule.working is not None
    return Accepted(
        server_id=server.id,
        name=server.name,
        status=rule.working,
        message=rule.message,
        operation=operation,
        password=password,
    )


async def resize(
    ctx: Ctx, server_id: int, plan_id: int | UnsetType, plan_uuid: str | UnsetType, faults: Faults
) -> Accepted:
    """Give a server another plan; one that runs reboots for it, another takes its new size when it starts.

    A disk grows under a running guest: where that is all, there is no reboot. It costs the new plan's price from now
    on. Raises `NotFound`, `Invalid`, `PaymentRequired`, `OverQuota`, `NoCapacity`, `StorageFull`,
    `WrongStatus` or `Busy`.
    """
    old = await ctx.tx.first(_PLAN, account_id=ctx.account_id, id=server_id)
    if old is None:
        raise NotFound("server", server_id)
    system = await operating_system(ctx, server_id)
    plan = await _other_plan(ctx, plan_id, plan_uuid, old, system, faults)
    await credit.check_create(ctx, plan, instead_of=(server_id, old))
    server = await lock_server(ctx, server_id)
    check_status(server, Command.RESIZE)
    if server.plan_id != old.id:
        raise PlanChanged
    under_way = await operations.open_operation(ctx, server_id)
    if under_way is not None and under_way.command == Command.MIGRATE:  # it has taken room for the plan of before
        raise operations.UnderWay(under_way.command)
    await change_room(ctx, server.host_id, plan, old)
    await rentals.change_plan(ctx, server_id, plan, ctx.now_ms)
    await ctx.tx.run(_update(("plan_id", "updated_at_ms")), id=server_id, plan_id=plan.id, updated_at_ms=ctx.now_ms)
    detail = f"{old.name} to {plan.name}"
    if server.status == Status.ACTIVE:
        only_disk = (plan.vcpus, plan.memory_mb) == (old.vcpus, old.memory_mb)
        command = Command.GROW if only_disk else Command.RESIZE
        operation = await enqueue(ctx, server, command, event="server.resize", detail=detail)
        return accepted(server, command, operation)
    await events.record(ctx, "server.resize", "server", server_id, detail)
    text = "Server is resized. It has its new size when it starts."
    return Accepted(server_id=server.id, name=server.name, status=Status(server.status), message=text)


async def _other_plan(
    ctx: Ctx,
    plan_id: int | UnsetType,
    plan_uuid: str | UnsetType,
    old: Plan,
    system: OperatingSystem,
    faults: Faults,
) -> Plan:
    if (plan_id is UNSET) == (plan_uuid is UNSET):
        faults.add("plan_id", NoPlanNamed())
    faults.check()
    field, wanted = ("plan_id", plan_id) if plan_uuid is UNSET else ("plan", plan_uuid)
    assert wanted is not UNSET
    offered = await catalog.offered_plans(ctx)
    found = next((plan for plan in offered if wanted in (plan.id, plan.uuid)), None)
    if found is None:
        large = [(plan.id, plan.name) for plan in offered if plan.storage_gb >= old.storage_gb]
        faults.add(field, UnknownPlan(wanted, large, for_disk=True))
    elif found.id == old.id:
        faults.add(field, SamePlan(old.name))
    elif found.storage_gb < old.storage_gb:
        faults.add(field, DiskCannotShrink(found.storage_gb, old.storage_gb))
    else:
        await check_disk(ctx, found, system.name, system.disk_bytes, faults, field)
    faults.check()
    assert found is not None
    return found


async def rebuild(ctx: Ctx, server_id: int, os_id: int | UnsetType, faults: Faults) -> Accepted:
    """Make a server anew from an operating system: a new disk, everything else stays.

    Raises `NotFound`, `Invalid`, `IsProtected`, `PaymentRequired`, `WrongStatus` or `Busy`.
    """
    server = await lock_server(ctx, server_id)
    system = await offered_system(ctx, os_id, faults)
    if system is not None and system.available:
        plan = await ctx.tx.first(_PLAN, account_id=ctx.account_id, id=server_id)
        assert plan is not None
        await check_disk(ctx, plan, system.name, system.disk_bytes, faults, "os_id")
    faults.check()
    check_unprotected(server)
    assert system is not None
    password = None
    if server.authorized_key is None:
        password = ctx.ids.password()
        await ctx.tx.run(_update(("root_password_hash",)), id=server_id, root_password_hash=password_hash(password))
    operation = await enqueue(ctx, server, Command.REBUILD, system.id, event="server.rebuild", detail=system.name)
    return accepted(server, Command.REBUILD, operation, password)
