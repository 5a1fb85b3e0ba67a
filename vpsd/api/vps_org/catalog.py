"""What can be ordered: plans, operating systems, locations. What is no longer offered is not listed."""

from litestar import Router
from msgspec import UNSET

from vpsd.api.http.forms import PageQuery, Query
from vpsd.api.http.routes import get
from vpsd.api.vps_org.schemas import catalog as wire
from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.servers import queries as servers


@get("/plans/", "plan_list", "List plans", needs="servers:read")
async def list_plans(ctx: Ctx, query: Query[wire.PlanQuery]) -> wire.PlanList:
    """Every plan on offer, what it costs, and where there is room for it now."""
    offers = await servers.plan_offers(ctx, query.get("location", UNSET), query.faults)
    return wire.PlanList.part_of(query, [wire.PlanView.of(offer) for offer in offers])


@get("/plans/{plan_id:int}/", "plan_get", "Get a plan", needs="servers:read")
async def get_plan(ctx: Ctx, plan_id: int) -> wire.PlanView:
    """One plan, also when it is no longer offered: servers may still have it."""
    return wire.PlanView.of(await servers.plan_offer(ctx, plan_id))


@get("/operating-systems/", "operating_system_list", "List operating systems", needs="servers:read")
async def list_operating_systems(ctx: Ctx, query: Query[PageQuery]) -> wire.OperatingSystemList:
    """Every operating system on offer."""
    systems = await catalog.offered_operating_systems(ctx)
    return wire.OperatingSystemList.part_of(
        query.validate(), [wire.OperatingSystemView.of(system) for system in systems]
    )


@get("/locations/", "location_list", "List locations", needs="servers:read")
async def list_locations(ctx: Ctx, query: Query[PageQuery]) -> wire.LocationList:
    """Every location on offer."""
    locations = await catalog.offered_locations(ctx)
    return wire.LocationList.part_of(query.validate(), [wire.LocationView.of(location) for location in locations])


router = Router("/", route_handlers=[list_plans, get_plan, list_operating_systems, list_locations], tags=["Catalogue"])
