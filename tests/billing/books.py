"""What tests ask of the books, and what they do to them: rows as they lie in the database."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.sql.expression import ClauseElement

from tests.cloud import Cloud
from vpsd.billing.models import Charge, Rental, charges, rentals
from vpsd.billing.verify import BalanceCheck, verify
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.core.db import Statement
from vpsd.core.money import MICROS
from vpsd.hypervisor.protocol import GuestStats
from vpsd.servers import queries
from vpsd.worker.metering import charge_due
from vpsd.worker.repricing import schedule_prices

HOUR = 3600  # seconds, as `cloud.clock.advance` takes them
DAY = 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHARGES = Statement(select(charges).order_by(charges.c.server_id, charges.c.kind, charges.c.from_ms), into=Charge)
_RENTALS = Statement(select(rentals).order_by(rentals.c.server_id, rentals.c.from_ms, rentals.c.id), into=Rental)


async def charge(cloud: Cloud) -> set[int]:
    """One look of the meter."""
    return await charge_due(cloud.runtime)


async def have_connections(cloud: Cloud) -> None:
    """As many as meet at once: whoever had to open one first would come too late for the others."""
    async with AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(cloud.database.read())


async def charges_of(cloud: Cloud, server_id: int, kind: str = "server") -> list[Charge]:
    async with cloud.reading() as ctx:
        found = await ctx.tx.all(_CHARGES)
    return [entry for entry in found if (entry.server_id, entry.kind) == (server_id, kind)]


async def rentals_of(cloud: Cloud, server_id: int) -> list[Rental]:
    async with cloud.reading() as ctx:
        return [rental for rental in await ctx.tx.all(_RENTALS) if rental.server_id == server_id]


async def spent(cloud: Cloud, server_id: int) -> int:
    """What a server was charged without its transfer, in micros."""
    return sum(entry.amount_micros for entry in await charges_of(cloud, server_id))


async def checked(cloud: Cloud, who: str = "alice") -> BalanceCheck:
    async with cloud.runtime.snapshot() as ctx:
        (found,) = [check for check in await verify(ctx, queries.lives) if check.account == who]
    return found


async def assert_right(cloud: Cloud) -> None:
    """Every balance follows from what happened."""
    for who in ("alice", "charlie"):
        found = await checked(cloud, who)
        assert (found.difference_micros, found.problems) == (0, []), found


async def change(cloud: Cloud, clause: ClauseElement, columns: tuple[str, ...] | None = None, **values: Any) -> int:
    """Do to the database what vpsd never does."""
    async with cloud.writing() as ctx:
        return await ctx.tx.run(Statement(clause, columns), **values)


def have_stats(cloud: Cloud, stats: Callable[[str], Awaitable[GuestStats]]) -> None:
    """What the host says of every guest, from now on."""
    vars(cloud.hypervisor)["stats"] = stats


def has_moved(cloud: Cloud, received_bytes: int, sent_bytes: int) -> None:
    """Every guest's counters, from now on."""

    async def stats(name: str) -> GuestStats:
        return GuestStats(1.0, 40, 1 << 30, received_bytes, sent_bytes)

    have_stats(cloud, stats)


def until_hour(cloud: Cloud) -> float:
    """Seconds from now to the next full hour."""
    return HOUR - cloud.clock.now_ms() / 1000 % HOUR


async def have_price(
    cloud: Cloud, offered: Catalog, price_micros: int, plan_id: int = 4, from_ms: int | None = None
) -> None:
    """The catalogue with another price for a plan, and from when those pay it that have the plan."""
    changes = {
        "price_monthly": Decimal(price_micros) / MICROS,
        "price_for_all_from": None if from_ms is None else _EPOCH + timedelta(milliseconds=from_ms),
    }
    entries = [msgspec.structs.replace(plan, **changes) if plan.id == plan_id else plan for plan in offered.plans]
    async with cloud.writing() as ctx:
        await catalog.apply(ctx, msgspec.structs.replace(offered, plans=entries))


async def schedule(cloud: Cloud, plan_id: int = 4) -> int:
    """Have the servers of a plan pay what the catalogue says; how many that changes."""
    async with cloud.reading() as ctx:
        plan = await catalog.find_plan(ctx, plan_id)
    assert plan is not None
    return await schedule_prices(cloud.runtime, plan)


async def announce(cloud: Cloud, offered: Catalog, price_micros: int, from_ms: int | None = None) -> int:
    """A new price for those as well that have the plan, or None: the announced one is taken back."""
    await have_price(cloud, offered, price_micros, from_ms=from_ms)
    return await schedule(cloud)


async def resize(cloud: Cloud, server_id: int, plan_id: int, who: str = "alice") -> None:
    """Another plan for a server, from now on."""
    answer = await cloud.post(f"/api/v1/servers/{server_id}/resize/", {"plan_id": plan_id}, who=who)
    assert answer.status_code == 200, answer.text
    await cloud.work()
