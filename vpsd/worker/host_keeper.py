"""Looks after hosts: for each that this process has the lease of, the loops that keep its rows and guests together.

Every host has tasks of its own, so that one that does not answer stalls nobody else's.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from vpsd.core.clock import every
from vpsd.core.context import Ctx
from vpsd.core.ending import end_all
from vpsd.core.units import MINUTE_MS
from vpsd.errors import DatabaseUnavailable, Misconfigured, Unavailable
from vpsd.hosts import leases
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, Host, HostHealth
from vpsd.hosts.status import HostStatus
from vpsd.hypervisor.protocol import HostFacts
from vpsd.runtime import Runtime
from vpsd.servers import seen, unplaced
from vpsd.worker.boot_watcher import BootWatcher
from vpsd.worker.drainer import Drainer
from vpsd.worker.guest_reader import GuestReader
from vpsd.worker.host_watcher import HostWatcher
from vpsd.worker.image_collector import ImageCollector
from vpsd.worker.reconcile import Reconciler
from vpsd.worker.sampler import Sampler
from vpsd.worker.thaw_checker import ThawChecker

log = logging.getLogger(__name__)

_PERIOD_SECONDS = leases.LEASE_SECONDS / 3
_OPERATIONS_SECONDS = 2.0  # between two looks at what has ended
_CONFIRM_MS = MINUTE_MS  # that a host answers is put down so often, while nothing else is to be said of it

Say = Callable[[str], None]
Greet = Callable[[HostFacts], None]


class Loop(Protocol):
    """What is done at a host now and then."""

    async def run(self) -> None:
        """Work until cancelled."""


class _Kept(msgspec.Struct):
    address: Address  # of the connection that the tasks use
    status: HostStatus
    reconciler: Reconciler | None
    tasks: list[asyncio.Task[None]]


class HostKeeper:
    """Keeps the leases of hosts, and for each of them its loops."""

    def __init__(self, runtime: Runtime, owner: str, say: Say, greet: Greet) -> None:
        """`greet` is called once, as soon as a host is known."""
        self._runtime = runtime
        self._owner = owner
        self._say = say
        self._greet: Greet | None = greet
        self._kept: dict[int, _Kept] = {}
        self._until = runtime.clock.monotonic()
        self._newest_operation: int | None = None
        self._open: set[int] = set()  # servers with an operation that was open at the last look

    async def run(self) -> None:
        """Work until cancelled; then others may take over at once."""
        following = asyncio.create_task(
            every(self._runtime.clock, _OPERATIONS_SECONDS, self.follow_operations), name="HostKeeper, operations"
        )
        try:
            await every(self._runtime.clock, _PERIOD_SECONDS, self.keep)
        finally:
            await end_all({following})
            await self.end()
            try:
                async with self._runtime.write() as ctx:
                    await leases.release(ctx, self._owner)
            except DatabaseUnavailable as error:
                log.debug("the hosts are free when the leases have run out: %s", error.reason)

    @property
    def looks_after(self) -> set[int]:
        """The ids of the hosts whose loops run here."""
        return set(self._kept)

    async def end(self) -> None:
        """End all loops."""
        await self._end(list(self._kept))

    async def keep(self) -> None:
        """Renew the leases, begin with what is new and end with what others have now."""
        asked_at = self._runtime.clock.monotonic()
        try:
            async with self._runtime.write() as ctx:
                found = await leases.keep(ctx, self._owner)
                await self._confirm(ctx, found)
        except DatabaseUnavailable:
            if asked_at >= self._until:  # somebody else may have them by now
                await self.end()
            raise
        self._until = asked_at + leases.LEASE_SECONDS
        present = {host.id for host in found}
        moved = [host.id for host in found if host.id in self._kept and self._kept[host.id].address != host.address]
        await self._end([host_id for host_id in self._kept if host_id not in present] + moved)
        for host in found:
            if host.id not in self._kept:
                self._kept[host.id] = await self._begin(host)
        await place_servers(self._runtime)

    async def _confirm(self, ctx: Ctx, rows: Iterable[Host]) -> None:
        """Put down which hosts still answer, and put right what others, who had them before, wrote late."""
        found = {}
        for host in rows:
            kept = self._kept.get(host.id)
            if kept is None:
                continue
            status, facts = kept.status, kept.status.facts
            is_due = host.seen_at_ms is None or not 0 <= ctx.now_ms - host.seen_at_ms < _CONFIRM_MS
            if status.status is HostHealth.UNREACHABLE and host.health != HostHealth.UNREACHABLE:
                await hosts.record_unreachable(ctx, host.id, status.error or "it does not answer")
            elif status.status is HostHealth.OK and facts is not None and (is_due or host.health != HostHealth.OK):
                found[host.id] = (facts, status.storage)
        await hosts.record_all_facts(ctx, found)

    async def follow_operations(self) -> None:
        """Have the servers looked at again whose operations have ended, in whichever process."""
        async with self._runtime.read() as ctx:
            if self._newest_operation is None:
                self._newest_operation = await seen.newest_operation(ctx)
            found = await seen.recent_operations(ctx, self._newest_operation)
            is_open = {operation.server_id for operation in found if operation.finished_at_ms is None}
            ended = (self._open | {operation.server_id for operation in found}) - is_open
            hosts_of = {server_id: await seen.host_of(ctx, server_id) for server_id in sorted(ended)}
        self._newest_operation = max([self._newest_operation, *(operation.id for operation in found)])
        self._open = is_open
        for server_id, host_id in hosts_of.items():
            kept = None if host_id is None else self._kept.get(host_id)
            if kept is not None and kept.reconciler is not None:
                kept.reconciler.look_at(server_id)

    async def _begin(self, host: Host) -> _Kept:
        status = HostStatus()
        try:
            runtime = self._runtime.at(host, status)
        except Misconfigured as error:  # until its address is another one
            self._say(f"host {host.name} cannot be used: {error}")
            status.status, status.error = HostHealth.UNREACHABLE, str(error)
            async with self._runtime.write() as ctx:
                await hosts.record_unreachable(ctx, host.id, str(error))
            return _Kept(host.address, status, None, [])
        followers = (BootWatcher(runtime), GuestReader(runtime), ThawChecker(runtime))
        reconciler = Reconciler(runtime, followers)
        watcher = HostWatcher(runtime, self._say, self._welcome, reconciler.look_at_all)
        loops = self._loops(
            watcher, reconciler, *followers, Sampler(runtime), ImageCollector(runtime), Drainer(runtime)
        )
        tasks = [asyncio.create_task(loop.run(), name=f"{type(loop).__name__} of {host.name}") for loop in loops]
        return _Kept(host.address, status, reconciler, tasks)

    def _loops(self, *loops: Loop) -> Sequence[Loop]:
        return loops

    def _welcome(self, facts: HostFacts) -> None:
        if self._greet is not None:
            self._greet(facts)
            self._greet = None

    async def _end(self, host_ids: list[int]) -> None:
        await end_all([task for host_id in host_ids for task in self._kept[host_id].tasks])
        for host_id in host_ids:
            del self._kept[host_id]


async def place_servers(runtime: Runtime) -> None:
    """Give hosts to servers that were asked for before there was one."""
    async with runtime.read() as ctx:
        waiting = await unplaced.list_unplaced(ctx)
    if waiting:
        async with runtime.write() as ctx:
            await unplaced.give_to_local_host(ctx)
    for server_id in waiting:
        try:
            async with runtime.write() as ctx:
                await unplaced.place(ctx, server_id)
        except Unavailable as error:
            log.debug("server %s waits for a host: %s", server_id, error)
