"""Guests that the host has paused because its storage failed them: said, and resumed when it can be.

Their power is never cut: what they wanted to write waits in QEMU, and is written when they go on.
"""

import logging
from collections.abc import Mapping, Sequence

import msgspec

from vpsd.errors import Unavailable, Unusable
from vpsd.events import service as events
from vpsd.hosts import service as hosts
from vpsd.hypervisor.protocol import Guest, PauseReason, PowerState, guest_name
from vpsd.lifecycle import Status
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.seen import SeenServer

log = logging.getLogger(__name__)

_ROOM_MB = 32  # worth going on for, where the reserve is not smaller still
_FIRST_PAUSE_SECONDS = 5
_LONGEST_PAUSE_SECONDS = 60
_STEADY_SECONDS = 10  # who still runs by then goes on; less may be a write that fails again
_SHALL_BE_OFF = (Status.STOPPED, Status.SUSPENDED, Status.DELETED)
_TEXTS = {reason.text for reason in PauseReason}


class _Tries(msgspec.Struct):
    count: int = 0
    next_at: float = 0.0
    resumed_at: float | None = None


class Pauses:
    """What one worker knows of the guests that are paused."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime
        self._tries: dict[int, _Tries] = {}
        self._paused: dict[int, PauseReason] = {}  # who was, when it was last looked at
        self._room_at = 0.0  # when to look for room again

    @property
    def unsteady(self) -> set[int]:
        """The servers to look at again soon: those that are paused, or were resumed a moment ago."""
        return self._paused.keys() | self._tries.keys()

    async def look(self, present: Sequence[SeenServer], guests: Mapping[str, Guest], *, everything: bool) -> None:
        """Say what is new of who is paused and who goes on, and resume whoever can.

        These are all the servers of the host (`everything`), or some.
        """
        ids = {server.id for server in present}
        if everything:
            self._tries = {server_id: tries for server_id, tries in self._tries.items() if server_id in ids}
        kept = {} if everything else {one: reason for one, reason in self._paused.items() if one not in ids}
        paused: dict[int, PauseReason] = {}
        for server in present:
            guest = guests.get(guest_name(self._runtime.instance, server.id))
            shall_run = server.deleted_at_ms is None and server.status not in _SHALL_BE_OFF
            reason = guest.paused_by if guest is not None and shall_run else None
            if reason is not None:
                paused[server.id] = reason
                await self._tell(server, reason.text, "server.paused")
            elif server.status_detail in _TEXTS and not self._is_unsteady(server.id):
                goes_on = guest is not None and guest.power is PowerState.RUNNING
                await self._tell(server, None, "server.unpaused" if goes_on else None)
            if reason is None and not self._is_unsteady(server.id):
                self._tries.pop(server.id, None)
        self._paused = {**kept, **paused}
        self._runtime.host.pauses = frozenset(self._paused.values())
        await self._resume(paused)

    def _is_unsteady(self, server_id: int) -> bool:
        tries = self._tries.get(server_id)
        resumed_at = None if tries is None else tries.resumed_at
        return resumed_at is not None and self._runtime.clock.monotonic() - resumed_at < _STEADY_SECONDS

    async def _tell(self, server: SeenServer, detail: str | None, event: str | None) -> None:
        """Write it down, once."""
        if server.status_detail == detail:
            return
        async with self._runtime.write() as ctx:
            locked = await servers.lock(ctx, server.id)
            if locked.status_detail != server.status_detail:
                return  # another worker was quicker
            await updates.set_status_detail(ctx, server.id, detail)
            if event is not None:
                text = detail or f"It goes on. Before: {server.status_detail}"
                await events.record(ctx.in_account(server.account_id), event, "server", server.id, text)
        if detail is not None:
            log.error("server %s: %s", server.id, detail)
        else:
            log.warning("server %s: not paused any more", server.id)

    async def _resume(self, paused: Mapping[int, PauseReason]) -> None:
        now = self._runtime.clock.monotonic()
        due = {server_id for server_id in paused if self._tries.setdefault(server_id, _Tries()).next_at <= now}
        waits = {server_id for server_id in due if paused[server_id] is PauseReason.STORAGE_FULL}
        if waits and not await self._has_room(now):
            due -= waits
        for server_id in due:
            tries = self._tries[server_id]
            pause_seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS << min(tries.count, 8))
            tries.count, tries.next_at, tries.resumed_at = tries.count + 1, now + pause_seconds, now
            try:
                await self._runtime.hypervisor.resume(guest_name(self._runtime.instance, server_id))
            except (Unavailable, Unusable) as error:
                log.warning("server %s could not be resumed: %s", server_id, error)

    async def _has_room(self, now: float) -> bool:
        """Whether the pool has room again, asked now and then."""
        if now < self._room_at:
            return False
        facts = await self._runtime.hypervisor.facts()
        wanted_mb = max(1, min(_ROOM_MB, hosts.reserve_mb(facts, self._runtime.settings)))
        if facts.storage_free_mb is None or facts.storage_free_mb >= wanted_mb:
            return True
        self._room_at = now + _FIRST_PAUSE_SECONDS
        return False
