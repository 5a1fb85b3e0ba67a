"""Charges what servers cost, and holds accounts against their balance.

An account without credit is warned; after the grace its servers are suspended: stopped, with disk and address kept.
With credit again they go back to what they were. Nothing is deleted for lack of money unless the operator has set a
time for it. What customers have deleted is gone for good when the time to undo that is over.
"""

import asyncio
import logging
from enum import StrEnum

from vpsd.accounts import events
from vpsd.accounts import service as accounts
from vpsd.accounts.models import Actor
from vpsd.billing import meter
from vpsd.billing import service as billing
from vpsd.core.clock import iso_utc
from vpsd.core.db import Tx
from vpsd.core.ids import Ids
from vpsd.errors import Busy
from vpsd.operations import service as operations
from vpsd.servers import rows, service
from vpsd.servers.jobs import World
from vpsd.servers.lifecycle import Command, Status
from vpsd.servers.models import Server

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 10.0
_DAY_MS = 86_400_000


class Wish(StrEnum):
    """What is to become of an account's servers."""

    RESUME = "resume"  # there is credit: what was suspended comes back
    WAIT = "wait"  # there is none, and the grace lasts
    SUSPEND = "suspend"  # the grace is over, and some day so is the time of what is suspended


class Biller:
    """Looks at the clock now and then, and at every account that may have run out."""

    def __init__(self, world: World, ids: Ids) -> None:
        self._world = world
        self._ids = ids

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self.bill()
            except Exception:
                log.exception("billing met an error; it goes on")
            await asyncio.sleep(_PERIOD_SECONDS)

    async def bill(self) -> None:
        """Charge what is due, and see to the accounts that it concerns."""
        world = self._world
        await self._end_deletions()
        concerned = await meter.charge(world.database, world.settings, self._ids, world.clock)
        async with world.database.read() as tx:
            concerned |= {account.id for account in await accounts.list_accounts(tx) if account.exhausted_at_ms}
            concerned |= set(await rows.accounts_with(tx, Status.SUSPENDED))
        for account_id in sorted(concerned):
            try:
                await self._settle(account_id)
            except Exception:
                log.exception("account %s could not be looked at; the others are", account_id)

    async def _end_deletions(self) -> None:
        clock = self._world.clock
        async with self._world.database.read() as tx:
            overdue = await rows.overdue(tx, clock.now_ms())
        for server_id in overdue:
            try:
                async with self._world.database.write() as tx:
                    server = await rows.lock(tx, server_id)
                    # Looked at anew together with what is done: it may have been undeleted in between.
                    if server.delete_at_ms is None or server.deleted_at_ms is not None:
                        continue
                    actor = Actor(account_id=server.account_id, kind="vpsd")
                    await service.vanish(tx, actor, self._ids, clock, server_id)
            except Exception:
                log.exception("server %s could not be deleted for good; the next look tries again", server_id)

    async def _settle(self, account_id: int) -> None:
        async with self._world.database.write() as tx:
            wish = await self._weigh(tx, account_id)
            servers = await rows.of_account(tx, account_id)
        for server in [server for server in servers if self._action(wish, server) is not None]:
            try:
                # Weighed anew together with what is done: a payment may have come in between.
                async with self._world.database.write() as tx:
                    wish = await self._weigh(tx, account_id)
                    await self._carry_out(tx, wish, await rows.lock(tx, server.id))
            except Busy:
                log.debug("server %s is busy; the next look finds it again", server.id)

    async def _weigh(self, tx: Tx, account_id: int) -> Wish:
        clock, settings = self._world.clock, self._world.settings
        since_ms = await billing.note_credit(tx, clock, settings, await accounts.lock_account(tx, account_id))
        if since_ms is None:
            return Wish.RESUME
        return Wish.WAIT if clock.now_ms() < billing.suspends_at_ms(settings, since_ms) else Wish.SUSPEND

    def _action(self, wish: Wish, server: Server) -> Command | None:
        """What a wish means for a server."""
        if server.deleted_at_ms is not None:
            return None
        if wish is Wish.RESUME and server.status == Status.SUSPENDED:
            return Command.RESUME
        if wish is Wish.SUSPEND and server.status in (Status.ACTIVE, Status.STOPPED):
            return Command.SUSPEND
        days = self._world.settings.delete_unpaid_after_days
        if wish is Wish.SUSPEND and server.status == Status.SUSPENDED and days is not None:
            since_ms = server.suspended_at_ms or self._world.clock.now_ms()
            return Command.DELETE if self._world.clock.now_ms() >= since_ms + days * _DAY_MS else None
        return None

    async def _carry_out(self, tx: Tx, wish: Wish, server: Server) -> None:
        action = self._action(wish, server)
        clock, actor = self._world.clock, Actor(account_id=server.account_id, kind="vpsd")
        if action is Command.DELETE:
            await service.vanish(tx, actor, self._ids, clock, server.id)
        elif action is Command.SUSPEND:
            await rows.set_suspended(tx, server.id, server.status, clock.now_ms())
            await self._turn(tx, server, Status.SUSPENDED, action, runs=server.status == Status.ACTIVE)
            days = self._world.settings.delete_unpaid_after_days
            ends = None if days is None else iso_utc(clock.now_ms() + days * _DAY_MS)
            detail = ends and f"It is deleted at {ends} unless there is credit by then."
            await events.add(tx, clock, actor, "server.suspend", "server", server.id, detail)
        elif action is Command.RESUME:
            if await operations.open_operation(tx, server.id) is not None:
                return
            await self._turn(tx, server, Status.STOPPED, action, runs=server.suspended_from != Status.STOPPED)
            await events.add(tx, clock, actor, "server.resume", "server", server.id)

    async def _turn(self, tx: Tx, server: Server, rests: Status, command: Command, *, runs: bool) -> None:
        """A guest that runs, or ran, takes a command; for one that is off a word is enough."""
        if runs:
            await service.begin(tx, self._ids, self._world.clock, server.id, command)
        else:
            await rows.set_status(tx, server.id, rests, None, self._world.clock.now_ms())
