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
from vpsd.hypervisor.names import server_id_of
from vpsd.hypervisor.protocol import Guest, PowerState, guest_name
from vpsd.lifecycle import Command, Status, known
from vpsd.operations import history
from vpsd.operations import service as operations
from vpsd.operations.models import OperationStatus
from vpsd.runtime import HostRuntime
from vpsd.servers import commands, seen
from vpsd.servers import queries as servers
from vpsd.servers.models import LockedServer
from vpsd.servers.seen import SeenServer
from vpsd.servers.transitions import found, transition
from vpsd.worker.followers import Follower
from vpsd.worker.pauses import Pauses
from vpsd.worker.stale_guests import end_stale

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 2.0  # between two looks at what is to pass
_LEAST_SECONDS = 0.01  # clocks are no more exact
_FEW = 16  # guests that are asked for one by one; where there are more, all of them are, in one call
_GOLDEN = 0.6180339887  # of any numbers in a row, its multiples leave the smallest gaps
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
    """Looks at a guest as soon as the host reports a change of it, and at all of them now and then."""

    def __init__(self, runtime: HostRuntime, followers: Sequence[Follower] = ()) -> None:
        """`followers` are told of the rows that were read."""
        self._runtime = runtime
        self._followers = followers
        self._pauses = Pauses(runtime)
        self._wake = asyncio.Event()
        self._rebooted: set[str] = set()  # guests that went through a reboot that vpsd did not ask for
        self._noticed: set[int] = set()  # servers to look at now
        self._again: set[int] = set()  # and those to look at once more, for what was seen of them is to pass
        self._again_at = 0.0
        self._sweep_at = runtime.clock.monotonic()
        # The second one comes earlier, so that many hosts are not looked at in the same moment for ever.
        self._part = runtime.host_id * _GOLDEN % 1

    async def run(self) -> None:
        """Work until cancelled."""
        self.watch()
        await every(self._runtime.clock, self._pause_seconds, self.look, wake=self._wake)

    def _pause_seconds(self) -> float:
        now = self._runtime.clock.monotonic()
        if self._noticed or self._sweep_at <= now:  # the host could not be asked
            return _AGAIN_SECONDS
        return max(_LEAST_SECONDS, (min(self._sweep_at, self._again_at) if self._again else self._sweep_at) - now)

    def watch(self) -> None:
        """Have the host say what happens."""
        loop = asyncio.get_running_loop()

        def changed(name: str) -> None:
            loop.call_soon_threadsafe(self.look_at, server_id_of(name))

        def rebooted(name: str) -> None:
            self._rebooted.add(name)
            changed(name)

        def missed() -> None:
            loop.call_soon_threadsafe(self.look_at_all)

        self._runtime.hypervisor.watch(changed, rebooted, missed)

    def look_at(self, server_id: int) -> None:
        """Something has happened to a server, or its guest."""
        self._noticed.add(server_id)
        self._wake.set()

    def look_at_all(self) -> None:
        """Things may have happened that nobody told of."""
        self._sweep_at = self._runtime.clock.monotonic()
        self._wake.set()

    async def look(self) -> None:
        """One look at what is to be looked at."""
        now = self._runtime.clock.monotonic()
        again = self._again if self._again and now >= self._again_at else set()
        if now >= self._sweep_at or len(self._noticed | again) > _FEW:
            await self.reconcile()
            return
        noticed, self._noticed = self._noticed, set()
        self._again = self._again - noticed - again
        try:
            await self._look_at(noticed, again)
        except BaseException:
            self._noticed |= noticed | again
            raise

    async def reconcile(self) -> None:
        """One look at everything."""
        self._noticed, self._again = set(), set()
        self._sweep_at = self._runtime.clock.monotonic()  # until it was done
        # The rows first: what is seen of the guests then says nothing about a row that has changed since.
        present = await self._rows()
        guests = await self._runtime.hypervisor.guests()
        self._sweep_at = self._runtime.clock.monotonic() + self._part * self._runtime.settings.sweep_seconds
        try:
            await self._bring_together(present, guests, everything=True)
        except BaseException:
            self.look_at_all()
            raise
        self._part = 1.0

    async def _rows(self) -> list[SeenServer]:
        present: list[SeenServer] = []
        while True:
            async with self._runtime.read() as ctx:
                page = await seen.page(ctx, self._runtime.host_id, present[-1].id if present else 0)
            present += page
            if len(page) < seen.BATCH:
                return present
            await asyncio.sleep(0)

    async def _look_at(self, noticed: set[int], again: set[int]) -> None:
        present: list[SeenServer] = []
        guests: dict[str, Guest] = {}
        for server_id in sorted(noticed | again):
            async with self._runtime.read() as ctx:
                server = await seen.one(ctx, self._runtime.host_id, server_id)
            if server is not None:
                present.append(server)
                if server.under_way is not None and server.status != Status.ACTIVE and server_id not in again:
                    self._look_again(server_id)  # what happens to it now is mostly the operation's doing
                    continue
            name = guest_name(self._runtime.instance, server_id)
            guest = await self._runtime.hypervisor.guest(name)
            if guest is not None:
                guests[name] = guest
        await self._bring_together(present, guests, everything=False)

    def _look_again(self, server_id: int) -> None:
        if not self._again:
            self._again_at = self._runtime.clock.monotonic() + _AGAIN_SECONDS
        self._again.add(server_id)

    async def _bring_together(
        self, present: Sequence[SeenServer], guests: Mapping[str, Guest], *, everything: bool
    ) -> None:
        names = {server.id: guest_name(self._runtime.instance, server.id) for server in present}
        for follower in self._followers:
            follower.notice(present, everything=everything)
        await end_stale(self._runtime, [guests[name] for name in sorted(guests.keys() - names.values())])
        uuids = {names[server.id]: server.uuid for server in present}
        guests = {name: guest for name, guest in guests.items() if guest.uuid == uuids.get(name)}  # no other server's
        looked_at = present if everything else [server for server in present if server.id not in self._again]
        await self._pauses.look(looked_at, guests, everything=everything)
        rebooted = self._rebooted & uuids.keys()
        self._rebooted -= self._rebooted.copy() if everything else rebooted
        for name in sorted(rebooted):
            await self._tell_of_reboot(server_id_of(name))
        for server in looked_at:
            guest = guests.get(names[server.id])
            if server.deleted_at_ms is not None:
                continue
            if _correction(server, guest) is not None or _has_new_hostname(server):
                may = _may_correct(server.under_way, server, guest)
                if not may or not await self.correct(server, guest):
                    self._look_again(server.id)
        for server_id in self._pauses.unsteady:
            self._look_again(server_id)

    async def _tell_of_reboot(self, server_id: int) -> None:
        """Put down that a guest rebooted by itself: a reboot through vpsd powers it off and on, which is none to it."""
        async with self._runtime.write() as ctx:
            server = await servers.lock(ctx, server_id)
            ctx = ctx.in_account(server.account_id)
            # Every worker hears of it.
            if server.deleted_at_ms is None and not await events.was_recorded(ctx, _REBOOT, server_id, _ONE_REBOOT_MS):
                log.info("server %s: the guest rebooted by itself", server_id)
                await events.record(ctx, _REBOOT, "server", server_id, "the guest rebooted by itself")

    async def correct(self, before: SeenServer, guest: Guest | None) -> bool:
        """Bring a server together with its guest, of which that was seen after the row.

        False where the row has changed since, or an operation is open: the next look finds what is to be done.
        """
        try:
            async with self._runtime.write() as ctx:
                server = await servers.lock(ctx, before.id)
                # Compared with itself, not with a clock: that may have been set, or be another machine's.
                if (server.updated_at_ms, server.status) != (before.updated_at_ms, before.status):
                    return False
                present = await operations.open_operation(ctx, server.id)
                if not _may_correct(None if present is None else present.command, server, guest):
                    return False
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
            log.debug("server %s: somebody else was quicker", before.id)
            return False
        return True


async def _recover(ctx: Ctx, server: LockedServer, guest: Guest | None) -> None:
    state = "unknown to the host" if guest is None else guest.power.value
    tried = await history.count_since(ctx, server.id, Command.RECOVER, ctx.now_ms - HOUR_MS)
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
    last = await history.last(ctx, server.id) if server.status == Status.ERROR else None
    failed = last is not None and (last.command, last.status) == (Command.RESTORE, OperationStatus.FAILED)
    return last.id if last is not None and failed else None


def _has_died(server: LockedServer | SeenServer, guest: Guest | None) -> bool:
    """Whether the guest should run and nobody has stopped it."""
    return server.status == Status.ACTIVE and (guest is None or guest.power is PowerState.CRASHED)


def _may_correct(under_way: str | None, server: LockedServer | SeenServer, guest: Guest | None) -> bool:
    """Whether anything may follow from what was seen beside a command that is under way.

    A guest that died is brought back although its backup is: that gives way. One that is moved is where its move says,
    and what a later vpsd was told is left to that.
    """
    if under_way is None:
        return True
    return known(under_way) not in (None, Command.MIGRATE) and _has_died(server, guest)


def _correction(server: LockedServer | SeenServer, guest: Guest | None) -> Correction | None:
    if guest is not None and (guest.paused_by is not None or guest.moving):
        return None  # `Pauses`, or the end of its move, lets it go on; its power is not cut
    return CORRECTIONS.get((Status(server.status), None if guest is None else guest.power))


def _has_new_hostname(server: LockedServer | SeenServer) -> bool:
    """Whether the seed on the host has to be written anew, for the next boot."""
    return server.status == Status.ACTIVE and server.seed_hostname != server.hostname
