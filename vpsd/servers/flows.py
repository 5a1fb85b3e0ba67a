"""How each command is carried out: a declared list of steps, and the steps.

Every step may be repeated: it asks the host for what shall be, and a host where it already is says yes. A step that
raises `Unavailable` is tried again later; `Unusable` ends the operation.
"""

from collections.abc import Awaitable, Callable, Sequence

from vpsd.addresses import service as addresses
from vpsd.billing import service as billing
from vpsd.catalog import service as catalog
from vpsd.core.db import UniqueViolation
from vpsd.core.ids import mac_address
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import (
    Forward,
    GuestSpec,
    PortsTaken,
    PowerState,
)
from vpsd.images.seed import seed_iso
from vpsd.servers import rows
from vpsd.servers.backup_steps import (
    copy_disk,
    drop_copy,
    drop_old_disk,
    go_back,
    kernel_of,
    store_copy,
    take_restored_disk,
    whole_backup,
    write_disk_from,
    write_restored_disk,
)
from vpsd.servers.jobs import Job, ensure_image
from vpsd.servers.lifecycle import Command

_PRESS_SECONDS = 4  # a guest that was still booting may have missed the button
_ADDRESS_TRIES = 100  # more than workers could meet at one address
_GIB = 1 << 30


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
        backup = await whole_backup(job, job.server.source_backup_id)
        base, cmdline = await kernel_of(job, backup)
    else:
        async with job.world.database.read() as tx:
            system = await rows.operating_system(tx, job.server.id)
        image = await ensure_image(job, system)
        base, cmdline = image.key, image.cmdline if image.kernel else None
    async with job.write() as tx:
        await rows.set_base(tx, job.server.id, base, cmdline)


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
        await write_disk_from(job, await whole_backup(job, job.server.source_backup_id), job.disk)
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
    """Have the guest defined as its plan says; one that stands still since a backup that died is powered off."""
    guest = await job.world.hypervisor.guest(job.name)
    if guest is not None and guest.power is PowerState.PAUSED and job.operation.command != Command.RECOVER:
        await job.world.hypervisor.power_off(job.name)
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
    return guest is None or guest.power in (PowerState.OFF, PowerState.CRASHED)


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
    await ensure_image(job, system)


async def discard_disk(job: Job) -> None:
    """Have nothing left of the old guest and its disk; what follows makes the server as if for the first time."""
    await job.world.hypervisor.remove(job.name)
    async with job.write() as tx:
        assert job.operation.argument is not None
        await rows.set_discarded(tx, job.server.id, job.operation.argument)


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
