"""The steps of backups and restores, and what is tidied up after those that come to nothing."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager

import msgspec

from vpsd.backups import rows as backups
from vpsd.backups import schedule
from vpsd.backups.models import Backup, Kind, State
from vpsd.backups.repository import BackupRef
from vpsd.backups.transfer import StoreResult, chunk_numbers, fill_gaps, store, stream_contents
from vpsd.catalog import service as catalog
from vpsd.core.db import Tx
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import (
    PowerState,
    Progress,
    disk_name,
)
from vpsd.operations.models import Operation
from vpsd.servers import rows
from vpsd.servers.jobs import Job, World, ensure_image, watched
from vpsd.servers.lifecycle import Command, Status
from vpsd.servers.models import Made

log = logging.getLogger(__name__)

_FAILED_SHOWN_MS = 7 * 24 * 3600 * 1000
_DAILY_AGAIN_MS = 30 * 60 * 1000


async def copy_disk(job: Job) -> None:
    """Have a copy of the server's disk beside it, as it is at one moment: of what changed since the last, if it may."""
    hypervisor, repository, backup = job.world.hypervisor, job.world.repository, await _backup_of(job)
    if job.server.provisioned_at_ms is None:
        raise Unusable("The server has no disk yet.")
    guest = await hypervisor.guest(job.name)
    if job.server.status == Status.ACTIVE and (guest is None or guest.power is not PowerState.RUNNING):
        raise Unusable("The guest is not running. It is brought back first; ask again then.")
    parent = await _parent_of(job, backup)
    since = parent.uuid if parent is not None and parent.disk == job.server.disk else None
    copying = await hypervisor.export_disk(job.name, backup.uuid, since)
    try:
        await _await_copy(job)
    finally:
        if copying.started_paused:
            await _put_to_rest(job)
    async with job.write() as tx:
        await backups.set_copied(
            tx,
            backup.id,
            os_id=job.server.os_id,
            disk=job.server.disk,
            base=job.server.base,
            kernel_cmdline=job.server.kernel_cmdline,
            incremental=copying.since_checkpoint is not None,
            frozen=copying.frozen,
            frozen_ms=copying.frozen_ms,
            target=repository.target_name,
            key_id=repository.key_id,
        )


async def _parent_of(job: Job, backup: Backup) -> Backup | None:
    """The backup that this one builds on, noted as such; none where it cannot be read any more."""
    repository = job.world.repository
    async with job.write() as tx:
        parent = await backups.latest(tx, job.server.id, repository.target_name, repository.key_id)
        await backups.set_parent(tx, backup.id, None if parent is None else parent.id)
    if parent is None:
        return None
    try:
        await repository.read_manifest(BackupRef(job.server.uuid, parent.uuid))
    except Unusable as error:
        log.warning("backup %s stands alone, the one before cannot be read: %s", backup.id, error)
        async with job.write() as tx:
            await backups.set_parent(tx, backup.id, None)
        return None
    return parent


async def _await_copy(job: Job) -> None:
    said_ms = job.world.clock.now_ms()
    while (done := await job.world.hypervisor.export_progress(job.name)) < 1.0:
        if job.world.clock.now_ms() - said_ms >= 1000:
            said_ms = job.world.clock.now_ms()
            await job.report(done, "copying the disk")
        await job.pause()


async def _put_to_rest(job: Job) -> None:
    """Power off a guest that was only started to be copied, and that nobody has started for good since."""
    guest = await job.world.hypervisor.guest(job.name)
    if guest is not None and guest.power is PowerState.PAUSED:
        await job.world.hypervisor.power_off(job.name)


async def store_copy(job: Job) -> None:
    """Have the copy on the target, whole."""
    world, backup = job.world, await _backup_of(job)
    async with world.database.read() as tx:
        parent = None if backup.parent_id is None else await backups.get(tx, backup.parent_id)
        system = await rows.operating_system(tx, job.server.id)
    copied = await world.hypervisor.block_map(job.name)
    if not backup.incremental:
        copied = fill_gaps(copied)
        if parent is not None and (parent.disk_bytes or 0) > copied.size_bytes:
            parent = None  # a disk never shrinks: this is another one

    async def read(offset: int, length: int) -> bytes:
        return await world.hypervisor.read_export(job.name, offset, length)

    async def send(progress: Progress) -> StoreResult:
        return await store(
            world.repository,
            BackupRef(job.server.uuid, backup.uuid),
            copied,
            read,
            None if parent is None else BackupRef(job.server.uuid, parent.uuid),
            {"server": job.server.name, "os": system.slug, "kind": backup.kind},
            backup.created_at_ms,
            progress,
        )

    with _in_customers_words(job):
        stored = await watched(job, send)
    async with job.write() as tx:
        await backups.set_stored(
            tx,
            backup.id,
            disk_bytes=copied.size_bytes,
            size_bytes=stored.data_bytes,
            sent_bytes=stored.sent_bytes,
        )


async def drop_copy(job: Job) -> None:
    """Have nothing of the copy on the host but its mark, from which the next one goes on."""
    backup = await _backup_of(job)
    await job.world.hypervisor.keep_checkpoint(job.name, backup.uuid)
    await job.world.hypervisor.drop_export(job.name)
    job.result = f"{backup.kind} {backup.id} is stored"


async def _backup_of(job: Job) -> Backup:
    """The backup that the operation is about."""
    async with job.world.database.read() as tx:
        backup = await backups.get(tx, job.operation.argument or 0)
    assert backup is not None
    return backup


async def whole_backup(job: Job, backup_id: int) -> Backup:
    """A backup to write a disk from."""
    repository = job.world.repository
    async with job.world.database.read() as tx:
        backup = await backups.get(tx, backup_id)
    if backup is None or backup.status != State.COMPLETED or backup.deleted_at_ms is not None:
        raise Unusable(f"The backup {backup_id} is not there any more.")
    if backup.target != repository.target_name:
        log.warning("backup %s lies in %s, and vpsd is set to %s", backup_id, backup.target, repository.target_name)
        raise Unusable(f"The backup {backup_id} lies where vpsd does not look now; its operator can tell.")
    return backup


@contextmanager
def _in_customers_words(job: Job) -> Iterator[None]:
    """Where an operator keeps backups is nothing that customers read: the log has it."""
    try:
        yield
    except (Unavailable, Unusable) as error:
        log.warning("operation %s: %s", job.operation.id, error)
        raise type(error)(str(error).replace(job.world.repository.target_name, "the backups' store")) from error


async def write_disk_from(job: Job, backup: Backup, disk: str) -> None:
    """Have a disk with the content of a backup."""
    repository = job.world.repository
    async with job.world.database.read() as tx:
        source = await rows.get(tx, backup.server_id)

    async def write(progress: Progress) -> None:
        manifest = await repository.read_manifest(BackupRef(source.uuid, backup.uuid))
        async with aclosing(stream_contents(repository, manifest, progress)) as content:
            await job.world.hypervisor.write_disk(
                disk, manifest.size_bytes, manifest.chunk_bytes, chunk_numbers(manifest), content
            )

    with _in_customers_words(job):
        await watched(job, write)


async def kernel_of(job: Job, backup: Backup) -> tuple[str | None, str | None]:
    """The image whose kernel boots a backup's disk, and its command line; the newest where the host has lost it."""
    if backup.kernel_cmdline is None or backup.base in (await job.world.hypervisor.volumes()).bases:
        return backup.base, backup.kernel_cmdline
    async with job.world.database.read() as tx:
        system = await catalog.find_operating_system(tx, backup.os_id)
    assert system is not None
    image = await ensure_image(job, system)
    return image.key, image.cmdline


async def write_restored_disk(job: Job) -> None:
    """Have a second disk, with the content of the backup; the guest goes on with its own."""
    await go_back(job)
    backup = await whole_backup(job, job.operation.argument or 0)
    await kernel_of(job, backup)
    await write_disk_from(job, backup, disk_name(job.name, job.operation.id))


async def take_restored_disk(job: Job) -> None:
    """Have the server on its second disk, from which it boots next; the first one is kept until it has."""
    server, backup = job.server, await _backup_of(job)
    if server.disk == job.operation.id:
        return
    await job.world.hypervisor.keep_checkpoint(job.name, None)
    base, cmdline = await kernel_of(job, backup)
    before = Made(server.disk, server.os_id, server.base, server.kernel_cmdline)
    async with job.write() as tx:
        await rows.set_made(tx, server.id, Made(job.operation.id, backup.os_id, base, cmdline), before)


async def go_back(job: Job) -> None:
    """Undo a restore from whose disk the guest has not booted."""
    if job.server.replaced is None:
        return
    tried = job.disk
    await job.world.hypervisor.power_off(job.name)  # it may run from the disk that goes
    async with job.write() as tx:
        await rows.set_made(tx, job.server.id, msgspec.json.decode(job.server.replaced, type=Made), None)
    await job.refresh()
    await job.world.hypervisor.delete_disk(tried)


async def drop_old_disk(job: Job) -> None:
    """Let go of the disk that a restore has replaced."""
    server, hypervisor = job.server, job.world.hypervisor
    async with job.write() as tx:  # first of all: a row must never go back to a disk that may be gone
        await rows.set_made(tx, server.id, Made(server.disk, server.os_id, server.base, server.kernel_cmdline), None)
    for disk in (await hypervisor.volumes()).disks:
        if disk.partition(".")[0] == job.name and disk != job.disk:
            await hypervisor.delete_disk(disk)


async def tidy_copy(job: Job) -> str | None:
    """Have nothing left of a backup that came to nothing; a guest that was off is off again."""
    backup = await _backup_of(job)
    async with job.world.database.read() as tx:
        parent = None if backup.parent_id is None else await backups.get(tx, backup.parent_id)
    await job.world.hypervisor.keep_checkpoint(job.name, None if parent is None else parent.uuid)
    await job.world.hypervisor.drop_export(job.name)
    if job.server.status != Status.ACTIVE:
        await _put_to_rest(job)
    return None


async def tidy_restore(job: Job) -> str | None:
    """Have the server on the disk that it had before a restore that came to nothing."""
    if job.server.disk == job.operation.id and job.server.replaced is not None:
        await go_back(job)
    if job.server.disk == job.operation.id:
        return None  # it had come to its end
    await job.world.hypervisor.delete_disk(disk_name(job.name, job.operation.id))
    return "The server has the disk that it had before."


# What is done, while the operation is still in hand, for one that fails or gives way; it may say something of it.
TIDY: dict[Command, Callable[[Job], Awaitable[str | None]]] = {
    Command.BACKUP: tidy_copy,
    Command.BACKUP_DAILY: tidy_copy,
    Command.RESTORE: tidy_restore,
}


async def settle(tx: Tx, world: World, operation: Operation, error: str | None) -> None:
    """What else is written down in the transaction in which an operation ends; `error`: why it came to nothing."""
    if operation.command not in (Command.BACKUP, Command.BACKUP_DAILY):
        return
    now = world.clock.now_ms()
    backup = await backups.get(tx, operation.argument or 0)
    assert backup is not None
    if backup.size_bytes is not None:  # it is on the target, whatever went wrong behind it
        expires_at_ms = None
        if backup.kind == Kind.AUTOMATIC:
            earlier = await backups.automatic_times(tx, backup.server_id)
            expires_at_ms = schedule.expires_at_ms(world.settings, backup.created_at_ms, earlier)
        await backups.set_completed(tx, backup.id, now, expires_at_ms)
        return
    await backups.set_failed(tx, backup.id, error or "It was not stored.", now + _FAILED_SHOWN_MS)
    if operation.command == Command.BACKUP_DAILY:
        server = await rows.get(tx, operation.server_id)
        if server.next_backup_at_ms is not None:
            again_ms = min(server.next_backup_at_ms, now + _DAILY_AGAIN_MS)
            await rows.set_next_backup(tx, server.id, again_ms)
