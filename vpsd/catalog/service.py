"""The catalogue: read by everyone, changed by the operator through one file."""

import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import Table, bindparam, insert, select, update

from vpsd.catalog.models import Location, OperatingSystem, Plan, locations, operating_systems, plans
from vpsd.core import money
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx
from vpsd.errors import Invalid, Misconfigured, NotFound

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
    price_for_all_from: Annotated[datetime, Meta(tz=True)] | None = (
        None  # servers that have the plan pay it from then on
    )
    description: Annotated[str, Meta(max_length=1000)] = ""

    @property
    def price_monthly_micros(self) -> int:
        """The price, exactly; raises ValueError for one that is finer than a millionth or below zero."""
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


# What an id means: these columns never change under it. The rest are words and switches.
_MEANING = {
    plans: ("slug", "vcpus", "memory_mb", "storage_gb"),
    operating_systems: ("slug", "source"),
    locations: ("code",),
}
_ROWS: dict[Table, Callable[..., Any]] = {plans: Plan, operating_systems: OperatingSystem, locations: Location}
_ALL = {table: Statement(select(table).order_by(table.c.id)) for table in _ROWS}
_ONE = {table: Statement(select(table).where(table.c.id == bindparam("the_id"))) for table in _ROWS}
_ADD = {table: Statement(insert(table), [c.name for c in table.c]) for table in _ROWS}
_CHANGE = {
    table: Statement(
        update(table).where(table.c.id == bindparam("the_id")), [c.name for c in table.c if c.name != "id"]
    )
    for table in _ROWS
}
_LOCATION = Statement(select(locations).where(locations.c.code == bindparam("the_code")))


async def list_plans(tx: Tx) -> list[Plan]:
    """Every plan, by id."""
    return await tx.all(Plan, _ALL[plans])


async def list_operating_systems(tx: Tx) -> list[OperatingSystem]:
    """Every operating system, by id."""
    return await tx.all(OperatingSystem, _ALL[operating_systems])


async def list_locations(tx: Tx) -> list[Location]:
    """Every location, by id."""
    return await tx.all(Location, _ALL[locations])


async def find_plan(tx: Tx, plan_id: int) -> Plan | None:
    """A plan by its id."""
    return await tx.first(Plan, _ONE[plans], the_id=plan_id)


async def find_operating_system(tx: Tx, os_id: int) -> OperatingSystem | None:
    """An operating system by its id."""
    return await tx.first(OperatingSystem, _ONE[operating_systems], the_id=os_id)


async def find_location(tx: Tx, code: str) -> Location | None:
    """A location by its code."""
    return await tx.first(Location, _LOCATION, the_code=code)


async def no_location(tx: Tx, code: str) -> str:
    """What to say of a location code that there is not."""
    offered = ", ".join(location.code for location in await list_locations(tx) if location.available)
    return f"There is no location {code!r}. The locations are {offered}."


async def get_image_source(tx: Tx, slug: str) -> OperatingSystem:
    """An operating system by its slug; raises `NotFound`."""
    found = [system for system in await list_operating_systems(tx) if system.slug == slug]
    if not found:
        raise NotFound(f"The catalogue has no operating system {slug!r}; `vpsd catalog show` lists them.")
    return found[0]


def default_text() -> str:
    """The catalogue that vpsd starts with."""
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


async def apply(tx: Tx, clock: Clock, catalog: Catalog) -> list[str]:
    """Bring the tables to the catalogue and say what changed.

    Entries that the file no longer names stay, no longer available. Raises `Invalid` where an id would change its
    meaning, a slug or code would stand twice, or a new price would be for a day that is over.
    """
    changes: list[str] = []
    await _refuse_past_prices(tx, clock, catalog.plans)
    for table, entries in (
        (plans, catalog.plans),
        (operating_systems, catalog.operating_systems),
        (locations, catalog.locations),
    ):
        changes += await _apply_table(tx, table, entries)
    return changes


async def _refuse_past_prices(tx: Tx, clock: Clock, entries: Sequence[PlanEntry]) -> None:
    present = {plan.id: plan for plan in await list_plans(tx)}
    for entry in entries:
        plan, from_ms = present.get(entry.id), entry.price_from_ms
        if plan is None or from_ms is None or from_ms > clock.now_ms():
            continue
        if (plan.price_monthly_micros, plan.price_from_ms) != (entry.price_monthly_micros, from_ms):
            text = f"{entry.id}: price_for_all_from {entry.price_for_all_from} is over."
            raise Invalid({plans.name: [f"{text} Name a day to come, or take it out."]})


async def _apply_table(tx: Tx, table: Table, entries: Sequence[_Strict]) -> list[str]:
    present = {row.id: msgspec.structs.asdict(row) for row in await tx.all(_ROWS[table], _ALL[table])}
    wanted = {entry.id: {name: getattr(entry, name) for name in table.c.keys()} for entry in entries}  # noqa: SIM118
    _refuse_twins(table, entries)
    for gone in present.keys() - wanted.keys():
        wanted[gone] = {**present[gone], "available": False}
    changes = []
    for entry_id, entry in sorted(wanted.items()):
        before = present.get(entry_id)
        if before is None:
            await tx.run(_ADD[table], **entry)
            changes.append(f"{table.name} {entry_id}: added")
        elif before != entry:
            _refuse_new_meaning(table, before, entry)
            await tx.run(_CHANGE[table], the_id=entry_id, **{k: v for k, v in entry.items() if k != "id"})
            changes.append(f"{table.name} {entry_id}: changed")
    return changes


def _refuse_twins(table: Table, entries: Sequence[_Strict]) -> None:
    for key in ("id", _MEANING[table][0]):
        seen = [getattr(entry, key) for entry in entries]
        twins = sorted({str(value) for value in seen if seen.count(value) > 1})
        if twins:
            raise Invalid({table.name: [f"{key} {', '.join(twins)} stands more than once."]})


def _refuse_new_meaning(table: Table, before: dict[str, Any], entry: dict[str, Any]) -> None:
    changed = [name for name in _MEANING[table] if before[name] != entry[name]]
    if changed:
        raise Invalid(
            {
                table.name: [
                    f"{entry['id']}: {', '.join(changed)} cannot change, servers rely on it. Give the new one a new id "
                    "and set available = false on the old."
                ]
            }
        )
