"""Whether a server may be frozen for a backup, and whether it is seen to write again behind it.

A mark on the server is set before its guest is asked to freeze and taken off when the guest has been seen to write, or
has booted anew. So whoever dies in between, somebody looks (`worker.thaw_checker`), and nothing is frozen meanwhile.
"""

import logging

from vpsd.backups import queries as backups
from vpsd.backups.models import Backup, Kind
from vpsd.core.context import Ctx
from vpsd.events import service as events
from vpsd.flows.job import Job
from vpsd.hypervisor.protocol import PowerState, guest_name
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.models import LockedServer, ServerRow

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 45  # guests with vpsd's own images thaw by themselves after 20, and start their agent anew


async def refusal(job: Job, backup: Backup) -> str | None:
    """Why the server is not to be frozen for this backup; None, with the mark set, where it may be."""
    server = job.server
    if not server.freeze_for_backups:
        return "Not frozen: freeze_for_backups of the server is false."
    if server.unthawed_backup_id is not None and not await confirm_thawed(job.runtime, server):
        return f"Not frozen: the server was not seen to write since it was frozen for {await _named(job, server)}."
    async with job.write() as ctx:
        await updates.set_unthawed(ctx, server.id, backup.id)
    await job.refresh()
    return None


async def release(job: Job, *, asked: bool) -> None:
    """Take the mark off: at once where the guest was not asked to freeze, else when it is seen to write."""
    if not asked:
        async with job.write() as ctx:
            await updates.clear_unthawed(ctx, job.server.id)
        return
    clock = job.runtime.clock
    until = clock.monotonic() + _PATIENCE_SECONDS
    while not (writes := await _writes(job.runtime, job.server)) and clock.monotonic() < until:
        await job.pause(1)
    await _record(job.runtime, job.server, writes)


async def confirm_thawed(runtime: HostRuntime, server: ServerRow) -> bool:
    """Whether a server that has the mark is seen to write again now; what was found is written down."""
    writes = await _writes(runtime, server)
    await _record(runtime, server, writes)
    return writes is True


async def _writes(runtime: HostRuntime, server: ServerRow) -> bool | None:
    name = guest_name(runtime.instance, server.id)
    guest = await runtime.hypervisor.guest(name)
    if guest is None or guest.power in (PowerState.OFF, PowerState.CRASHED):
        return True  # when it boots, nothing is frozen
    return await runtime.hypervisor.ensure_thawed(name)


async def _record(runtime: HostRuntime, server: ServerRow, writes: bool | None) -> None:
    async with runtime.write() as ctx:
        locked = await servers.lock(ctx, server.id)
        backup_id = locked.unthawed_backup_id
        if backup_id is None or backup_id != server.unthawed_backup_id:
            return  # it has booted anew, or was frozen once more
        backup = await backups.row(ctx, backup_id)
        ctx = ctx.in_account(locked.account_id)
        if writes:
            await _record_thawed(ctx, locked, backup)
            return
        detail = _detail(locked, backup, writes)
        if locked.status_detail != detail:
            log.warning("server %s: %s", locked.id, detail)
            await updates.set_status_detail(ctx, locked.id, detail)
            await events.record(ctx, "server.frozen", "server", locked.id, detail)


async def _record_thawed(ctx: Ctx, server: LockedServer, backup: Backup) -> None:
    was_told = (server.status_detail or "").startswith(updates.FROZEN_NOTE)
    await updates.clear_unthawed(ctx, server.id)
    if was_told:
        await updates.set_status_detail(ctx, server.id, None)
        await events.record(
            ctx, "server.thawed", "server", server.id, f"nothing is frozen for {_name(backup)} any more"
        )


def _detail(server: ServerRow, backup: Backup, writes: bool | None) -> str:
    way_out = f"reboot it with POST /api/v1/servers/{server.id}/reboot/."
    if writes is None:
        return f"{updates.FROZEN_NOTE}{_name(backup)}: its agent has not answered since. If it hangs, {way_out}"
    return f"{updates.FROZEN_NOTE}{_name(backup)}: it has not written since. If that lasts, {way_out}"


async def _named(job: Job, server: ServerRow) -> str:
    async with job.runtime.read() as ctx:
        return _name(await backups.row(ctx, server.unthawed_backup_id or 0))


def _name(backup: Backup) -> str:
    return f"{backups.noun((Kind(backup.kind),))} {backup.id}"
