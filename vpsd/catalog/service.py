"""The catalogue, which the operator changes through a file."""

import tomllib
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import Table, bindparam, insert, or_, select, update

from vpsd.catalog.models import (
    CloudConfigSchema,
    Location,
    OperatingSystem,
    Plan,
    cloud_config_schemas,
    locations,
    operating_systems,
    plans,
)
from vpsd.core import money
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.errors import Fault, Invalid, Misconfigured, NotFound

Id = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1, max_length=255)]
Slug = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
Positive = Annotated[int, Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: Id
    available: bool = True


class PlanEntry(_Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A plan in the catalogue file."""

    name: Text
    slug: Slug
    vcpus: Annotated[int, Meta(ge=1, le=255)]
    memory_mb: Annotated[int, Meta(ge=96)]
    storage_gb: Positive
    bandwidth_gb: Positive
    price_monthly: Decimal = Decimal(0)
    price_for_all_from: Annotated[datetime, Meta(tz=True)] | None = None  # when existing servers pay the price too
    description: Annotated[str, Meta(max_length=1000)] = ""

    @property
    def price_monthly_micros(self) -> int:
        """The exact price; raises ValueError if it is negative or has more than six decimal places."""
        if self.price_monthly.is_finite() and self.price_monthly < 0:
            raise ValueError(f"price_monthly {self.price_monthly} is below zero")
        return money.parse(self.price_monthly)

    @property
    def price_from_ms(self) -> int | None:
        """`price_for_all_from`, in milliseconds."""
        return None if self.price_for_all_from is None else round(self.price_for_all_from.timestamp() * 1000)


class OperatingSystemEntry(_Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An operating system in the catalogue file."""

    name: Text
    slug: Slug
    source: Literal["tiny", "debian", "pull", "import"]
    url: str | None = None
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    sums_url: str | None = None
    min_disk_gb: Positive | None = None


class LocationEntry(_Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A location in the catalogue file."""

    code: Slug
    name: Text
    country_name: Annotated[str, Meta(max_length=255)] = ""
    country_code: Annotated[str, Meta(pattern="^([A-Z]{2})?$")] = ""


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The catalogue file."""

    plans: list[PlanEntry]
    operating_systems: list[OperatingSystemEntry]
    locations: list[LocationEntry]


# What an id means: these columns never change. The others are texts and switches.
_MEANING = {
    plans: ("slug", "vcpus", "memory_mb", "storage_gb"),
    operating_systems: ("slug", "source"),
    locations: ("code",),
}
_MEASURED = {operating_systems: ("image_disk_gb",)}  # not from the file, which therefore leaves them as they are
_ADD = {table: Statement(insert(table), [c.name for c in table.c]) for table in _MEANING}
_CHANGE = {
    table: Statement(update(table).where(table.c.id == bindparam("id")), [c.name for c in table.c if c.name != "id"])
    for table in _MEANING
}
_PLANS = Statement(select(plans).order_by(plans.c.id), into=Plan)
_PLAN = Statement(select(plans).where(plans.c.id == bindparam("id")), into=Plan)
_SYSTEMS = Statement(select(operating_systems).order_by(operating_systems.c.id), into=OperatingSystem)
_SYSTEM = Statement(select(operating_systems).where(operating_systems.c.id == bindparam("id")), into=OperatingSystem)
_SET_IMAGE_DISK = Statement(
    update(operating_systems).where(operating_systems.c.id == bindparam("id")), ("image_disk_gb",)
)
_schemas = cloud_config_schemas.c
_SCHEMAS = Statement(
    select(cloud_config_schemas)
    .join_from(cloud_config_schemas, operating_systems)
    .where(or_(_schemas.os_id == bindparam("id"), operating_systems.c.source == "debian")),
    into=CloudConfigSchema,
)
_ADD_SCHEMA = Statement(insert(cloud_config_schemas), ("os_id", "content"))
_CHANGE_SCHEMA = Statement(update(cloud_config_schemas).where(_schemas.os_id == bindparam("id")), ("content",))
_LOCATIONS = Statement(select(locations).order_by(locations.c.id), into=Location)
_LOCATION = Statement(select(locations).where(locations.c.code == bindparam("code")), into=Location)
_ALL: dict[Table, Statement[Any]] = {plans: _PLANS, operating_systems: _SYSTEMS, locations: _LOCATIONS}


class RepeatedEntry(Fault, frozen=True):
    """Entries of the catalogue file share an id, a slug or a code."""

    key: str
    values: list[str]

    def __str__(self) -> str:
        return f"{self.key} {', '.join(self.values)} is given more than once."


class NewMeaning(Fault, frozen=True):
    """The meaning of an id would change, on which servers rely."""

    entry_id: int
    columns: list[str]

    def __str__(self) -> str:
        return (
            f"{self.entry_id}: {', '.join(self.columns)} cannot change, since servers rely on it. Give the new one a "
            "new id, and set available = false on the old one."
        )


class PastPrice(Fault, frozen=True):
    """A new price would apply from a day in the past."""

    entry_id: int
    day: datetime

    def __str__(self) -> str:
        return f"{self.entry_id}: price_for_all_from {self.day} is in the past. Give a day in the future, or remove it."


async def list_plans(ctx: Ctx) -> list[Plan]:
    """Every plan, by id."""
    return await ctx.tx.all(_PLANS)


async def list_operating_systems(ctx: Ctx) -> list[OperatingSystem]:
    """Every operating system, by id."""
    return await ctx.tx.all(_SYSTEMS)


async def list_locations(ctx: Ctx) -> list[Location]:
    """Every location, by id."""
    return await ctx.tx.all(_LOCATIONS)


async def offered_plans(ctx: Ctx) -> list[Plan]:
    """The plans that can be ordered, by id."""
    return [plan for plan in await list_plans(ctx) if plan.available]


async def offered_operating_systems(ctx: Ctx) -> list[OperatingSystem]:
    """The operating systems that can be ordered, by id."""
    return [system for system in await list_operating_systems(ctx) if system.available]


async def offered_locations(ctx: Ctx) -> list[Location]:
    """The locations that can be ordered, by id."""
    return [location for location in await list_locations(ctx) if location.available]


async def find_plan(ctx: Ctx, plan_id: int) -> Plan | None:
    """A plan by its id."""
    return await ctx.tx.first(_PLAN, id=plan_id)


async def find_operating_system(ctx: Ctx, os_id: int) -> OperatingSystem | None:
    """An operating system by its id."""
    return await ctx.tx.first(_SYSTEM, id=os_id)


async def find_cloud_config_schema(ctx: Ctx, os_id: int | None) -> str | None:
    """The JSON Schema of a #cloud-config of an operating system's own cloud-init; where that is not known, Debian's."""
    found = await ctx.tx.all(_SCHEMAS, id=os_id)
    return next((row.content for row in sorted(found, key=lambda row: row.os_id != os_id)), None)


async def save_cloud_config_schema(ctx: Ctx, os_id: int, content: str) -> None:
    """Keep the schema that an operating system's image brought, instead of that of an earlier image."""
    if not await ctx.tx.run(_CHANGE_SCHEMA, id=os_id, content=content):
        await ctx.tx.run(_ADD_SCHEMA, os_id=os_id, content=content)


async def find_location(ctx: Ctx, code: str) -> Location | None:
    """A location by its code."""
    return await ctx.tx.first(_LOCATION, code=code)


async def set_image_disk(ctx: Ctx, os_id: int, disk_gb: int) -> None:
    """Write down what disk a system needs, as its newest image says: it corrects what the catalogue says."""
    await ctx.tx.run(_SET_IMAGE_DISK, id=os_id, image_disk_gb=disk_gb)


async def get_operating_system(ctx: Ctx, slug: str) -> OperatingSystem:
    """An operating system by its slug; raises `NotFound`."""
    found = [system for system in await list_operating_systems(ctx) if system.slug == slug]
    if not found:
        raise NotFound("operating system", slug)
    return found[0]


def default_text() -> str:
    """The default catalogue."""
    return resources.files("vpsd.catalog").joinpath("default.toml").read_text(encoding="utf-8")


def read_file(path: Path) -> Catalog:
    """Read a catalogue file; raises `Misconfigured` that names the entry and the field."""
    try:
        text = path.read_text(encoding="utf-8")
        catalog = msgspec.convert(tomllib.loads(text, parse_float=Decimal), Catalog)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Misconfigured(f"catalogue {path}: {error}") from error
    for plan in catalog.plans:
        try:
            _ = plan.price_monthly_micros
        except ValueError as error:
            raise Misconfigured(f"catalogue {path}: plan {plan.id}: {error}") from None
    for entry in catalog.operating_systems:
        if (entry.source == "pull") != (entry.url is not None):
            raise Misconfigured(f'catalogue {path}: operating system {entry.id}: `url` goes with source "pull"')
        if entry.source == "pull" and entry.sha256 is None and entry.sums_url is None:
            raise Misconfigured(f"catalogue {path}: operating system {entry.id}: give `sha256` or `sums_url`")
    return catalog


async def apply(ctx: Ctx, catalog: Catalog) -> list[str]:
    """Update the tables from a catalogue; returns what changed.

    Entries that it no longer names stay, but are no longer available. Raises `Invalid` with `NewMeaning`,
    `RepeatedEntry` or `PastPrice`.
    """
    changes: list[str] = []
    await _refuse_past_prices(ctx, catalog.plans)
    for table, entries in (
        (plans, catalog.plans),
        (operating_systems, catalog.operating_systems),
        (locations, catalog.locations),
    ):
        changes += await _apply_table(ctx, table, entries)
    return changes


async def _refuse_past_prices(ctx: Ctx, entries: Sequence[PlanEntry]) -> None:
    present = {plan.id: plan for plan in await list_plans(ctx)}
    for entry in entries:
        plan, day, from_ms = present.get(entry.id), entry.price_for_all_from, entry.price_from_ms
        if plan is None or day is None or from_ms is None or from_ms > ctx.now_ms:
            continue
        if (plan.price_monthly_micros, plan.price_from_ms) != (entry.price_monthly_micros, from_ms):
            raise Invalid({plans.name: [PastPrice(entry.id, day)]})


async def _apply_table(ctx: Ctx, table: Table, entries: Sequence[_Strict]) -> list[str]:
    present = {row.id: msgspec.structs.asdict(row) for row in await ctx.tx.all(_ALL[table])}
    wanted = {}
    for entry in entries:
        kept = {name: present.get(entry.id, {}).get(name) for name in _MEASURED.get(table, ())}
        wanted[entry.id] = {name: kept[name] if name in kept else getattr(entry, name) for name in table.c.keys()}  # noqa: SIM118
    _refuse_repeated(table, entries)
    for unnamed in present.keys() - wanted.keys():
        wanted[unnamed] = {**present[unnamed], "available": False}
    changes = []
    for entry_id, values in sorted(wanted.items()):
        before = present.get(entry_id)
        if before is None:
            await ctx.tx.run(_ADD[table], **values)
            changes.append(f"{table.name} {entry_id}: added")
        elif before != values:
            changed = [name for name in _MEANING[table] if before[name] != values[name]]
            if changed:
                raise Invalid({table.name: [NewMeaning(entry_id, changed)]})
            await ctx.tx.run(_CHANGE[table], **values)
            changes.append(f"{table.name} {entry_id}: changed")
    return changes


def _refuse_repeated(table: Table, entries: Sequence[_Strict]) -> None:
    for key in ("id", _MEANING[table][0]):
        seen = [getattr(entry, key) for entry in entries]
        repeated = sorted({str(value) for value in seen if seen.count(value) > 1})
        if repeated:
            raise Invalid({table.name: [RepeatedEntry(key, repeated)]})
