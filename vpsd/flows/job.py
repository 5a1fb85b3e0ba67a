"""What a worker holds while it carries an operation out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import msgspec

from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Ctx
from vpsd.core.db import UniqueViolation
from vpsd.core.ending import end_all, is_ending
from vpsd.errors import DatabaseUnavailable, waiting_for
from vpsd.hosts import base_images
from vpsd.hosts.models import Host
from vpsd.hypervisor.names import disk_generation, disk_name, guest_name
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import Hypervisor, Image, Progress
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.operations.service import Lease, LostLease
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers.models import Server, disks_of

_POLL_SECONDS = 0.1  # slirp leaves sockets behind when a port is polled faster

T = TypeVar("T")


class Superseded(Exception):
    """Another command waits to take over: let go now."""


class LeaseClock:
    """For how long this worker may go on, by a clock that nobody sets.

    It counts from before the lease was asked for, and ends before the lease does. So it holds also where the lease
    cannot be renewed, or the worker was stopped.
    """

    def __init__(self, monotonic: Callable[[], float], since: float) -> None:
        """`since`: when the lease was asked for, in seconds of `monotonic`."""
        self._monotonic = monotonic
        self.renewed(since)

    def renewed(self, since: float) -> None:
        """The lease was renewed, asked for at that moment."""
        self._until = since + operations.WORK_SECONDS

    def seconds_left(self) -> float:
        """How long this worker may go on; 0 or less when its time is over."""
        return self._until - self._monotonic()

    def check(self) -> None:
        """Raise `LostLease` when its time is over; from any thread."""
        if self.seconds_left() <= 0:
            raise LostLease


class Job:
    """One operation, leased by this worker, and the server that it is about."""

    def __init__(
        self, runtime: HostRuntime, host: Host, operation: Operation, server: Server, lease_clock: LeaseClock
    ) -> None:
        """What the steps do to the host through `runtime.hypervisor` is done on behalf of this operation's lease."""
        self._owner = Owner(server.uuid, f"{operation.id}.{operation.fence}", lease_clock.check)
        self.runtime = msgspec.structs.replace(runtime, hypervisor=runtime.hypervisor.held_by(self._owner))
        self.host = host  # where the server is, as it was when the operation was taken up
        self.server = server
        self.operation = operation
        self.lease = Lease.of(operation)
        self.lease_clock = lease_clock
        self.name = guest_name(runtime.instance, server.id)
        self.result: str | None = None
        self.step = (0, 1)  # which of how many
        self.steps: Sequence[Callable[[Job], Awaitable[None]]] = ()
        self.is_next_saved = False  # the row says already that the next step is the one to go on with
        # Ends the operation in a transaction of its last step; False where another command waits.
        self.end: Callable[[Ctx], Awaitable[bool]] | None = None
        self.has_ended = False
        self.superseded = False
        self.together = False  # others work beside it: what it saves may be committed with what they do
        self.powered_on = False  # this worker has powered the guest on
        # When it is given up, by what passes steadily; None: never.
        self.ends_at: float | None = None
        if operation.deadline_at_ms is not None:
            # The clock may have been set since the operation was claimed: that gives up nothing.
            left_ms = operation.deadline_at_ms - min(runtime.clock.now_ms(), runtime.jumps.before_ms())
            self.ends_at = runtime.clock.monotonic() + left_ms / 1000
        self.went_off = False  # the guest has powered itself off since

    @property
    def step_name(self) -> str | None:
        """The step that is done, or that is to be done first; None: none was begun yet."""
        if not self.steps or self.operation.step == operations.CLEAN_UP_STEP:
            return self.operation.step
        return self.steps[self.step[0]].__name__

    def hypervisor_at(self, host: Host) -> Hypervisor:
        """Another host, held on behalf of the same lease."""
        return self.runtime.hypervisors.at(host).held_by(self._owner)

    def go_on_at(self, host: Host) -> None:
        """The server is on another host from now on."""
        hypervisor = self.hypervisor_at(host)
        self.runtime = msgspec.structs.replace(self.runtime, hypervisor=hypervisor, host_id=host.id)
        self.host = host

    @property
    def disk(self) -> str:
        """The disk that the guest runs from."""
        return disk_name(self.name, self.server.disk)

    @property
    def new_generation(self) -> int:
        """The disk that this operation makes, if it makes one: none before or after it has that name."""
        return disk_generation(self.server.uuid, self.operation.uuid)

    async def old_disks(self) -> list[str]:
        """What the host has of the server's disks, but for the one that this operation makes."""
        present = (await self.runtime.hypervisor.volumes()).disks
        return sorted(disks_of(self.server, self.name, present) - {disk_name(self.name, self.new_generation)})

    @asynccontextmanager
    async def write(self, ends: Callable[["Job"], Awaitable[None]] | None = None) -> AsyncIterator[Ctx]:
        """A transaction in the server's account, committed only while the operation is still this worker's.

        `ends`: the step that has nothing left to do behind this; where it is the one that runs, the next one is begun
        in the same transaction, and behind the last one the operation ends.
        """
        following = self.step[0] + 1
        runs = following <= len(self.steps) and ends is self.steps[following - 1]
        begins_next, is_last = runs and following < len(self.steps), runs and following == len(self.steps)
        async with self.runtime.write(together=self.together) as ctx:
            await servers.lock(ctx, self.server.id)  # before the operation, as requests do
            if begins_next:
                await self.save_step(ctx, following)
            else:
                await operations.hold_lease(ctx, self.lease)
            yield ctx.in_account(self.server.account_id)
            if begins_next:
                server = await servers.row(ctx, self.server.id)  # as the next step finds it
            has_ended = is_last and self.end is not None and await self.end(ctx)
        self.has_ended = has_ended
        if begins_next:
            self.server, self.is_next_saved = server, True

    async def save_step(self, ctx: Ctx, index: int) -> None:
        """Save which step comes next; raises `LostLease`."""
        await operations.save_step(ctx, self.lease, self.steps[index].__name__, index / len(self.steps))

    async def refresh(self) -> None:
        """Read the server anew."""
        async with self.runtime.read() as ctx:
            self.server = await servers.row(ctx, self.server.id)

    async def report(self, progress: float, detail: str) -> None:
        """Show how far the present step is, from 0 to 1."""
        index, steps = self.step
        async with self.runtime.write() as ctx:
            await operations.report(ctx, self.lease, (index + progress) / steps, detail)

    async def pause(self, seconds: float = _POLL_SECONDS) -> None:
        """Wait a little; raises `Superseded` when another command wants to take over."""
        if self.superseded:
            raise Superseded
        if is_ending():
            raise asyncio.CancelledError
        await self.runtime.clock.sleep(seconds)

    async def ensure_image(self, system: OperatingSystem) -> Image:
        """Have an operating system's image, on this machine and on the host; its size corrects the catalogue's."""

        async def fetch(progress: Progress) -> Image:
            with waiting_for(f"the image of {system.name}, which cannot be had now"):
                image = await self.runtime.images.ensure(system, lambda part, text: progress(part * 0.7, text))
            hypervisor, place = self.runtime.hypervisor, self.runtime.place
            await self.have_base(image, lambda part, text: progress(0.7 + part * 0.3, text), hypervisor, place)
            return image

        image = await self.watched(fetch)
        if image.disk_gb != system.image_disk_gb:
            async with self.runtime.write() as ctx:
                await catalog.set_image_disk(ctx, system.id, image.disk_gb)
        await self._keep_schema(system)
        return image

    async def has_base(self, key: str, hypervisor: Hypervisor | None = None, place: str | None = None) -> bool:
        """Whether an image is complete on the host, or another one, and nobody sends or removes it there now."""
        async with self.runtime.read() as ctx:
            if await base_images.is_claimed(ctx, place or self.runtime.place, key):
                return False
        return await (hypervisor or self.runtime.hypervisor).has_base(key)

    async def have_base(self, image: Image, progress: Progress, hypervisor: Hypervisor, place: str) -> None:
        """Have an image on a host; where another operation sends it there, or to the pool, that is waited for."""
        while not await self.has_base(image.key, hypervisor, place):
            async with base_images.claimed(self.runtime, place, image.key, lease=self.lease) as has_it:
                if has_it:
                    await hypervisor.ensure_base(image, progress)
                    return
            progress(0.0, "waiting for the image, which is sent to the host for another server")
            await self.pause()

    async def _keep_schema(self, system: OperatingSystem) -> None:
        """Put down what the image's cloud-init takes, for every process that takes requests."""
        schema = self.runtime.images.cloud_config_schema(system)
        if schema is None:
            return
        async with self.runtime.read() as ctx:
            known = await catalog.find_cloud_config_schema(ctx, system.id)
        if known != schema:
            with suppress(UniqueViolation):  # another worker was quicker
                async with self.runtime.write() as ctx:
                    await catalog.save_cloud_config_schema(ctx, system.id, schema)

    async def watched(self, work: Callable[[Progress], Awaitable[T]]) -> T:
        """Do slow work while showing its latest progress and listening for a command that takes over."""
        # Progress comes from threads and child processes many times a second: the row is written once a second at most.
        latest: list[tuple[float, str]] = []

        def progress(fraction: float, text: str) -> None:
            latest[:] = [(fraction, text)]

        task = asyncio.ensure_future(work(progress))
        try:
            while True:
                done, _ = await asyncio.wait(
                    {task}, timeout=1.0
                )  # real time: the work is real, whatever the clock says
                if done:
                    return task.result()
                if latest:
                    with suppress(DatabaseUnavailable):  # as long as the lease lasts the work goes on
                        await self.report(*latest.pop())
                if self.superseded:
                    raise Superseded
        finally:
            await end_all({task})
            if not task.cancelled():
                task.exception()  # if it failed just now, nobody asks any more
