"""What can be ordered: plans, operating systems, locations. What is no longer offered is not listed."""

from collections.abc import Sequence

from litestar import Router

from vpsd.api.http.forms import PageQuery, Query
from vpsd.api.http.routes import get
from vpsd.api.vps_org.schemas.catalog import (
    LocationList,
    LocationView,
    OperatingSystemList,
    OperatingSystemView,
    PlanId,
    PlanList,
    PlanQuery,
    PlanView,
)
from vpsd.catalog import service as catalog
from vpsd.catalog.models import Plan
from vpsd.core.context import Ctx
from vpsd.errors import NotFound
from vpsd.servers.queries import free_capacity, unknown_location


@get("/plans/", "plan_list", "List plans", needs="servers:read")
async def list_plans(ctx: Ctx, query: Query[PlanQuery]) -> PlanList:
    """Every plan on offer, what it costs, and where there is room for it now."""
    code = query.get("location")
    if code is not None and await catalog.find_location(ctx, code) is None:
        query.faults.add("location", await unknown_location(ctx, code))
    query.validate()
    views = await _views(ctx, [plan for plan in await catalog.list_plans(ctx) if plan.available])
    return PlanList.part_of(query, [view for view in views if code is None or code in view.locations])


@get("/plans/{plan_id:int}/", "plan_get", "Get a plan", needs="servers:read")
async def get_plan(ctx: Ctx, plan_id: PlanId) -> PlanView:
    """One plan, also when it is no longer offered: servers may still have it."""
    plan = await catalog.find_plan(ctx, plan_id)
    if plan is None:
        raise NotFound("plan", plan_id)
    return (await _views(ctx, [plan]))[0]


async def _views(ctx: Ctx, found: Sequence[Plan]) -> list[PlanView]:
    # One host stands for every location until servers say on which they are.
    capacity = await free_capacity(ctx)
    codes = [location.code for location in await catalog.list_locations(ctx) if location.available]
    return [PlanView.of(plan, codes if plan.available and not capacity.lacks(plan) else []) for plan in found]


@get("/operating-systems/", "operating_system_list", "List operating systems", needs="servers:read")
async def list_operating_systems(ctx: Ctx, query: Query[PageQuery]) -> OperatingSystemList:
    """Every operating system on offer."""
    systems = [system for system in await catalog.list_operating_systems(ctx) if system.available]
    return OperatingSystemList.part_of(query.validate(), [OperatingSystemView.of(system) for system in systems])


@get("/locations/", "location_list", "List locations", needs="servers:read")
async def list_locations(ctx: Ctx, query: Query[PageQuery]) -> LocationList:
    """Every location on offer."""
    locations = [location for location in await catalog.list_locations(ctx) if location.available]
    return LocationList.part_of(query.validate(), [LocationView.of(location) for location in locations])


router = Router("/", route_handlers=[list_plans, get_plan, list_operating_systems, list_locations], tags=["Catalogue"])
