"""The steps that bring servers up and down.

Every step may be repeated: it asks the host for what shall be, and a host where it already is says yes. A step that
raises `Unavailable` is tried again later; `Unusable` ends the operation.
"""

import logging
from collections.abc import Collection, Sequence

from vpsd.billing import rentals
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Ctx
from vpsd.core.db import UniqueViolation
from vpsd.core.ids import mac_address
from vpsd.core.units import GIB
from vpsd.errors import Unavailable, Unusable, waiting_for
from vpsd.flows.backup_steps import completed_backup, kernel_of, roll_back, write_disk_from
from vpsd.flows.boot import Outcome, find_unpaused, watch_boot
from vpsd.flows.job import Job
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostState
from vpsd.hypervisor.protocol import Forward, Guest, GuestSpec, Image, PortsTaken, PowerState
from vpsd.images.seed import seed_iso
from vpsd.lifecycle import ENDS_OFF, RULES, Command, Status, known
from vpsd.network import addresses
from vpsd.operations import history
from vpsd.operations import service as operations
from vpsd.operations.models import OperationStatus
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.models import disks_of
from vpsd.servers.moving import NO_ADDRESS

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _PAUSE_SECONDS = 0.01, 0.1  # between two looks at a guest that shuts down
_PRESS_SECONDS = 4  # a guest that was still booting may have missed the button
_ADDRESS_TRIES = 100  # more than workers could meet at one address


async def reserve_address(job: Job) -> None:
    """Have an address for the server; who meets another at the same one takes the next."""
    with waiting_for("an address: all of them are in use, or rest"):
        for _ in range(_ADDRESS_TRIES):
            try:
                async with job.write(ends=reserve_address) as ctx:
                    await addresses.assign(ctx, job.server.id)
            except UniqueViolation:
                continue
            return
        raise Unavailable.plain("Other servers took every address that was tried at the same moment.")


async def fetch_image(job: Job) -> None:
    """Have the operating system's image on the host; a server that has its disk needs none."""
    await _note_lost_disk(job)
    if job.server.provisioned_at_ms is not None or job.server.base is not None:
        return
    if job.server.source_backup_id is not None:
        backup = await completed_backup(job, job.server.source_backup_id)
        base, cmdline = await kernel_of(job, backup)
        firmware = backup.firmware
    else:
        async with job.runtime.read() as ctx:
            system = await servers.operating_system(ctx, job.server.id)
        image = await job.ensure_image(system)
        _require_room(job, system, image)
        base, cmdline, firmware = image.key, image.cmdline if image.kernel else None, image.firmware
    async with job.write(ends=fetch_image) as ctx:
        await updates.set_base(ctx, job.server.id, job.new_generation, base, cmdline, firmware)


async def _note_lost_disk(job: Job) -> None:
    """Have the row say that the disk is gone where a rebuild has removed it and was given up before it could say so."""
    if job.server.provisioned_at_ms is None:
        return
    async with job.runtime.read() as ctx:
        os_id = await _given_up_rebuild(ctx, job.server.id)
    if os_id is None or job.disk in (await job.runtime.hypervisor.volumes()).disks:
        return
    async with job.write() as ctx:
        await updates.set_discarded(ctx, job.server.id, os_id)
    await job.refresh()


async def _given_up_rebuild(ctx: Ctx, server_id: int) -> int | None:
    """The system of the rebuild since which the server was never up, if it may have removed the disk."""
    for operation in await history.latest(ctx, server_id):
        if operation.command == Command.REBUILD:
            is_over = operation.status in (OperationStatus.FAILED, OperationStatus.CANCELLED)
            may_have_removed = operation.step in (discard_disk.__name__, operations.CLEAN_UP_STEP)
            return operation.argument if is_over and may_have_removed else None
        command = known(operation.command)
        ran = command is not None and RULES[command].success is Status.ACTIVE
        if ran and operation.status == OperationStatus.SUCCEEDED:
            return None
    return None


def _require_room(job: Job, system: OperatingSystem, image: Image) -> None:
    """Raise `Unusable` for an image that turns out to be larger than the disk that is paid for."""
    if image.virtual_size_bytes > job.server.storage_gb * GIB:
        raise Unusable.plain(
            f"{system.name} needs a disk of {image.disk_gb} GB, and the server's plan has {job.server.storage_gb}. "
            "Choose a larger plan."
        )


async def make_disk(job: Job) -> None:
    """Have the server's disk, as large as its plan says; once it held a customer's data it is never made anew."""
    hypervisor, size_bytes = job.runtime.hypervisor, job.server.storage_gb * GIB
    if job.operation.command != Command.RESTORE:
        await roll_back(job)  # a restore that never came to its end
    if job.server.provisioned_at_ms is None and job.server.source_backup_id is None:
        assert job.server.base is not None
        await hypervisor.ensure_disk(job.disk, job.server.base, size_bytes)
        return
    if job.server.provisioned_at_ms is None:
        assert job.server.source_backup_id is not None
        await write_disk_from(job, await completed_backup(job, job.server.source_backup_id), job.disk)
    if job.disk not in (await hypervisor.volumes()).disks:
        raise Unusable.plain("The server's disk is gone from the host.")
    await hypervisor.grow_disk(job.name, job.disk, size_bytes)


async def write_seed(job: Job) -> None:
    """Have a cloud-init seed that says what the server is called and who may log in."""
    await job.runtime.hypervisor.write_seed(job.name, await seed_of(job))
    async with job.write(ends=write_seed) as ctx:
        await updates.set_seed(ctx, job.server.id, job.server.hostname)


async def seed_of(job: Job) -> bytes:
    """The server's seed."""
    server = job.server
    async with job.runtime.read() as ctx:
        user_data = await servers.user_data(ctx, server.id)
    return seed_iso(
        instance_id=server.uuid,
        hostname=server.hostname,
        ssh_keys=[server.authorized_key] if server.authorized_key else [],
        password_hash=server.root_password_hash,
        mac=mac_address(server.uuid),
        user_data=user_data,
    )


async def define_guest(job: Job) -> None:
    """Have the guest defined as its plan says; one that is paused since a backup that died is powered off."""
    guest = await job.runtime.hypervisor.guest(job.name)
    is_left = guest is not None and guest.power is PowerState.PAUSED and guest.paused_by is None
    if is_left and job.operation.command != Command.RECOVER:
        await job.runtime.hypervisor.power_off(job.name)
    await _define(job, privileged=job.server.ssh_port in (None, 22))


async def _define(job: Job, *, privileged: bool, avoid: Collection[str] = ()) -> None:
    async with job.runtime.read() as ctx:
        address = await addresses.find(ctx, job.server.id)
    if address is None or address in avoid:
        async with job.write() as ctx:
            address = await addresses.assign(ctx, job.server.id, avoid)
    await job.runtime.hypervisor.define(spec_of(job, address, privileged=privileged))


def spec_of(job: Job, address: str, *, privileged: bool) -> GuestSpec:
    """What the server's guest is defined by."""
    server = job.server
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
        forwards=forwards(job.runtime.settings.guest_ports, privileged=privileged),
        firmware=server.firmware,
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
    """Have the guest running; where the host's QEMU may not open low ports, with high ones.

    Where a guest has the address that the database knows nothing of, as after an older copy of that was put back, a
    server that was never up gets another one; one that was keeps its own, and waits.
    """
    hypervisor = job.runtime.hypervisor
    privileged = job.server.ssh_port in (None, 22)
    job.powered_on = await _is_off(job)
    try:
        await hypervisor.power_on(job.name)
    except PortsTaken:
        present = await hypervisor.guests()
        taken = {guest.address for guest in present.values() if guest.name != job.name and not _powered_off(guest)}
        is_others = job.name in present and present[job.name].address in taken
        if (is_others and job.server.provisioned_at_ms is not None) or not (is_others or privileged):
            raise
        privileged = privileged and is_others
        await _define(job, privileged=privileged, avoid=taken)
        await hypervisor.power_on(job.name)
    async with job.write(ends=power_on) as ctx:
        await updates.set_ssh_port(ctx, job.server.id, 22 if privileged else 2222)


async def await_boot(job: Job) -> None:
    """Wait until the guest is up; one that is silent is left running, with a note in `status_detail`.

    Where that loses nothing, one that gets nowhere is powered off and on once. Raises `Unusable` for a new disk that
    does not boot even then, and for a guest that does not stay on; one that powers itself off has stopped.
    """
    boot = await watch_boot(job)
    if boot.outcome is Outcome.DIED or (boot.outcome is Outcome.STUCK and _may_cut_power(job)):
        await job.report(0.5, boot.describe("It is powered on once more."))
        await job.runtime.hypervisor.power_off(job.name)
        await job.runtime.hypervisor.power_on(job.name)
        boot = await watch_boot(job)
        if boot.outcome is Outcome.DIED or (boot.outcome is Outcome.STUCK and _is_new_disk(job)):
            await job.runtime.hypervisor.power_off(job.name)
            raise Unusable.plain(boot.describe("It was powered off.", twice=True))
    if boot.outcome in (Outcome.SLOW, Outcome.STUCK):
        job.result = boot.describe("It was left running.")
        await _record_boot(job, job.result)
        return
    job.went_off = boot.outcome is Outcome.OFF
    await _record_boot(job, None)


def _is_new_disk(job: Job) -> bool:
    """Whether the guest has never been up from its disk: its making, and a restore."""
    return job.server.provisioned_at_ms is None or job.server.previous_boot is not None


def _may_cut_power(job: Job) -> bool:
    """Never of a server that was up before, unless vpsd alone powered it on, after its guest had died."""
    return _is_new_disk(job) or (job.operation.command == Command.RECOVER and job.powered_on)


async def _is_off(job: Job) -> bool:
    return _powered_off(await find_unpaused(job))


async def _record_boot(job: Job, status_detail: str | None) -> None:
    """The guest is its customer's from now on; one that is only silent costs, too, for it runs."""
    async with job.write(ends=await_boot) as ctx:
        await updates.forget_freeze(ctx, job.server.id)
        address = await addresses.assign(ctx, job.server.id)
        is_here = job.runtime.hypervisor.is_here
        await updates.set_booted(ctx, job.server.id, address if is_here else None)
        if not is_here and status_detail is None:
            status_detail = NO_ADDRESS
        if status_detail is not None:  # what an earlier step has said stays
            await updates.set_status_detail(ctx, job.server.id, status_detail)
        deleted = (await servers.row(ctx, job.server.id)).deleted_at_ms is not None
        if job.server.provisioned_at_ms is None and not deleted:
            await rentals.confirm_rental(ctx, job.server.id, job.operation.created_at_ms)


async def shut_down(job: Job) -> None:
    """Ask the guest to shut down (ACPI), and power it off when its time is over; the operation says which it was.

    One that the host holds cannot shut down before it goes on. Where it is to be off in the end its power is cut when
    the time is over; where it is to run again, that raises `GuestPaused`: a reboot must not cost what it has written.
    """
    clock, hypervisor = job.runtime.clock, job.runtime.hypervisor
    timeout_seconds = job.runtime.settings.stop_timeout_seconds
    until = clock.monotonic() + timeout_seconds
    press_at, pause_seconds = clock.monotonic(), _FIRST_PAUSE_SECONDS
    while clock.monotonic() < until:
        guest = await _guest_to_stop(job)
        if _powered_off(guest):
            job.result = "shut down by ACPI"
            return
        if clock.monotonic() >= press_at and guest is not None and guest.paused_by is None:
            press_at = clock.monotonic() + _PRESS_SECONDS
            await _press_button(job)
        await job.pause(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _PAUSE_SECONDS)
    guest = await _guest_to_stop(job)
    if not _powered_off(guest):
        await hypervisor.power_off(job.name)
    held = "" if guest is None or guest.paused_by is None else f" ({guest.paused_by.text})"
    job.result = f"did not shut down by ACPI within {timeout_seconds} s{held}: powered off"


async def _press_button(job: Job) -> None:
    """Ask the guest to shut down; where it is to be off in the end, one that hangs need not listen."""
    try:
        await job.runtime.hypervisor.request_shutdown(job.name)
    except Unavailable as error:
        if job.operation.command not in ENDS_OFF:
            raise
        log.warning("operation %s: %s", job.operation.id, error)


async def _guest_to_stop(job: Job) -> Guest | None:
    """The guest; raises `GuestPaused` where the host holds one that is to run again."""
    if job.operation.command in ENDS_OFF:
        return await job.runtime.hypervisor.guest(job.name)
    return await find_unpaused(job)


def _powered_off(guest: Guest | None) -> bool:
    return guest is None or guest.power in (PowerState.OFF, PowerState.CRASHED)


async def pull_plug(job: Job) -> None:
    """Have the guest off, now."""
    await job.runtime.hypervisor.power_off(job.name)
    job.result = "powered off without a shutdown"


async def fetch_next_image(job: Job) -> None:
    """Have the image of the system that the server will have; the one it has is untouched until then."""
    async with job.runtime.read() as ctx:
        system = await catalog.find_operating_system(ctx, job.operation.argument or 0)
    if system is None:
        raise Unusable.plain(f"There is no operating system {job.operation.argument} any more.")
    _require_room(job, system, await job.ensure_image(system))


async def discard_disk(job: Job) -> None:
    """Have nothing left of the old guest and its disk; what follows makes the server as if for the first time."""
    await job.runtime.hypervisor.remove(job.name, await job.old_disks())
    async with job.write() as ctx:
        assert job.operation.argument is not None
        await updates.set_discarded(ctx, job.server.id, job.operation.argument)


async def clean_up_rebuild(job: Job) -> str | None:
    """Have the row say that the old disk is gone, where a rebuild was given up between the two: a start makes it."""
    assert job.operation.argument is not None
    if job.server.provisioned_at_ms is None or job.disk in (await job.runtime.hypervisor.volumes()).disks:
        return None
    async with job.write() as ctx:
        await updates.set_discarded(ctx, job.server.id, job.operation.argument)
    return "Its old disk is gone; a start makes the new one."


async def remove_guest(job: Job) -> None:
    """Have nothing of the server left on its host, nor on one that it has left."""
    await job.runtime.hypervisor.remove(job.name, await job.old_disks())
    if job.server.previous_host_id is None:
        return
    async with job.runtime.read() as ctx:
        host = await hosts.row(ctx, job.server.previous_host_id)
    if host.state != HostState.FENCED and host.removed_at_ms is None:  # else `vpsd check` finds it when that is back
        left = job.hypervisor_at(host)
        await left.remove(job.name, disks_of(job.server, job.name, (await left.volumes()).disks))


async def release_address(job: Job) -> None:
    """Give the address back, now that nothing listens on it."""
    async with job.write() as ctx:
        await addresses.release(ctx, job.server.id)
        await updates.set_purged(ctx, job.server.id)
