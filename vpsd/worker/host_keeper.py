"""Looks after hosts: for each that this process has the lease of, the loops that keep its rows and guests together.

Every host has tasks of its own, so that one that does not answer stalls nobody else's.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from vpsd.core.clock import every
from vpsd.core.ending import end_all
from vpsd.errors import DatabaseUnavailable, Misconfigured, Unavailable
from vpsd.hosts import leases
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, Host
from vpsd.hosts.status import HostStatus
from vpsd.hypervisor.protocol import HostFacts
from vpsd.runtime import Runtime
from vpsd.servers import unplaced
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

Say = Callable[[str], None]
Greet = Callable[[HostFacts], None]


class _Kept(msgspec.Struct):
    address: Address  # of the connection that the tasks use
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

    async def run(self) -> None:
        """Work until cancelled; then others may take over at once."""
        try:
            await every(self._runtime.clock, _PERIOD_SECONDS, self.keep)
        finally:
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
                self._kept[host.id] = _Kept(host.address, await self._begin(host))
        await place_servers(self._runtime)

    async def _begin(self, host: Host) -> list[asyncio.Task[None]]:
        try:
            runtime = self._runtime.at(host, HostStatus())
        except Misconfigured as error:  # until its address is another one
            self._say(f"host {host.name} cannot be used: {error}")
            async with self._runtime.write() as ctx:
                await hosts.record_unreachable(ctx, host.id, str(error))
            return []
        return [
            asyncio.create_task(loop.run(), name=f"{type(loop).__name__} of {host.name}")
            for loop in (
                HostWatcher(runtime, self._say, self._welcome),
                Reconciler(runtime),
                BootWatcher(runtime),
                Sampler(runtime),
                GuestReader(runtime),
                ImageCollector(runtime),
                ThawChecker(runtime),
                Drainer(runtime),
            )
        ]

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
