"""What goes over the wire about the catalogue."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.http.forms import Listing, PageQuery
from vpsd.api.vps_org.schemas.amounts import Amount, amount
from vpsd.catalog.models import Location, OperatingSystem
from vpsd.servers.queries import PlanOffer


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
    def of(cls, offer: PlanOffer) -> "PlanView":
        """As it is read."""
        plan = offer.plan
        return cls(
            *(plan.id, plan.uuid, plan.name, plan.slug, plan.vcpus, plan.memory_mb, plan.storage_gb, plan.bandwidth_gb),
            amount(plan.price_monthly_micros),
            amount(offer.price_hourly_micros),
            bool(offer.locations),
            offer.locations,
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
    min_disk_gb: Annotated[
        int | None, Meta(description="A plan needs at least that much storage; null as long as nobody knows")
    ]

    @classmethod
    def of(cls, system: OperatingSystem) -> "OperatingSystemView":
        """From a row."""
        return cls(system.id, system.name, system.slug, system.disk_gb)


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

    @classmethod
    def of(cls, location: Location) -> "LocationView":
        """From a row."""
        return cls(location.id, location.code, location.name, location.country_name, location.country_code)


class LocationList(Listing):
    """A page of locations."""

    results: list[LocationView]
