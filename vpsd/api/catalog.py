"""What can be ordered: plans, operating systems, locations. What is no longer offered is not listed."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from litestar import Router, get
from litestar.params import FromPath, Parameter
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.cloud import CloudRequest, Listing, cloud_of, neighbours
from vpsd.billing import prices
from vpsd.catalog import service
from vpsd.catalog.models import Plan
from vpsd.core import money
from vpsd.core.db import Tx
from vpsd.core.forms import Form
from vpsd.core.money import Amount
from vpsd.core.pages import Page, PageQuery
from vpsd.errors import NotFound
from vpsd.hosts import service as hosts


class PlanView(msgspec.Struct):
    """A plan: memory in MB, storage in GB, bandwidth in GB a month."""

    id: int
    uuid: str
    name: str
    slug: str
    vcpus: int
    memory: int
    storage: int
    bandwidth: int
    price_monthly: Annotated[Amount, Meta(description="At most, whatever the month's length")]
    price_hourly: Annotated[Amount, Meta(description="The month's price / 672, to a thousandth")]
    available: Annotated[bool, Meta(description="Whether there is room for one now")]
    locations: Annotated[list[str], Meta(description="Codes of the locations where there is room for one now")]
    description: str

    @classmethod
    def of(cls, plan: Plan, locations: list[str]) -> "PlanView":
        """A plan, and where there is room for it."""
        return cls(
            *(plan.id, plan.uuid, plan.name, plan.slug, plan.vcpus, plan.memory_mb, plan.storage_gb, plan.bandwidth_gb),
            money.amount(plan.price_monthly_micros),
            money.amount(prices.price_hourly(plan.price_monthly_micros)),
            bool(locations),
            locations,
            plan.description,
        )


class PlanQuery(PageQuery):
    """What a list of plans can be narrowed to."""

    location: Annotated[
        str | UnsetType, Meta(description="Only plans that there is room for at this location code")
    ] = UNSET


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


PlanId = FromPath[Annotated[int, Parameter(description="Id of the plan")]]


@get("/plans/", operation_id="plan_list", summary="List plans", opt={"needs": "servers:read", "query": PlanQuery})
async def plans(request: CloudRequest) -> PlanList:
    """Every plan on offer, what it costs, and where there is room for it now."""
    asked: Form[PlanQuery] = request.query_form()
    async with cloud_of(request).database.read() as tx:
        code = asked.get("location")
        if code is not None and await service.find_location(tx, code) is None:
            asked.wrong("location", await service.no_location(tx, code))
        asked.done()
        views = await _views(request, tx, [plan for plan in await service.list_plans(tx) if plan.available])
    if code is not None:
        views = [view for view in views if code in view.locations]
    wanted = Page.of(asked)
    return PlanList(len(views), *neighbours(request, wanted, len(views)), views[wanted.offset :][: wanted.size])


@get("/plans/{plan_id:int}/", operation_id="plan_get", summary="Get a plan", opt={"needs": "servers:read"})
async def plan_detail(request: CloudRequest, plan_id: PlanId) -> PlanView:
    """One plan, also when it is no longer offered: servers may still have it."""
    async with cloud_of(request).database.read() as tx:
        plan = await service.find_plan(tx, plan_id)
        if plan is None:
            raise NotFound(f"There is no plan {plan_id}.")
        return (await _views(request, tx, [plan]))[0]


async def _views(request: CloudRequest, tx: Tx, found: Sequence[Plan]) -> list[PlanView]:
    # One host stands for every location until servers say on which they are.
    room = await hosts.room(tx, cloud_of(request).settings)
    codes = [location.code for location in await service.list_locations(tx) if location.available]
    return [PlanView.of(plan, codes if plan.available and not room.lacks(plan) else []) for plan in found]


@get(
    "/operating-systems/",
    operation_id="operating_system_list",
    summary="List operating systems",
    opt={"needs": "servers:read", "query": PageQuery},
)
async def operating_systems(request: CloudRequest) -> OperatingSystemList:
    """Every operating system on offer."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        offered = [system for system in await service.list_operating_systems(tx) if system.available]
    views = [OperatingSystemView(s.id, s.name, s.slug) for s in offered[wanted.offset :][: wanted.size]]
    return OperatingSystemList(len(offered), *neighbours(request, wanted, len(offered)), views)


@get(
    "/locations/",
    operation_id="location_list",
    summary="List locations",
    opt={"needs": "servers:read", "query": PageQuery},
)
async def locations(request: CloudRequest) -> LocationList:
    """Every location on offer."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        offered = [location for location in await service.list_locations(tx) if location.available]
    views = [
        LocationView(item.id, item.code, item.name, item.country_name, item.country_code)
        for item in offered[wanted.offset :][: wanted.size]
    ]
    return LocationList(len(offered), *neighbours(request, wanted, len(offered)), views)


router = Router("/", route_handlers=[plans, plan_detail, operating_systems, locations], tags=["Catalogue"])
