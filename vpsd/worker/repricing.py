"""Applies a catalogue file: its tables, and the future prices of existing servers."""

from pathlib import Path

from vpsd.billing import rentals
from vpsd.catalog import service as catalog
from vpsd.catalog.models import Plan
from vpsd.core.context import OPERATOR, Transactions
from vpsd.servers import queries


async def apply_catalog(transactions: Transactions, path: Path) -> list[str]:
    """Apply a catalogue file; returns what changed. Raises `Misconfigured` or `Invalid`."""
    offered = catalog.read_file(path)
    async with transactions.write(OPERATOR) as ctx:
        changes = await catalog.apply(ctx, offered)
        plans = await catalog.list_plans(ctx)
    for plan in plans:
        count = await schedule_prices(transactions, plan)
        if count:
            changes.append(f"plans {plan.id}: the future price of {count} servers is changed")
    return changes


async def schedule_prices(transactions: Transactions, plan: Plan) -> int:
    """Have the servers of a plan cost its price from the day in the catalogue; returns how many it changed.

    Each server has a transaction of its own, under its lock; repeating it changes nothing.
    """
    async with transactions.read(OPERATOR) as ctx:
        found = await rentals.servers_to_reprice(ctx, plan)
    informed: set[int] = set()  # accounts
    changed = 0
    for server_id in found:
        async with transactions.write(OPERATOR) as ctx:
            server = await queries.lock(ctx, server_id)
            ctx = ctx.in_account(server.account_id)
            # A deleted one's rental may end later than now: it was charged until then, and a clock was set back.
            if server.deleted_at_ms is not None or not await rentals.schedule_price(ctx, server_id, plan):
                continue
            changed += 1
            if server.account_id not in informed:
                informed.add(server.account_id)
                await rentals.record_price(ctx, plan)
    return changed
