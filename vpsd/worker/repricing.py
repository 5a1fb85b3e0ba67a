"""Brings a catalogue file into effect: its tables, and the prices to come of servers that are there."""

from pathlib import Path

from vpsd.billing import rentals
from vpsd.catalog import service as catalog
from vpsd.catalog.models import Plan
from vpsd.core.context import OPERATOR, Transactions
from vpsd.servers import queries


async def apply_catalog(transactions: Transactions, path: Path) -> list[str]:
    """Take over what a catalogue file says and tell what changed; raises `Misconfigured` or `Invalid`."""
    offered = catalog.read_file(path)
    async with transactions.write(OPERATOR) as ctx:
        changes = await catalog.apply(ctx, offered)
        plans = await catalog.list_plans(ctx)
    for plan in plans:
        count = await schedule_prices(transactions, plan)
        if count:
            changes.append(f"plans {plan.id}: the price to come of {count} servers is changed")
    return changes


async def schedule_prices(transactions: Transactions, plan: Plan) -> int:
    """Have the servers of a plan pay its price from the day that the catalogue names; says how many it changed.

    Each server is a transaction of its own, under its lock; doing it again changes nothing.
    """
    async with transactions.read(OPERATOR) as ctx:
        found = await rentals.servers_to_reprice(ctx, plan)
    informed: set[int] = set()  # accounts
    changed = 0
    for server_id in found:
        async with transactions.write(OPERATOR) as ctx:
            server = await queries.lock(ctx, server_id)
            ctx = ctx.in_account(server.account_id)
            if not await rentals.schedule_price(ctx, server_id, plan):
                continue
            changed += 1
            if server.account_id not in informed:
                informed.add(server.account_id)
                await rentals.record_price(ctx, plan)
    return changed
