"""The steps of backups and restores, and what is cleaned up after those that come to nothing."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from vpsd.backups import commands, damage, marks, queries
from vpsd.backups.faults import IsDamaged
from vpsd.backups.models import Backup, BackupStatus, Kind
from vpsd.backups.queries import noun
from vpsd.backups.repository import BackupRef, ChunkRef, Damaged
from vpsd.backups.targets import Missing
from vpsd.backups.transfer import StoreResult, chunk_numbers, fill_gaps, store, stream_contents
from vpsd.catalog import service as catalog
from vpsd.errors import DatabaseUnavailable, Unusable, waiting_for
from vpsd.flows import cloud_init, freezing
from vpsd.flows.job import Job
from vpsd.hypervisor.protocol import PowerState, Progress, disk_name
from vpsd.lifecycle import Status
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.models import BootSource

log = logging.getLogger(__name__)

_STORE = "the backups' store, which does not answer as it should"


async def copy_disk(job: Job) -> None:
    """Have an export of the server's disk beside it, as it is at one moment: of what changed since the last one."""
    hypervisor, repository, backup = job.runtime.hypervisor, job.runtime.repository, await _backup_of(job)
    if job.server.provisioned_at_ms is None:
        raise Unusable.plain("The server has no disk yet.")
    mark = await _target_of(job)
    guest = await hypervisor.guest(job.name)
    if guest is not None and guest.paused_by is not None:
        raise Unusable.plain(f"{guest.paused_by.text} Ask again then.")
    if job.server.status == Status.ACTIVE and guest is not None and guest.power is PowerState.OFF:
        raise Unusable.plain("The guest went off by itself. Ask again when the server is stopped.")
    if job.server.status == Status.ACTIVE and (guest is None or guest.power is not PowerState.RUNNING):
        raise Unusable.plain("The guest is not running. It is brought back first; ask again then.")
    found = await cloud_init.ask(job)  # before anything is frozen
    with waiting_for(_STORE):
        parent, is_whole = await _choose_parent(job, backup, mark)
    since = parent.uuid if parent is not None and is_whole and parent.disk == job.server.disk else None
    refusal = None if guest is None or guest.power is not PowerState.RUNNING else await freezing.refusal(job, backup)
    export = await hypervisor.export_disk(job.name, backup.uuid, since, freeze=refusal is None)
    try:
        if refusal is None:
            await freezing.release(job, asked=export.freeze_asked)
        await _await_export(job)
    finally:
        if export.started_paused:
            await _power_off_if_paused(job)
    async with job.write() as ctx:
        await commands.set_exported(
            ctx,
            backup.id,
            os_id=job.server.os_id,
            disk=job.server.disk,
            base=job.server.base,
            kernel_cmdline=job.server.kernel_cmdline,
            firmware=job.server.firmware,
            incremental=export.since_checkpoint is not None,
            frozen=export.frozen,
            frozen_ms=export.frozen_ms,
            consistency_detail=refusal or export.detail,
            cloud_init=found,
            target=mark,
            key_id=repository.key_id,
        )


async def _target_of(job: Job) -> str:
    """The mark of the target that backups are stored on."""
    with waiting_for(_STORE):
        mark = await marks.identify(job.runtime, job.runtime.repository, first_use=True)
    assert mark is not None
    return mark


async def _choose_parent(job: Job, backup: Backup, mark: str) -> tuple[Backup | None, bool]:
    """The backup that this one builds on, recorded as such, and whether it is whole: else everything is copied again.

    None where its manifest cannot be read any more.
    """
    repository = job.runtime.repository
    async with job.write() as ctx:
        parent = await queries.latest(ctx, job.server.id, mark, repository.key_id)
        await commands.set_parent(ctx, backup.id, None if parent is None else parent.id)
    if parent is None:
        return None, True
    try:
        manifest = await repository.read_manifest(BackupRef(job.server.uuid, parent.uuid))
    except Unusable as error:
        log.warning("backup %s stands alone, the one before cannot be read: %s", backup.id, error)
        async with job.write() as ctx:
            await commands.set_parent(ctx, backup.id, None)
        if isinstance(error, Damaged | Missing):
            await damage.note(job.runtime, repository, job.server.id, mark, error)
        return None, True
    if missing := await repository.missing_chunks(manifest):
        lost = Damaged(f"backup {parent.uuid}: {len(missing)} chunks are missing on {repository.location}", missing)
        await repository.check_mark(mark)
        await damage.note(job.runtime, repository, job.server.id, mark, lost)
    async with job.runtime.read() as ctx:
        damaged = await damage.chunks(ctx, job.server.id)
    return parent, not manifest.referenced_chunks() & damaged


async def _await_export(job: Job) -> None:
    clock = job.runtime.clock
    reported_at = clock.monotonic()
    while (done := await job.runtime.hypervisor.export_progress(job.name)) < 1.0:
        if clock.monotonic() - reported_at >= 1:
            reported_at = clock.monotonic()
            with suppress(DatabaseUnavailable):  # as long as the lease lasts the copy goes on
                await job.report(done, "copying the disk")
        await job.pause()


async def _power_off_if_paused(job: Job) -> None:
    """Power off a guest that was only started to be exported, and that nobody has started for good since."""
    guest = await job.runtime.hypervisor.guest(job.name)
    if guest is not None and guest.power is PowerState.PAUSED and guest.paused_by is None:
        await job.runtime.hypervisor.power_off(job.name)


async def store_copy(job: Job) -> None:
    """Have all of the export on the target."""
    await _target_of(job)
    runtime, backup = job.runtime, await _backup_of(job)
    async with runtime.read() as ctx:
        parent = None if backup.parent_id is None else await queries.row(ctx, backup.parent_id)
        system = await servers.operating_system(ctx, job.server.id)
        damaged = await damage.chunks(ctx, job.server.id)
    blocks = await runtime.hypervisor.block_map(job.name)
    if not backup.incremental:
        blocks = fill_gaps(blocks)
        if parent is not None and (parent.disk_bytes or 0) > blocks.size_bytes:
            parent = None  # a disk never shrinks: this is another one

    async def read(offset: int, length: int) -> bytes:
        return await runtime.hypervisor.read_export(job.name, offset, length)

    async def send(progress: Progress) -> StoreResult:
        return await store(
            runtime.repository,
            BackupRef(job.server.uuid, backup.uuid),
            blocks,
            read,
            None if parent is None else BackupRef(job.server.uuid, parent.uuid),
            {"server": job.server.name, "os": system.slug, "kind": backup.kind},
            backup.created_at_ms,
            progress,
            backup.target,
            damaged,
        )

    async with _on_target(job, backup, "A backup before this one is damaged; the next one copies everything again."):
        stored = await job.watched(send)
        if stored.stored_anew:
            await damage.record(
                *(job.runtime, runtime.repository, job.server.id, backup.target), whole=stored.stored_anew
            )
        known = damaged - stored.stored_anew
        while found := await _set_stored(job, backup, blocks.size_bytes, stored, known):
            manifest = await runtime.repository.read_manifest(BackupRef(job.server.uuid, backup.uuid))
            if lost := manifest.referenced_chunks() & found:
                raise Damaged("a backup before this one was found to be damaged while this one was stored", lost)
            known |= found


async def _set_stored(
    job: Job, backup: Backup, disk_bytes: int, stored: StoreResult, known: frozenset[ChunkRef]
) -> frozenset[ChunkRef]:
    """Note that it is stored, unless more chunks are damaged than were known: those."""
    async with job.write() as ctx:  # has the server's lock, as has who finds damage: nothing is missed between the two
        found = await damage.chunks(ctx, job.server.id) - known
        if not found:
            sizes = {"size_bytes": stored.data_bytes, "sent_bytes": stored.sent_bytes}
            await commands.set_stored(ctx, backup.id, disk_bytes=disk_bytes, **sizes)
        return found


async def drop_copy(job: Job) -> None:
    """Have nothing of the export on the host but its checkpoint, from which the next one goes on."""
    backup = await _backup_of(job)
    await _drop_export(job, backup)
    job.result = f"{backup.kind} {backup.id} is stored"


async def _drop_export(job: Job, kept: Backup | None) -> None:
    """Have no export, only the checkpoint of one backup, and a guest that is seen to write if it was frozen."""
    await job.runtime.hypervisor.keep_checkpoint(job.name, None if kept is None else kept.uuid)
    await job.runtime.hypervisor.drop_export(job.name)
    if job.server.unthawed_backup_id is not None:
        await freezing.confirm_thawed(job.runtime, job.server)


async def _backup_of(job: Job) -> Backup:
    """The backup that the operation is about."""
    async with job.runtime.read() as ctx:
        return await queries.row(ctx, job.operation.argument or 0)


async def completed_backup(job: Job, backup_id: int) -> Backup:
    """A backup to write a disk from."""
    with waiting_for(_STORE):
        mark = await marks.identify(job.runtime, job.runtime.repository)
    async with job.runtime.read() as ctx:
        backup = await queries.find(ctx, backup_id)
    if backup is not None and backup.deleted_at_ms is None and backup.status == BackupStatus.DAMAGED:
        raise Unusable.plain(str(IsDamaged(noun((Kind(backup.kind),)), backup_id)))
    if backup is None or backup.status != BackupStatus.COMPLETED or backup.deleted_at_ms is not None:
        raise Unusable.plain(f"The backup {backup_id} no longer exists.")
    if backup.target != mark:
        log.warning("backup %s is on the target %s, and the one in use is %s", backup_id, backup.target, mark)
        raise Unusable.plain(f"The backup {backup_id} is kept where vpsd does not look; its operator can help.")
    return backup


@asynccontextmanager
async def _on_target(job: Job, backup: Backup, if_damaged: str) -> AsyncIterator[None]:
    """What goes wrong because the target is gone is said to be that; else a damage that is met is remembered."""
    repository = job.runtime.repository
    with waiting_for(_STORE):
        try:
            yield
        except Unusable as error:
            await repository.check_mark(backup.target)
            if isinstance(error, Damaged | Missing):
                await damage.note(job.runtime, repository, backup.server_id, backup.target, error)
                raise Unusable(str(error), if_damaged) from error
            raise


async def write_disk_from(job: Job, backup: Backup, disk: str) -> None:
    """Have a disk with the content of a backup."""
    repository = job.runtime.repository
    async with job.runtime.read() as ctx:
        source = await servers.row(ctx, backup.server_id)

    async def write(progress: Progress) -> None:
        manifest = await repository.read_manifest(BackupRef(source.uuid, backup.uuid))
        async with aclosing(stream_contents(repository, manifest, progress)) as content:
            await job.runtime.hypervisor.write_disk(
                disk, manifest.size_bytes, manifest.chunk_bytes, chunk_numbers(manifest), content
            )

    what = noun((Kind(backup.kind),))
    async with _on_target(job, backup, str(IsDamaged(what, backup.id))):
        await job.watched(write)


async def kernel_of(job: Job, backup: Backup) -> tuple[str | None, str | None]:
    """The image whose kernel boots a backup's disk, and its command line; the newest where the host has lost it."""
    if backup.kernel_cmdline is None or (backup.base is not None and await job.has_base(backup.base)):
        return backup.base, backup.kernel_cmdline
    async with job.runtime.read() as ctx:
        system = await catalog.find_operating_system(ctx, backup.os_id)
    assert system is not None
    image = await job.ensure_image(system)
    return image.key, image.cmdline


async def write_restored_disk(job: Job) -> None:
    """Have a second disk, with the content of the backup; the guest goes on with its own."""
    await roll_back(job)
    backup = await completed_backup(job, job.operation.argument or 0)
    await kernel_of(job, backup)
    await write_disk_from(job, backup, disk_name(job.name, job.new_generation))


async def take_restored_disk(job: Job) -> None:
    """Have the server on its second disk, from which it boots next; the first one is kept until it has."""
    server, backup = job.server, await _backup_of(job)
    if _is_restored(job):
        return
    await job.runtime.hypervisor.keep_checkpoint(job.name, None)
    base, cmdline = await kernel_of(job, backup)
    generation, present = job.new_generation, (await job.runtime.hypervisor.volumes()).disks
    if disk_name(job.name, generation) not in present and await _older_disk(job) is not None:
        generation = job.operation.id
    restored = BootSource(generation, backup.os_id, base, cmdline, backup.firmware)
    async with job.write() as ctx:
        await updates.set_boot(ctx, server.id, restored, server.boot_source)


def _is_restored(job: Job) -> bool:
    """Whether the server is on the disk that this restore has written: as this vpsd names it, or an older one did."""
    return job.server.disk in (job.new_generation, job.operation.id)


async def _older_disk(job: Job) -> str | None:
    """The disk that an older vpsd, which named it after the operation's id, has written for this restore."""
    disk = disk_name(job.name, job.operation.id)
    return disk if disk in await job.old_disks() else None


async def roll_back(job: Job) -> None:
    """Undo a restore from whose disk the guest has not booted."""
    previous, tried = job.server.previous_boot_source, job.disk
    if previous is None:
        return
    await job.runtime.hypervisor.power_off(job.name)  # it may run from the disk that goes
    async with job.write() as ctx:
        await updates.set_boot(ctx, job.server.id, previous, None)
    await job.refresh()
    await job.runtime.hypervisor.delete_disk(tried)


async def drop_old_disk(job: Job) -> None:
    """Delete the disk that a restore has replaced."""
    hypervisor = job.runtime.hypervisor
    async with job.write() as ctx:  # first of all: a row must never go back to a disk that may be gone
        await updates.set_boot(ctx, job.server.id, job.server.boot_source, None)
    for disk in await job.old_disks():
        if disk != job.disk:
            await hypervisor.delete_disk(disk)


async def clean_up_backup(job: Job) -> str | None:
    """Have nothing left of a backup that came to nothing; a guest that was off is off again."""
    backup = await _backup_of(job)
    async with job.runtime.read() as ctx:
        parent = None if backup.parent_id is None else await queries.row(ctx, backup.parent_id)
    await _drop_export(job, parent)
    if job.server.status != Status.ACTIVE:
        await _power_off_if_paused(job)
    return None


async def clean_up_restore(job: Job) -> str | None:
    """Have the server on the disk that it had before a restore that came to nothing."""
    if _is_restored(job):
        await roll_back(job)
    if _is_restored(job):
        return None  # it had come to its end
    await job.runtime.hypervisor.delete_disk(disk_name(job.name, job.new_generation))
    if (older := await _older_disk(job)) is not None:
        await job.runtime.hypervisor.delete_disk(older)
    return "The server has the disk that it had before."
