"""Holds the rows against the world, and lets the world win.

This is the only way by which what happens on a host by itself (a guest that powers itself off, a QEMU that dies, an
operator with virsh) reaches a row, and it speaks only while no operation is open on the server.
"""

import asyncio
import logging
from collections.abc import Mapping
from enum import StrEnum

from vpsd.core.db import Tx
from vpsd.core.ids import Ids
from vpsd.errors import Busy, Unavailable
from vpsd.hypervisor.protocol import Guest, PowerState, guest_name
from vpsd.operations import service as operations
from vpsd.servers import rows, service
from vpsd.servers.jobs import World
from vpsd.servers.lifecycle import Command, Status
from vpsd.servers.models import Server

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0  # the net under the host's events
_RECOVERIES_AN_HOUR = 3
_HOUR_MS = 3_600_000


class Verdict(StrEnum):
    """What follows from a status and what the host says."""

    STOPPED = "stopped"  # the guest went down on purpose
    RECOVER = "recover"  # it should run and does not, or runs and was not known to
    SUSPEND = "suspend"  # it runs, and there is no credit for it
    RETIRE = "retire"  # it runs, and it is deleted


# Status and the host's word (None: the host knows no such guest). Pairs that are not here are in order.
VERDICTS: Mapping[tuple[Status, PowerState | None], Verdict] = {
    (Status.ACTIVE, PowerState.OFF): Verdict.STOPPED,
    (Status.ACTIVE, PowerState.CRASHED): Verdict.RECOVER,
    (Status.ACTIVE, PowerState.PAUSED): Verdict.RECOVER,
    (Status.ACTIVE, None): Verdict.RECOVER,
    (Status.STOPPED, PowerState.RUNNING): Verdict.RECOVER,
    (Status.ERROR, PowerState.RUNNING): Verdict.RECOVER,
    (Status.SUSPENDED, PowerState.RUNNING): Verdict.SUSPEND,
    (Status.DELETED, PowerState.RUNNING): Verdict.RETIRE,
}


class Reconciler:
    """Looks at the host now and then, and at once when the host reports a change."""

    def __init__(self, world: World, ids: Ids) -> None:
        self._world = world
        self._ids = ids
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()

        def changed(_: str) -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self._world.hypervisor.watch(changed)
        silent = False
        while True:
            self._wake.clear()
            try:
                await self.reconcile()
                silent = False
            except Unavailable as error:
                if not silent:
                    log.warning("the hypervisor does not answer; servers are left as they are: %s", error)
                silent = True
            except Exception:
                log.exception("reconcile met an error; it goes on")
            try:
                await asyncio.wait_for(self._wake.wait(), _POLL_SECONDS)
            except TimeoutError:
                continue

    async def reconcile(self) -> None:
        """One look at everything."""
        seen_at_ms = self._world.clock.now_ms()
        guests = await self._world.hypervisor.guests()
        async with self._world.database.read() as tx:
            servers = await rows.present(tx)
            busy = await operations.busy_servers(tx)
        for server in servers:
            guest = guests.get(guest_name(self._world.instance, server.id))
            if server.deleted_at_ms is not None or (server.id in busy and not _is_down(server, guest)):
                continue
            if self._differs(server, guest):
                await self._settle(server.id, guest, seen_at_ms)

    @staticmethod
    def _differs(server: Server, guest: Guest | None) -> bool:
        return _verdict(server, guest) is not None or (
            server.status == Status.ACTIVE and server.seed_hostname != server.hostname
        )

    async def _settle(self, server_id: int, guest: Guest | None, seen_at_ms: int) -> None:
        try:
            async with self._world.database.write() as tx:
                server = await rows.lock(tx, server_id)
                # What was seen before the row last changed says nothing about the row as it is now.
                if server.updated_at_ms >= seen_at_ms:
                    return
                # A guest that died is brought back although its backup is under way: that gives way.
                if not _is_down(server, guest) and await operations.open_operation(tx, server_id) is not None:
                    return
                verdict = _verdict(server, guest)
                if verdict is Verdict.STOPPED:
                    log.info("server %s: the guest went down by itself", server_id)
                    await rows.set_status(tx, server_id, Status.STOPPED, None, self._world.clock.now_ms())
                elif verdict is Verdict.RECOVER:
                    await self._recover(tx, server, guest)
                elif verdict in (Verdict.SUSPEND, Verdict.RETIRE):
                    log.warning("server %s is %s and its guest runs: stopping it", server_id, server.status)
                    await service.begin(tx, self._ids, self._world.clock, server_id, Command(verdict))
                elif server.seed_hostname != server.hostname:
                    await operations.add(tx, self._ids, self._world.clock, server_id, Command.CONFIGURE)
        except Busy:
            log.debug("server %s: somebody else was quicker", server_id)

    async def _recover(self, tx: Tx, server: Server, guest: Guest | None) -> None:
        now = self._world.clock.now_ms()
        found = "unknown to the host" if guest is None else guest.power.value
        tried = await operations.count_since(tx, server.id, Command.RECOVER, now - _HOUR_MS)
        if tried < _RECOVERIES_AN_HOUR:
            log.warning("server %s is %s, its guest is %s: bringing them together", server.id, server.status, found)
            await service.begin(tx, self._ids, self._world.clock, server.id, Command.RECOVER)
        elif server.status != Status.ERROR:
            reason = f"The guest was found {found} again, after {tried} recoveries within an hour; start tries anew."
            log.warning("server %s: %s", server.id, reason)
            await rows.set_status(tx, server.id, Status.ERROR, reason, now)


def _is_down(server: Server, guest: Guest | None) -> bool:
    """Whether the guest should run and nobody has stopped it."""
    return server.status == Status.ACTIVE and (guest is None or guest.power is PowerState.CRASHED)


def _verdict(server: Server, guest: Guest | None) -> Verdict | None:
    return VERDICTS.get((Status(server.status), None if guest is None else guest.power))
