"""What a worker has in its hands while it carries an operation out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import msgspec

from vpsd.backups.repository import Repository
from vpsd.catalog.models import OperatingSystem
from vpsd.core.clock import Clock
from vpsd.core.db import Database, Tx
from vpsd.hypervisor.protocol import (
    Hypervisor,
    Image,
    Progress,
    disk_name,
    guest_name,
)
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.operations.service import Lease
from vpsd.servers import rows
from vpsd.servers.models import Server
from vpsd.settings import Settings

_POLL_SECONDS = 0.1  # slirp leaves sockets behind when a port is polled faster

T = TypeVar("T")


class Images(Protocol):
    """Where images come from."""

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        """The operating system's image, fetched or built on first use."""


class Superseded(Exception):
    """Another command waits to take over: let go now."""


class World(msgspec.Struct, frozen=True):
    """What steps work with."""

    database: Database
    hypervisor: Hypervisor
    images: Images
    repository: Repository
    clock: Clock
    settings: Settings
    instance: str


class Job:
    """One operation in a worker's hands."""

    def __init__(self, world: World, operation: Operation, server: Server) -> None:
        self.world = world
        self.server = server
        self.operation = operation
        self.name = guest_name(world.instance, server.id)
        self.result: str | None = None
        self.step = (0, 1)  # which of how many
        self.superseded = False
        self._lease = Lease.of(operation)

    @property
    def disk(self) -> str:
        """The disk that the guest runs from."""
        return disk_name(self.name, self.server.disk)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        """A transaction that is only committed while the operation is still this worker's."""
        async with self.world.database.write() as tx:
            await rows.lock(tx, self.server.id)  # before the operation, as requests do
            await operations.hold(tx, self._lease)
            yield tx

    async def refresh(self) -> None:
        """Read the server anew."""
        async with self.world.database.read() as tx:
            self.server = await rows.get(tx, self.server.id)

    async def report(self, progress: float, detail: str) -> None:
        """Show how far the present step is, from 0 to 1."""
        index, steps = self.step
        async with self.world.database.write() as tx:
            await operations.report(tx, self._lease, (index + progress) / steps, detail)

    async def pause(self, seconds: float = _POLL_SECONDS) -> None:
        """Wait a little; raises `Superseded` when another command wants to take over."""
        if self.superseded:
            raise Superseded
        await self.world.clock.sleep(seconds)


async def ensure_image(job: Job, system: OperatingSystem) -> Image:
    async def fetch(progress: Progress) -> Image:
        image = await job.world.images.ensure(system, lambda part, text: progress(part * 0.7, text))
        await job.world.hypervisor.ensure_base(image, lambda part, text: progress(0.7 + part * 0.3, text))
        return image

    return await watched(job, fetch)


async def watched(job: Job, work: Callable[[Progress], Awaitable[T]]) -> T:
    """Do slow work while showing its latest progress and listening for a command that takes over."""
    # Progress comes from threads and child processes many times a second: the row is written once a second at most.
    latest: list[tuple[float, str]] = []

    def progress(fraction: float, text: str) -> None:
        latest[:] = [(fraction, text)]

    task = asyncio.ensure_future(work(progress))
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=1.0)
            if done:
                return task.result()
            if latest:
                fraction, text = latest.pop()
                await job.report(fraction, text)
            if job.superseded:
                raise Superseded
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
