"""Compares the rows with the host, and lets the host win.

This is the only way by which what happens on a host by itself (a guest that powers itself off, a QEMU that dies, an
operator with virsh) reaches a row, and it speaks only while no operation is open on the server.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum

from vpsd.core.clock import every
from vpsd.core.context import Ctx
from vpsd.core.units import HOUR_MS
from vpsd.errors import Busy
from vpsd.events import service as events
from vpsd.hypervisor.protocol import Guest, PowerState, guest_name
from vpsd.lifecycle import Command, Status
from vpsd.operations import service as operations
from vpsd.operations.models import OperationStatus
from vpsd.runtime import HostRuntime
from vpsd.servers import commands
from vpsd.servers import queries as servers
from vpsd.servers.models import LockedServer, ServerRow
from vpsd.servers.transitions import found, transition
from vpsd.worker.pauses import Pauses
from vpsd.worker.stale_guests import end_stale

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0  # the net under the host's events
_RECOVERIES_AN_HOUR = 3
_REBOOT = "server.reboot"
_ONE_REBOOT_MS = 2000


class Correction(StrEnum):
    """What follows from a status and what the host says."""

    STOPPED = "stopped"  # the guest went down on purpose
    RECOVER = "recover"  # it should run and does not, or runs and was not known to
    SUSPEND = "suspend"  # it runs, and there is no credit for it
    SOFT_DELETE = "retire"  # it runs, and it is deleted


# Status and what the host says (None: it knows no such guest). Pairs that are not here are in order.
CORRECTIONS: Mapping[tuple[Status, PowerState | None], Correction] = {
    (Status.ACTIVE, PowerState.OFF): Correction.STOPPED,
    (Status.ACTIVE, PowerState.CRASHED): Correction.RECOVER,
    (Status.ACTIVE, PowerState.PAUSED): Correction.RECOVER,
    (Status.ACTIVE, None): Correction.RECOVER,
    (Status.STOPPED, PowerState.RUNNING): Correction.RECOVER,
    (Status.ERROR, PowerState.RUNNING): Correction.RECOVER,
    (Status.SUSPENDED, PowerState.RUNNING): Correction.SUSPEND,
    (Status.DELETED, PowerState.RUNNING): Correction.SOFT_DELETE,
}


class Reconciler:
    """Looks at the host now and then, and at once when the host reports a change."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime
        self._pauses = Pauses(runtime)
        self._rebooted: set[str] = set()  # guests that went through a reboot that vpsd did not ask for

    async def run(self) -> None:
        """Work until cancelled."""
        wake = asyncio.Event()
        self.watch(wake)
        await every(self._runtime.clock, _POLL_SECONDS, self.reconcile, wake=wake)

    def watch(self, wake: asyncio.Event) -> None:
        """Have the host say what happens: it sets `wake`."""
        loop = asyncio.get_running_loop()

        def changed(_: str) -> None:
            loop.call_soon_threadsafe(wake.set)

        def rebooted(name: str) -> None:
            self._rebooted.add(name)
            changed(name)

        self._runtime.hypervisor.watch(changed, rebooted)

    async def reconcile(self) -> None:
        """One look at everything."""
        # The rows first: what is seen of the guests then says nothing about a row that has changed since.
        async with self._runtime.read() as ctx:
            present = await servers.present(ctx, self._runtime.host_id)
            busy = await operations.busy_servers(ctx)
        guests = await self._runtime.hypervisor.guests()
        await end_stale(self._runtime, [guests[name] for name in guests.keys() - self._names(present)])
        uuids = {guest_name(self._runtime.instance, server.id): server.uuid for server in present}
        guests = {name: guest for name, guest in guests.items() if guest.uuid == uuids.get(name)}  # no other server's
        await self._pauses.look(present, guests)
        rebooted, self._rebooted = self._rebooted, set()
        for server in present:
            if guest_name(self._runtime.instance, server.id) in rebooted:
                await self._tell_of_reboot(server.id)
            guest = guests.get(guest_name(self._runtime.instance, server.id))
            if server.deleted_at_ms is not None or not _may_correct(busy.get(server.id), server, guest):
                continue
            if _correction(server, guest) is not None or _has_new_hostname(server):
                await self.correct(server, guest)

    def _names(self, present: Sequence[ServerRow]) -> set[str]:
        return {guest_name(self._runtime.instance, server.id) for server in present}

    async def _tell_of_reboot(self, server_id: int) -> None:
        """Put down that a guest rebooted by itself: a reboot through vpsd powers it off and on, which is none to it."""
        async with self._runtime.write() as ctx:
            server = await servers.lock(ctx, server_id)
            ctx = ctx.in_account(server.account_id)
            # Every worker hears of it.
            if server.deleted_at_ms is None and not await events.was_recorded(ctx, _REBOOT, server_id, _ONE_REBOOT_MS):
                log.info("server %s: the guest rebooted by itself", server_id)
                await events.record(ctx, _REBOOT, "server", server_id, "the guest rebooted by itself")

    async def correct(self, seen: ServerRow, guest: Guest | None) -> None:
        """Bring a server together with its guest, of which that was seen after the row; not if that has changed."""
        try:
            async with self._runtime.write() as ctx:
                server = await servers.lock(ctx, seen.id)
                # Compared with itself, not with a clock: that may have been set, or be another machine's.
                if (server.updated_at_ms, server.status) != (seen.updated_at_ms, seen.status):
                    return
                present = await operations.open_operation(ctx, server.id)
                if not _may_correct(None if present is None else Command(present.command), server, guest):
                    return
                correction = _correction(server, guest)
                if correction is Correction.STOPPED:
                    log.info("server %s: the guest went down by itself", server.id)
                    await transition(ctx, server, Status.STOPPED, found("the guest went down by itself"))
                elif correction is Correction.RECOVER:
                    await _recover(ctx, server, guest)
                elif correction is not None:
                    log.warning("server %s is %s and its guest runs: stopping it", server.id, server.status)
                    await commands.enqueue(ctx, server, Command(correction), detail="the guest was found running")
                elif _has_new_hostname(server):
                    await commands.enqueue(ctx, server, Command.CONFIGURE)
        except Busy:
            log.debug("server %s: somebody else was quicker", seen.id)


async def _recover(ctx: Ctx, server: LockedServer, guest: Guest | None) -> None:
    state = "unknown to the host" if guest is None else guest.power.value
    tried = await operations.count_since(ctx, server.id, Command.RECOVER, ctx.now_ms - HOUR_MS)
    restore_id = await _failed_restore(ctx, server)
    if restore_id is not None or tried < _RECOVERIES_AN_HOUR:
        log.warning("server %s is %s, its guest is %s: bringing them together", server.id, server.status, state)
        await commands.enqueue(ctx, server, Command.RECOVER, restore_id, detail=f"the guest was found {state}")
    elif server.status != Status.ERROR:
        reason = f"The guest was found {state} again, after {tried} recoveries within an hour; start tries anew."
        log.warning("server %s: %s", server.id, reason)
        await transition(ctx, server, Status.ERROR, found(reason), error=reason)


async def _failed_restore(ctx: Ctx, server: LockedServer) -> int | None:
    """The restore that came to nothing, where that is why the server is in error: not its guest's fault."""
    last = await operations.last(ctx, server.id) if server.status == Status.ERROR else None
    failed = last is not None and (last.command, last.status) == (Command.RESTORE, OperationStatus.FAILED)
    return last.id if last is not None and failed else None


def _has_died(server: ServerRow, guest: Guest | None) -> bool:
    """Whether the guest should run and nobody has stopped it."""
    return server.status == Status.ACTIVE and (guest is None or guest.power is PowerState.CRASHED)


def _may_correct(under_way: Command | None, server: ServerRow, guest: Guest | None) -> bool:
    """Whether anything may follow from what was seen beside a command that is under way.

    A guest that died is brought back although its backup is: that gives way. One that is moved is where its move says.
    """
    return under_way is None or (under_way is not Command.MIGRATE and _has_died(server, guest))


def _correction(server: ServerRow, guest: Guest | None) -> Correction | None:
    if guest is not None and (guest.paused_by is not None or guest.moving):
        return None  # `Pauses`, or the end of its move, lets it go on; its power is not cut
    return CORRECTIONS.get((Status(server.status), None if guest is None else guest.power))


def _has_new_hostname(server: ServerRow) -> bool:
    """Whether the seed on the host has to be written anew, for the next boot."""
    return server.status == Status.ACTIVE and server.seed_hostname != server.hostname
