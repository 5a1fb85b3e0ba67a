"""Sets right what is stored once the clock was set, before anything goes by it."""

import logging

from vpsd.accounts import service as accounts
from vpsd.backups import commands as backups
from vpsd.core.jumps import Jump
from vpsd.core.units import DAY_MS, HOUR_MS, SECOND_MS
from vpsd.events import service as events
from vpsd.network import addresses
from vpsd.operations import times
from vpsd.runtime import Runtime
from vpsd.servers import queries as servers
from vpsd.servers import updates

log = logging.getLogger(__name__)

_LEAST_SECONDS = 60  # that the newest row is ahead at a start: less may be another machine's clock


async def look(runtime: Runtime) -> None:
    """Notice a jump; whoever goes by stored times asks first, and waits until they are right."""
    async with runtime.jumps.lock:
        jump = runtime.jumps.look()
        if jump is not None:
            await _set_right(runtime, jump)
            runtime.jumps.set_right()


async def look_at_start(runtime: Runtime) -> None:
    """Set right what lies ahead of the clock: it was ahead before, or it is behind now, where no battery keeps it.

    One that is ahead now cannot be told from a vpsd that was off, or had nothing to do: both wait for a while.
    """
    async with runtime.read() as ctx:
        newest_ms = await events.newest_ms(ctx)
        ahead_seconds = 0 if newest_ms is None else (newest_ms - ctx.now_ms) // SECOND_MS
    if ahead_seconds > _LEAST_SECONDS:
        runtime.jumps.tell(-ahead_seconds)
    if newest_ms is not None and ctx.now_ms - newest_ms > HOUR_MS:
        log.info("the newest event is older than an hour: for 15 minutes nothing is charged or deleted by the clock")
        runtime.jumps.doubt()
    await _set_right(runtime, None)


async def _set_right(runtime: Runtime, jump: Jump | None) -> None:
    # One room after the other: each of them locks its own rows.
    async with runtime.write() as ctx:
        await times.set_times_right(ctx, jump)
    for set_times_right in (addresses.set_times_right, accounts.set_times_right, updates.set_times_right):
        async with runtime.write() as ctx:
            await set_times_right(ctx)
    async with runtime.read() as ctx:
        found = await servers.backup_beyond(ctx, ctx.now_ms + DAY_MS)
    for server_id in found:
        async with runtime.write() as ctx:
            await backups.set_slot_right(ctx, server_id)
