"""What creating and changing servers check in the same way. Faults are added, and raised together by the caller."""

from msgspec import UNSET, UnsetType

from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem, Plan
from vpsd.core.context import Ctx
from vpsd.core.faults import Faults
from vpsd.core.units import GIB
from vpsd.hosts import service as hosts
from vpsd.operations import service as operations
from vpsd.servers.faults import (
    DiskTooSmall,
    IsProtected,
    StorageFull,
    TooManyOperations,
    UnknownPlan,
    UnknownSystem,
)
from vpsd.servers.models import LockedServer, ServerRow


async def offered_plan(ctx: Ctx, plan_id: int | UnsetType, faults: Faults) -> Plan | None:
    """A plan that is on offer."""
    if plan_id is UNSET:
        return None
    plan = await catalog.find_plan(ctx, plan_id)
    if plan is None or not plan.available:
        offered = [(plan.id, plan.name) for plan in await catalog.offered_plans(ctx)]
        faults.add("plan_id", UnknownPlan(plan_id, offered))
    return plan


async def offered_system(ctx: Ctx, os_id: int | UnsetType, faults: Faults) -> OperatingSystem | None:
    """An operating system that is on offer."""
    if os_id is UNSET:
        return None
    system = await catalog.find_operating_system(ctx, os_id)
    if system is None or not system.available:
        offered = [(os.id, os.name) for os in await catalog.offered_operating_systems(ctx)]
        faults.add("os_id", UnknownSystem(os_id, offered))
    return system


async def check_operations(ctx: Ctx) -> None:
    """Make sure that the customer, whose account is locked, may have one more open; raises `TooManyOperations`."""
    limit = ctx.settings.operations_per_account
    if ctx.actor.kind == "token" and await operations.count_open(ctx) >= limit:
        raise TooManyOperations(limit)


async def check_storage(ctx: Ctx, server: ServerRow) -> None:
    """Make sure that a server's host has space for more than the servers that run; raises `StorageFull`."""
    if await is_storage_full(ctx, server):
        raise StorageFull


async def is_storage_full(ctx: Ctx, server: ServerRow) -> bool:
    """Whether what is left of the pool of a server's host is for the servers that run."""
    return server.host_id is not None and (await hosts.room(ctx, server.host_id)).is_storage_full(ctx.settings)


def check_unprotected(server: LockedServer) -> None:
    """Raise `IsProtected` where the owner has said that what is on the disk shall stay."""
    if server.protected:
        raise IsProtected(server.id)


async def check_disk(
    ctx: Ctx, plan: Plan, source: str, needed_bytes: int, faults: Faults, field: str = "plan_id"
) -> None:
    """The plan's disk is large enough for what the server begins with."""
    if needed_bytes <= plan.storage_gb * GIB:
        return
    fitting = [other for other in await catalog.offered_plans(ctx) if needed_bytes <= other.storage_gb * GIB]
    least = min(fitting, key=lambda other: (other.storage_gb, other.price_monthly_micros, other.id), default=None)
    smallest = None if least is None else (least.id, least.name, least.storage_gb)
    faults.add(field, DiskTooSmall(source, -(-needed_bytes // GIB), plan.name, plan.storage_gb, smallest))
