"""How each command is carried out: a declared list of steps, and the steps.

Every step may be repeated: it asks the host for what shall be, and a host where it already is says yes. A step that
raises `Unavailable` is tried again later; `Unusable` ends the operation.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Protocol, TypeVar

import msgspec

from vpsd.addresses import service as addresses
from vpsd.backups import rows as backups
from vpsd.backups import schedule
from vpsd.backups.copying import Stored, chunk_numbers, contents, everything, store
from vpsd.backups.models import Backup, Kind, State
from vpsd.backups.vault import Place, Vault
from vpsd.billing import service as billing
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem
from vpsd.core.clock import Clock
from vpsd.core.db import Database, Tx, UniqueViolation
from vpsd.core.ids import mac_address
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import (
    Forward,
    GuestSpec,
    Hypervisor,
    Image,
    PortsTaken,
    Power,
    Progress,
    disk_name,
    guest_name,
)
from vpsd.images.seed import seed_iso
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.operations.service import Lease
from vpsd.servers import rows
from vpsd.servers.lifecycle import Command, Status
from vpsd.servers.models import Made, Server
from vpsd.settings import Settings

_POLL_SECONDS = 0.1  # slirp leaves sockets behind when a port is polled faster
_PRESS_SECONDS = 4  # a guest that was still booting may have missed the button
_ADDRESS_TRIES = 100  # more than workers could meet at one address
_GIB = 1 << 30
_FAILED_SHOWN_MS = 7 * 24 * 3600 * 1000
_DAILY_AGAIN_MS = 30 * 60 * 1000

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
    vault: Vault
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


async def reserve_address(job: Job) -> None:
    """Have an address for the server; who meets another at the same one takes the next."""
    for _ in range(_ADDRESS_TRIES):
        try:
            async with job.write() as tx:
                await addresses.assign(tx, job.world.clock, job.world.settings.network, job.server.id)
        except UniqueViolation:
            continue
        return
    raise Unavailable("Other servers took every address that was tried at the same moment.")


async def fetch_image(job: Job) -> None:
    """Have the operating system's image on the host; a server that has its disk needs none."""
    if job.server.provisioned_at_ms is not None or job.server.base is not None:
        return
    if job.server.source_backup_id is not None:
        backup = await _whole_backup(job, job.server.source_backup_id)
        base, cmdline = await _kernel_of(job, backup)
    else:
        async with job.world.database.read() as tx:
            system = await rows.operating_system(tx, job.server.id)
        image = await _ensure_image(job, system)
        base, cmdline = image.key, image.cmdline if image.kernel else None
    async with job.write() as tx:
        await rows.set_base(tx, job.server.id, base, cmdline)


async def _ensure_image(job: Job, system: OperatingSystem) -> Image:
    async def fetch(progress: Progress) -> Image:
        image = await job.world.images.ensure(system, lambda part, text: progress(part * 0.7, text))
        await job.world.hypervisor.ensure_base(image, lambda part, text: progress(0.7 + part * 0.3, text))
        return image

    return await _watched(job, fetch)


async def _watched(job: Job, work: Callable[[Progress], Awaitable[T]]) -> T:
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


async def make_disk(job: Job) -> None:
    """Have the server's disk, as large as its plan says; once it held a customer's data it is never made anew."""
    hypervisor, size_bytes = job.world.hypervisor, job.server.storage_gb * _GIB
    if job.operation.command != Command.RESTORE:
        await go_back(job)  # a restore that never came to its end
    if job.server.provisioned_at_ms is None and job.server.source_backup_id is None:
        assert job.server.base is not None
        await hypervisor.ensure_disk(job.disk, job.server.base, size_bytes)
        return
    if job.server.provisioned_at_ms is None:
        assert job.server.source_backup_id is not None
        await _write_disk(job, await _whole_backup(job, job.server.source_backup_id), job.disk)
    if job.disk not in (await hypervisor.volumes()).disks:
        raise Unusable("The server's disk is gone from the host.")
    await hypervisor.grow_disk(job.name, job.disk, size_bytes)


async def write_seed(job: Job) -> None:
    """Have a cloud-init seed that says what the server is called and who may log in."""
    server = job.server
    async with job.world.database.read() as tx:
        user_data = await rows.user_data(tx, server.id)
    content = seed_iso(
        instance_id=server.uuid,
        hostname=server.hostname,
        ssh_keys=[server.authorized_key] if server.authorized_key else [],
        password_hash=server.root_password_hash,
        mac=mac_address(server.uuid),
        user_data=user_data,
    )
    await job.world.hypervisor.write_seed(job.name, content)
    async with job.write() as tx:
        await rows.set_seed(tx, server.id, server.hostname)


async def define_guest(job: Job) -> None:
    """Have the guest defined as its plan says."""
    await job.world.hypervisor.define(await _guest_spec(job, privileged=job.server.ssh_port in (None, 22)))


async def _guest_spec(job: Job, *, privileged: bool) -> GuestSpec:
    """The server as a guest."""
    server = job.server
    async with job.write() as tx:
        address = await addresses.assign(tx, job.world.clock, job.world.settings.network, server.id)
    assert server.base is not None
    return GuestSpec(
        name=job.name,
        disk=job.disk,
        uuid=server.uuid,
        vcpus=server.vcpus,
        memory_mb=server.memory_mb,
        base=server.base,
        direct_kernel=server.kernel_cmdline is not None,
        cmdline=server.kernel_cmdline or "",
        mac=mac_address(server.uuid),
        address=address,
        forwards=forwards(job.world.settings.guest_ports, privileged=privileged),
    )


def forwards(guest_ports: Sequence[int], *, privileged: bool) -> tuple[Forward, ...]:
    """Which port of the address leads to which port of the guest.

    Where ports below 1024 may not be opened, 22 becomes 2222 and the others move up by 8000, as in 8080 and 8443.
    """

    def host_port(port: int) -> int:
        if privileged or port >= 1024:
            return port
        return 2222 if port == 22 else port + 8000

    return tuple(Forward(host_port(port), port) for port in guest_ports)


async def power_on(job: Job) -> None:
    """Have the guest running; where the host's QEMU may not open low ports, with high ones."""
    hypervisor = job.world.hypervisor
    privileged = job.server.ssh_port in (None, 22)
    try:
        await hypervisor.power_on(job.name)
    except PortsTaken:
        if not privileged:
            raise
        privileged = False
        await hypervisor.define(await _guest_spec(job, privileged=False))
        await hypervisor.power_on(job.name)
    async with job.write() as tx:
        await rows.set_ssh_port(tx, job.server.id, 22 if privileged else 2222)


async def await_boot(job: Job) -> None:
    """Wait until the guest answers; one that does not is powered off and on once, and then left off.

    Raises `Unusable` when it did not answer the second time either.
    """
    timeout_seconds = job.world.settings.boot_timeout_seconds
    for attempt in (1, 2):
        if attempt == 2:
            await job.report(0.5, f"no answer within {timeout_seconds} s: powered off and on once more")
            await job.world.hypervisor.power_on(job.name)
        if await _answers(job, timeout_seconds):
            await _note_up(job)
            return
        await job.world.hypervisor.power_off(job.name)
    raise Unusable(f"The guest did not answer within {timeout_seconds} seconds of power-on, twice; it was powered off.")


async def _answers(job: Job, timeout_seconds: int) -> bool:
    clock = job.world.clock
    until_ms = clock.now_ms() + timeout_seconds * 1000
    checked_ms = clock.now_ms()
    while clock.now_ms() < until_ms:
        if await job.world.hypervisor.is_up(job.name):
            return True
        if clock.now_ms() - checked_ms >= 1000:
            checked_ms = clock.now_ms()
            if await _is_down(job):
                return False
        await job.pause()
    return False


async def _is_down(job: Job) -> bool:
    guest = await job.world.hypervisor.guest(job.name)
    return guest is None or guest.power in (Power.OFF, Power.CRASHED)


async def _note_up(job: Job) -> None:
    async with job.write() as tx:
        address = await addresses.assign(tx, job.world.clock, job.world.settings.network, job.server.id)
        await rows.set_up(tx, job.server.id, address, job.world.clock.now_ms())
        server = await rows.get(tx, job.server.id)
        if job.server.provisioned_at_ms is None and server.deleted_at_ms is None:
            await billing.confirm_rental(tx, job.world.clock, job.server.id, job.operation.created_at_ms)


async def shut_down(job: Job) -> None:
    """Ask the guest to shut down (ACPI), and pull the plug when its time is over; the operation says which it was."""
    clock, hypervisor = job.world.clock, job.world.hypervisor
    timeout_seconds = job.world.settings.stop_timeout_seconds
    until_ms = clock.now_ms() + timeout_seconds * 1000
    press_ms = clock.now_ms()
    while clock.now_ms() < until_ms:
        if await _is_down(job):
            job.result = "shut down by ACPI"
            return
        if clock.now_ms() >= press_ms:
            press_ms = clock.now_ms() + _PRESS_SECONDS * 1000
            await hypervisor.request_shutdown(job.name)
        await job.pause()
    await hypervisor.power_off(job.name)
    job.result = f"did not shut down by ACPI within {timeout_seconds} s: powered off"


async def pull_plug(job: Job) -> None:
    """Have the guest off, now."""
    await job.world.hypervisor.power_off(job.name)
    job.result = "powered off without a shutdown"


async def fetch_next_image(job: Job) -> None:
    """Have the image of the system that the server will have; the one it has is untouched until then."""
    async with job.world.database.read() as tx:
        system = await catalog.find_operating_system(tx, job.operation.argument or 0)
    if system is None:
        raise Unusable(f"There is no operating system {job.operation.argument} any more.")
    await _ensure_image(job, system)


async def discard_disk(job: Job) -> None:
    """Have nothing left of the old guest and its disk; what follows makes the server as if for the first time."""
    await job.world.hypervisor.remove(job.name)
    async with job.write() as tx:
        assert job.operation.argument is not None
        await rows.set_discarded(tx, job.server.id, job.operation.argument)


async def copy_disk(job: Job) -> None:
    """Have a copy of the server's disk beside it, as it is at one moment: of what changed since the last, if it may."""
    world, backup = job.world, await _backup_of(job)
    if job.server.provisioned_at_ms is None:
        raise Unusable("The server has no disk yet.")
    async with job.write() as tx:
        parent = await backups.latest(tx, job.server.id, world.vault.target_name, world.vault.key_id)
        await backups.set_parent(tx, backup.id, None if parent is None else parent.id)
    since = parent.uuid if parent is not None and parent.disk == job.server.disk else None
    copying = await world.hypervisor.copy_disk(job.name, backup.uuid, since)
    try:
        while (done := await world.hypervisor.copy_progress(job.name)) < 1.0:
            await job.report(done, "copying the disk")
            await job.pause()
    finally:
        if copying.off:
            await world.hypervisor.power_off(job.name)
    async with job.write() as tx:
        await backups.set_copied(
            tx,
            backup.id,
            os_id=job.server.os_id,
            disk=job.server.disk,
            base=job.server.base,
            kernel_cmdline=job.server.kernel_cmdline,
            incremental=copying.since is not None,
            frozen=copying.frozen,
            frozen_ms=copying.frozen_ms,
            target=world.vault.target_name,
            key_id=world.vault.key_id,
        )


async def store_copy(job: Job) -> None:
    """Have the copy on the target, whole."""
    world, backup = job.world, await _backup_of(job)
    async with world.database.read() as tx:
        parent = None if backup.parent_id is None else await backups.get(tx, backup.parent_id)
        system = await rows.operating_system(tx, job.server.id)
    copied = await world.hypervisor.copied(job.name)
    if not backup.incremental:
        copied = everything(copied)
        if parent is not None and (parent.disk_bytes or 0) > copied.size_bytes:
            parent = None  # a disk never shrinks: this is another one

    async def read(offset: int, length: int) -> bytes:
        return await world.hypervisor.read_copy(job.name, offset, length)

    async def send(progress: Progress) -> Stored:
        return await store(
            world.vault,
            Place(job.server.uuid, backup.uuid),
            copied,
            read,
            None if parent is None else Place(job.server.uuid, parent.uuid),
            {"server": job.server.name, "os": system.slug, "kind": backup.kind},
            backup.created_at_ms,
            progress,
        )

    stored = await _watched(job, send)
    now = world.clock.now_ms()
    async with job.write() as tx:
        expires = backup.expires_at_ms
        if backup.kind == Kind.AUTOMATIC:
            expires = schedule.expires_at_ms(
                world.settings, backup.created_at_ms, await backups.automatic_times(tx, backup.server_id)
            )
        await backups.set_completed(
            tx,
            backup.id,
            disk_bytes=copied.size_bytes,
            size_bytes=stored.data_bytes,
            sent_bytes=stored.sent_bytes,
            completed_at_ms=now,
            expires_at_ms=expires,
        )


async def drop_copy(job: Job) -> None:
    """Have nothing of the copy on the host but its mark, from which the next one goes on."""
    backup = await _backup_of(job)
    await job.world.hypervisor.keep_mark(job.name, backup.uuid)
    await job.world.hypervisor.drop_copy(job.name)
    job.result = f"{backup.kind} {backup.id} is whole"


async def _backup_of(job: Job) -> Backup:
    """The backup that the operation is about."""
    async with job.world.database.read() as tx:
        backup = await backups.get(tx, job.operation.argument or 0)
    assert backup is not None
    return backup


async def _whole_backup(job: Job, backup_id: int) -> Backup:
    """A backup to write a disk from."""
    vault = job.world.vault
    async with job.world.database.read() as tx:
        backup = await backups.get(tx, backup_id)
    if backup is None or backup.status != State.COMPLETED or backup.deleted_at_ms is not None:
        raise Unusable(f"The backup {backup_id} is not there any more.")
    if backup.target != vault.target_name:
        raise Unusable(f"The backup {backup_id} lies in {backup.target}, and vpsd is set to {vault.target_name}.")
    return backup


async def _write_disk(job: Job, backup: Backup, disk: str) -> None:
    """Have a disk with the content of a backup."""
    vault = job.world.vault
    async with job.world.database.read() as tx:
        source = await rows.get(tx, backup.server_id)

    async def write(progress: Progress) -> None:
        manifest = await vault.read_manifest(Place(source.uuid, backup.uuid))
        async with aclosing(contents(vault, manifest, progress)) as content:
            await job.world.hypervisor.write_disk(
                disk, manifest.size_bytes, manifest.chunk_bytes, chunk_numbers(manifest), content
            )

    await _watched(job, write)


async def _kernel_of(job: Job, backup: Backup) -> tuple[str | None, str | None]:
    """The image whose kernel boots a backup's disk, and its command line; the newest where the host has lost it."""
    if backup.kernel_cmdline is None or backup.base in (await job.world.hypervisor.volumes()).bases:
        return backup.base, backup.kernel_cmdline
    async with job.world.database.read() as tx:
        system = await catalog.find_operating_system(tx, backup.os_id)
    assert system is not None
    image = await _ensure_image(job, system)
    return image.key, image.cmdline


async def write_restored_disk(job: Job) -> None:
    """Have a second disk, with the content of the backup; the guest goes on with its own."""
    await go_back(job)
    backup = await _whole_backup(job, job.operation.argument or 0)
    await _kernel_of(job, backup)
    await _write_disk(job, backup, disk_name(job.name, job.operation.id))


async def take_restored_disk(job: Job) -> None:
    """Have the server on its second disk, from which it boots next; the first one is kept until it has."""
    server, backup = job.server, await _backup_of(job)
    if server.disk == job.operation.id:
        return
    await job.world.hypervisor.keep_mark(job.name, None)
    base, cmdline = await _kernel_of(job, backup)
    before = Made(server.disk, server.os_id, server.base, server.kernel_cmdline)
    async with job.write() as tx:
        await rows.set_made(tx, server.id, Made(job.operation.id, backup.os_id, base, cmdline), before)


async def go_back(job: Job) -> None:
    """Undo a restore from whose disk the guest has not booted."""
    if job.server.replaced is None:
        return
    tried = job.disk
    async with job.write() as tx:
        await rows.set_made(tx, job.server.id, msgspec.json.decode(job.server.replaced, type=Made), None)
    await job.refresh()
    await job.world.hypervisor.delete_disk(tried)


async def drop_old_disk(job: Job) -> None:
    """Let go of the disk that a restore has replaced."""
    if job.server.replaced is None:
        return
    server = job.server
    before = msgspec.json.decode(job.server.replaced, type=Made)
    await job.world.hypervisor.delete_disk(disk_name(job.name, before.disk))
    async with job.write() as tx:
        await rows.set_made(tx, server.id, Made(server.disk, server.os_id, server.base, server.kernel_cmdline), None)


async def remove_guest(job: Job) -> None:
    """Have nothing of the server left on the host."""
    await job.world.hypervisor.remove(job.name)


async def release_address(job: Job) -> None:
    """Give the address back, now that nothing listens on it."""
    async with job.write() as tx:
        await addresses.release(tx, job.server.id)
        await rows.set_gone(tx, job.server.id, job.world.clock.now_ms())


Step = Callable[[Job], Awaitable[None]]

_BOOT: tuple[Step, ...] = (
    reserve_address,
    fetch_image,
    make_disk,
    write_seed,
    define_guest,
    power_on,
    await_boot,
)

FLOWS: dict[Command, tuple[Step, ...]] = {
    Command.CREATE: _BOOT,
    Command.START: _BOOT,
    Command.RECOVER: _BOOT,
    Command.STOP: (shut_down,),
    Command.HARD_STOP: (pull_plug,),
    Command.REBOOT: (shut_down, *_BOOT),
    Command.RESIZE: (shut_down, *_BOOT),
    Command.GROW: (make_disk,),
    Command.REBUILD: (fetch_next_image, discard_disk, *_BOOT),
    Command.BACKUP: (copy_disk, store_copy, drop_copy),
    Command.BACKUP_DAILY: (copy_disk, store_copy, drop_copy),
    Command.RESTORE: (
        *(write_restored_disk, shut_down, take_restored_disk),
        *_BOOT,
        drop_old_disk,
    ),
    Command.DELETE: (remove_guest, release_address),
    Command.RETIRE: (shut_down,),
    Command.UNDELETE: (shut_down, *_BOOT),  # one that is still going down would go down after all
    Command.CONFIGURE: (write_seed,),
    Command.SUSPEND: (shut_down,),
    Command.RESUME: _BOOT,
}


async def tidy_copy(job: Job) -> str | None:
    """Have nothing left of a backup that came to nothing; a guest that was off is off again."""
    hypervisor = job.world.hypervisor
    await hypervisor.drop_copy(job.name)
    guest = await hypervisor.guest(job.name)
    if guest is not None and guest.power is Power.PAUSED and job.server.status != Status.ACTIVE:
        await hypervisor.power_off(job.name)
    return None


async def tidy_restore(job: Job) -> str | None:
    """Have the server on the disk that it had before a restore that came to nothing."""
    if job.server.disk == job.operation.id and job.server.replaced is not None:
        await job.world.hypervisor.power_off(job.name)
        await go_back(job)
    if job.server.disk != job.operation.id:
        await job.world.hypervisor.delete_disk(disk_name(job.name, job.operation.id))
    return "The server has the disk that it had before."


# What is done, while the operation is still in hand, for one that fails or gives way; it may say something of it.
TIDY: dict[Command, Callable[[Job], Awaitable[str | None]]] = {
    Command.BACKUP: tidy_copy,
    Command.BACKUP_DAILY: tidy_copy,
    Command.RESTORE: tidy_restore,
}


async def settle(tx: Tx, world: World, operation: Operation, error: str | None) -> None:
    """What else is written down when an operation comes to its end; `error`: why it came to nothing."""
    if operation.command not in (Command.BACKUP, Command.BACKUP_DAILY) or error is None:
        return
    now, backup_id = world.clock.now_ms(), operation.argument
    assert backup_id is not None
    if not await backups.set_failed(tx, backup_id, error, now + _FAILED_SHOWN_MS):
        return  # it was whole by then
    if operation.command == Command.BACKUP_DAILY:
        server = await rows.get(tx, operation.server_id)
        if server.next_backup_at_ms is not None:
            again_ms = min(server.next_backup_at_ms, now + _DAILY_AGAIN_MS)
            await rows.set_next_backup(tx, server.id, again_ms)
