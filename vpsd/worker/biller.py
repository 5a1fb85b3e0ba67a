"""Charges what servers cost, and suspends those of accounts that have no credit left.

An account without credit is warned; after the grace its servers are suspended: stopped, with disk and address kept.
With credit again they go back to what they were. Nothing is deleted for lack of money unless the operator has set a
time for it. What customers have deleted is gone for good when the time to undo that is over.
"""

import logging
from enum import StrEnum

from vpsd.accounts import service as accounts
from vpsd.billing import credit
from vpsd.core.clock import every, iso_utc
from vpsd.core.context import Ctx
from vpsd.core.units import DAY_MS
from vpsd.errors import Busy, DatabaseUnavailable
from vpsd.lifecycle import RULES, Command, Status
from vpsd.operations import service as operations
from vpsd.runtime import Runtime
from vpsd.servers import deletion, updates
from vpsd.servers import queries as servers
from vpsd.servers.commands import enqueue
from vpsd.servers.models import LockedServer, ServerRow
from vpsd.servers.transitions import given, transition
from vpsd.worker import clock_jumps
from vpsd.worker.metering import charge_due

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 10.0


class CreditState(StrEnum):
    """What an account has left, which decides what becomes of its servers."""

    COVERED = "covered"  # what was suspended comes back
    GRACE = "grace"  # nothing is left, and the grace lasts
    EXHAUSTED = "exhausted"  # the grace is over, and some day so is the time of what is suspended


class Biller:
    """Looks at the clock now and then, and at every account that may have run out."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.bill)

    async def bill(self) -> None:
        """Charge what is due, and see to the accounts that it concerns."""
        await clock_jumps.look(self._runtime)
        if self._runtime.jumps.unsettled:
            return  # nothing is lost: what is due is made up for
        await self._purge_deleted()
        concerned = await charge_due(self._runtime)
        async with self._runtime.read() as ctx:
            concerned |= {account.id for account in await accounts.list_accounts(ctx) if account.exhausted_at_ms}
            concerned |= await servers.accounts_with_suspended(ctx)
        for account_id in sorted(concerned):
            try:
                await self._see_to(account_id)
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("account %s could not be looked at; the others are", account_id)

    async def _purge_deleted(self) -> None:
        async with self._runtime.read() as ctx:
            due = await servers.purge_due(ctx)
        for server_id in due:
            try:
                async with self._runtime.write() as ctx:
                    server = await servers.lock(ctx, server_id)
                    # Looked at anew together with what is done: it may have been undeleted in between.
                    if server.purge_due_at_ms is not None and server.deleted_at_ms is None:
                        await deletion.purge(ctx.in_account(server.account_id), server)
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("server %s could not be deleted for good; the next look tries again", server_id)

    async def _see_to(self, account_id: int) -> None:
        async with self._runtime.write() as ctx:
            state = await assess(ctx.in_account(account_id))
            found = [server for server in await servers.of_account(ctx, account_id) if _action(ctx, state, server)]
        for server in found:
            try:
                # Assessed anew together with what is done: a payment may have come in between.
                async with self._runtime.write() as ctx:
                    state = await assess(ctx.in_account(account_id))
                    await apply(ctx.in_account(account_id), state, await servers.lock(ctx, server.id))
            except Busy:
                log.debug("server %s is busy; the next look finds it again", server.id)


async def assess(ctx: Ctx) -> CreditState:
    """How the account stands now; kept from others until the transaction ends."""
    since_ms = await credit.update_credit(ctx)
    if since_ms is None:
        return CreditState.COVERED
    over = ctx.now_ms >= credit.suspends_at_ms(ctx.settings, since_ms)
    return CreditState.EXHAUSTED if over else CreditState.GRACE


async def apply(ctx: Ctx, state: CreditState, server: LockedServer) -> None:
    """Do what follows for a server whose row the caller has locked; raises `Busy`.

    A guest that runs, or ran, takes a command; for one that is off another status is enough.
    """
    action = _action(ctx, state, server)
    if action is Command.DELETE:
        await deletion.purge(ctx, server)
    elif action is Command.SUSPEND:
        await updates.set_suspended_from(ctx, server.id, server.status)
        days = ctx.settings.delete_unpaid_after_days
        ends = None if days is None else iso_utc(ctx.now_ms + days * DAY_MS)
        detail = ends and f"It is deleted at {ends} unless there is credit by then."
        if server.status == Status.ACTIVE:
            await enqueue(ctx, server, action, event="server.suspend", detail=detail)
        else:
            await transition(ctx, server, Status.SUSPENDED, given(action, event="server.suspend", detail=detail))
    elif action is Command.RESUME and await operations.open_operation(ctx, server.id) is None:
        if server.suspended_from != Status.STOPPED:
            await enqueue(ctx, server, action, event="server.resume")
        else:
            await transition(ctx, server, Status.STOPPED, given(action, event="server.resume"))


def _action(ctx: Ctx, state: CreditState, server: ServerRow) -> Command | None:
    """What an account's state means for a server."""
    if server.deleted_at_ms is not None:
        return None
    if state is CreditState.COVERED and server.status == Status.SUSPENDED:
        return Command.RESUME
    may_be_suspended = server.status in RULES[Command.SUSPEND].begins_from and server.status != Status.SUSPENDED
    if state is CreditState.EXHAUSTED and may_be_suspended:
        return Command.SUSPEND
    days = ctx.settings.delete_unpaid_after_days
    if state is CreditState.EXHAUSTED and server.status == Status.SUSPENDED and days is not None:
        since_ms = server.suspended_at_ms or ctx.now_ms
        return Command.DELETE if ctx.now_ms >= since_ms + days * DAY_MS else None
    return None
