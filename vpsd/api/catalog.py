"""What can be ordered: plans, operating systems, locations. What is no longer offered is not listed."""

import msgspec
from litestar import Router, get

from vpsd.api.cloud import CloudRequest, Listing, cloud_of, neighbours
from vpsd.catalog import service
from vpsd.core.pages import Page, PageQuery


class PlanView(msgspec.Struct):
    """A plan: memory in MB, storage in GB, bandwidth in GB a month."""

    id: int
    name: str
    slug: str
    vcpus: int
    memory: int
    storage: int
    bandwidth: int
    available: bool
    description: str


class PlanList(Listing):
    """A page of plans."""

    results: list[PlanView]


class OperatingSystemView(msgspec.Struct):
    """An operating system."""

    id: int
    name: str
    slug: str


class OperatingSystemList(Listing):
    """A page of operating systems."""

    results: list[OperatingSystemView]


class LocationView(msgspec.Struct):
    """A location."""

    id: int
    code: str
    name: str
    country_name: str
    country_code: str


class LocationList(Listing):
    """A page of locations."""

    results: list[LocationView]


@get("/plans/", operation_id="plan_list", summary="List plans", opt={"query": PageQuery})
async def plans(request: CloudRequest) -> PlanList:
    """Every plan on offer."""
    wanted = _page(request)
    async with cloud_of(request).database.read() as tx:
        offered = [plan for plan in await service.list_plans(tx) if plan.available]
    views = [
        PlanView(p.id, p.name, p.slug, p.vcpus, p.memory_mb, p.storage_gb, p.bandwidth_gb, p.available, p.description)
        for p in offered[wanted.offset :][: wanted.size]
    ]
    return PlanList(len(offered), *neighbours(request, wanted, len(offered)), views)


@get(
    "/operating-systems/",
    operation_id="operating_system_list",
    summary="List operating systems",
    opt={"query": PageQuery},
)
async def operating_systems(request: CloudRequest) -> OperatingSystemList:
    """Every operating system on offer."""
    wanted = _page(request)
    async with cloud_of(request).database.read() as tx:
        offered = [system for system in await service.list_operating_systems(tx) if system.available]
    views = [OperatingSystemView(s.id, s.name, s.slug) for s in offered[wanted.offset :][: wanted.size]]
    return OperatingSystemList(len(offered), *neighbours(request, wanted, len(offered)), views)


@get("/locations/", operation_id="location_list", summary="List locations", opt={"query": PageQuery})
async def locations(request: CloudRequest) -> LocationList:
    """Every location on offer."""
    wanted = _page(request)
    async with cloud_of(request).database.read() as tx:
        offered = [location for location in await service.list_locations(tx) if location.available]
    views = [
        LocationView(item.id, item.code, item.name, item.country_name, item.country_code)
        for item in offered[wanted.offset :][: wanted.size]
    ]
    return LocationList(len(offered), *neighbours(request, wanted, len(offered)), views)


def _page(request: CloudRequest) -> Page:
    asked = request.query_form()
    asked.done()
    return Page.of(asked)


router = Router("/", route_handlers=[plans, operating_systems, locations], tags=["Catalogue"])
