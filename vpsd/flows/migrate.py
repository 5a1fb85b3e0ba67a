"""The steps that move a server to another host (docs/decisions/0025).

Until `_hand_over` the row says the old host, and what the new one has of the server is worth nothing; after it the
other way round. Where the guest is in between is asked of both hosts each time (`runs_at`), never remembered: a move
goes on when its worker dies, and libvirt has exactly one side run the guest. So nothing ends while one is on its way.
"""

import logging
from contextlib import suppress

import msgspec

from vpsd.errors import DatabaseUnavailable, Unavailable, Unusable
from vpsd.flows.boot import find_unpaused
from vpsd.flows.job import Job
from vpsd.flows.steps import await_boot, power_on, seed_of, shut_down, spec_of
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostState
from vpsd.hypervisor.moving import DiskLayout, MoveProgress, Side, leave_behind, runs_at, share_pool
from vpsd.hypervisor.protocol import Guest, GuestPaused, Hypervisor, Image, PowerState, Progress
from vpsd.lifecycle import Status
from vpsd.network import addresses
from vpsd.servers import queries as servers
from vpsd.servers import updates
from vpsd.servers.models import disks_of
from vpsd.servers.moving import MOVING, MOVING_OFF, NO_ADDRESS
from vpsd.servers.transitions import found, transition

log = logging.getLogger(__name__)

_LIVE_TRIES = 3  # that may fail on the way before a guest that may be stopped is
_TRIES_AT_SOURCE = 10  # at a host that does not answer, before what is left there is left
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.1, 1.0  # between two looks at a move: it may take hours
_BOTH_RUN = "A guest of the server runs on the other host as well: look which is right, and power the other off."


class _End(msgspec.Struct, frozen=True):
    """One of the two hosts."""

    host: Host
    hypervisor: Hypervisor

    @property
    def is_off(self) -> bool:
        """Whether the operator has said so: then nothing is there, and nobody asks."""
        return self.host.state == HostState.FENCED

    async def guest(self, name: str) -> Guest | None:
        """The guest there."""
        return None if self.is_off else await self.hypervisor.guest(name)


class _Seen(msgspec.Struct, frozen=True):
    """What both hosts say of the guest; while a move is on its way the source speaks for both."""

    progress: MoveProgress | None
    at_source: Guest | None
    at_target: Guest | None

    @property
    def has_arrived(self) -> bool:
        return self.progress is None and runs_at(self.at_source, self.at_target) is Side.TARGET


async def _ends(job: Job) -> tuple[_End, _End]:
    """Where the server comes from, and where it goes."""
    assert job.operation.host_id is not None
    assert job.operation.argument is not None
    async with job.runtime.read() as ctx:
        found = [await hosts.row(ctx, host_id) for host_id in (job.operation.host_id, job.operation.argument)]
    source, target = (_End(host, job.hypervisor_at(host)) for host in found)
    return source, target


def _is_there(job: Job) -> bool:
    return job.server.host_id == job.operation.argument


def _runs(guest: Guest | None) -> bool:
    return guest is not None and (guest.power is PowerState.RUNNING or guest.paused_by is not None)


async def _look(job: Job, source: _End, target: _End) -> _Seen:
    """Ask how far the move is, then where the guest is; raises `Unavailable` where that cannot be told."""
    try:
        progress = None if source.is_off else await source.hypervisor.move_progress(job.name)
        leaving = await source.guest(job.name)
    except Unavailable:  # it does not answer, or says why the move has failed
        arrived = await target.guest(job.name)
        if arrived is None or arrived.moving or arrived.power is not PowerState.RUNNING:
            raise
        return _Seen(None, None, arrived)
    return _Seen(progress, leaving, None if progress is not None else await target.guest(job.name))


async def clear_target(job: Job) -> None:
    """Have nothing of the server at the host that it goes to: what an earlier stay has left is not taken for it."""
    source, target = await _ends(job)
    if job.server.previous_boot is not None:
        raise Unusable.plain("A restore of the server is not confirmed yet. Start it first.")
    guest, volumes = await target.guest(job.name), await target.hypervisor.volumes()
    # In a pool that both see, the disks there are those that it runs from.
    left = set() if share_pool(source.hypervisor, target.hypervisor) else disks_of(job.server, job.name, volumes.disks)
    if guest is not None and guest.power in (PowerState.RUNNING, PowerState.PAUSED):
        raise Unusable(_BOTH_RUN)
    if guest is not None or left:
        # Elsewise it may be the same machine under another address, and all that there is of the server.
        if job.server.previous_host_id != target.host.id or job.disk not in await _disks(source):
            raise Unusable(f"{target.host.name} has something of the server: look with vpsd check what that is.")
        await leave_behind(target.hypervisor, source.hypervisor, job.name, left)
    if job.server.previous_host_id == target.host.id:
        async with job.write() as ctx:
            await updates.forget_previous_host(ctx, job.server.id, target.host.id)


async def _disks(end: _End) -> frozenset[str]:
    return (await end.hypervisor.volumes()).disks


async def move_live(job: Job) -> None:
    """Have a guest that runs run at the other host; one that cannot move like that, or is off, is left to what follows.

    Raises `Unusable` where it cannot, and may not be stopped for it.
    """
    if _is_there(job):
        return
    source, target = await _ends(job)
    seen = await _look(job, source, target)
    if seen.progress is None and not seen.has_arrived:
        await _note_off(job, seen)
        if not _runs(seen.at_source) or not await _depart(job, source, target, seen):
            return
        seen = await _look(job, source, target)
    reported_at, pause_seconds = None, _FIRST_LOOK_SECONDS
    while seen.progress is not None:
        now = job.runtime.clock.monotonic()
        if job.ends_at is not None and now > job.ends_at:
            raise Unusable.plain("It took too long.")
        if reported_at is None or now - reported_at >= 1:
            reported_at = now
            with suppress(DatabaseUnavailable):  # as long as the lease lasts it goes on
                await job.report(seen.progress.fraction, "copying its memory and its disk")
        await job.pause(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _LOOK_SECONDS)
        seen = await _look(job, source, target)
    if not seen.has_arrived:
        raise Unavailable(f"The guest did not arrive at {target.host.name}.", "It did not arrive at the other host.")
    await _hand_over(job, target)
    job.result = "moved while it ran"


async def _note_off(job: Job, seen: _Seen) -> None:
    """Have a server whose guest went down by itself be stopped: it is not to be taken for one stopped for its move."""
    if seen.at_source is not None and seen.at_source.power is PowerState.OFF:
        async with job.write() as ctx:
            server = await servers.lock(ctx, job.server.id)
            if server.status == Status.ACTIVE:
                await transition(ctx, server, Status.STOPPED, found("the guest went down by itself"))
        await job.refresh()


async def _depart(job: Job, source: _End, target: _End, seen: _Seen) -> bool:
    """Have a live move begin; False where it cannot, and the guest may be stopped instead."""
    assert seen.at_source is not None
    if seen.at_source.paused_by is not None:
        raise GuestPaused(seen.at_source.paused_by)
    if seen.at_target is not None:
        raise Unavailable(f"{target.host.name} still has what has arrived of the guest in vain.")
    if job.operation.allows_cold and job.operation.attempts > _LIVE_TRIES:
        return False
    async with job.write() as ctx:
        address = await addresses.assign(ctx, job.server.id)
    try:
        await source.hypervisor.take(job.name)
        layout = await source.hypervisor.disk_layout(job.disk)
        if layout is None:
            raise Unusable.plain("The server's disk is gone from its host.")
        await _have_bases(job, target, layout)
        await target.hypervisor.prepare_disk(job.disk, layout)
        await target.hypervisor.write_seed(job.name, await seed_of(job))
        spec = spec_of(job, address, privileged=job.server.ssh_port in (None, 22))
        await source.hypervisor.start_move(spec, target.hypervisor)
    except Unusable as error:
        if not job.operation.allows_cold:
            text = "It cannot move while it runs, and it may not be stopped for that."
            raise Unusable(f"{text} {error}", text) from error
        log.info("server %s cannot move to %s while it runs: %s", job.server.id, target.host.name, error)
        return False
    return True


async def _have_bases(job: Job, target: _End, layout: DiskLayout) -> None:
    """Have what the disk stands on, and what boots it, at the target."""
    needed = {layout.base, job.server.base if job.server.kernel_cmdline is not None else None} - {None}
    missing = needed - (await target.hypervisor.volumes()).bases
    async with job.runtime.read() as ctx:
        system = await servers.operating_system(ctx, job.server.id)
    for key in sorted(one for one in missing if one is not None):

        async def send(progress: Progress, key: str = key) -> None:
            image: Image | None = job.runtime.images.find(system, key)
            if image is None:
                image = await job.runtime.images.ensure(system, lambda part, text: progress(part * 0.7, text))
            if image.key != key:
                raise Unusable(f"The image {key}, which its disk stands on, is not on this machine any more.")
            await job.have_base(image, progress, target.hypervisor, target.host.place)

        await job.watched(send)


async def stop_to_move(job: Job) -> None:
    """Have the guest off, where it runs still and may be stopped."""
    if _is_there(job):
        return
    source, target = await _ends(job)
    seen = await _look(job, source, target)
    if seen.has_arrived or not _runs(seen.at_source):
        return
    if seen.progress is not None or not job.operation.allows_cold:
        raise Unusable.plain("It was started while it was about to be moved.")
    async with job.write() as ctx:
        if (await servers.lock(ctx, job.server.id)).status_detail in (None, MOVING, NO_ADDRESS):
            await updates.set_status_detail(ctx, job.server.id, MOVING_OFF)
    await source.hypervisor.take(job.name)
    await shut_down(job)


async def move_off(job: Job) -> None:
    """Have the disk of a guest that is off at the other host, and the guest defined there."""
    if _is_there(job):
        return
    source, target = await _ends(job)
    seen = await _look(job, source, target)
    if not seen.has_arrived:
        if source.is_off:
            raise Unusable.plain("Its host was given up before it was moved.")
        if seen.progress is not None or _runs(seen.at_source):
            raise Unusable.plain("It was started while it was about to be moved.")
        await _copy(job, source, target, seen)
    await _hand_over(job, target)
    job.result = "moved while it was off"


async def _copy(job: Job, source: _End, target: _End, seen: _Seen) -> None:
    await source.hypervisor.take(job.name)
    if seen.at_source is not None and seen.at_source.power is PowerState.PAUSED:
        await source.hypervisor.power_off(job.name)  # since a backup that died
    layout = await source.hypervisor.disk_layout(job.disk)
    if layout is None:
        if job.server.provisioned_at_ms is not None:
            raise Unusable.plain("The server's disk is gone from its host.")
        return  # it was never made: it is, where it goes
    async with job.write() as ctx:
        address = await addresses.assign(ctx, job.server.id)
    # What a live try has prepared is empty, and looks as whole as a copy does.
    await _clear_arrival(job, source, target, seen)
    await _have_bases(job, target, layout)
    await job.watched(lambda progress: target.hypervisor.copy_disk(job.disk, source.hypervisor, progress))
    await target.hypervisor.write_seed(job.name, await seed_of(job))
    if seen.at_source is not None:
        spec = spec_of(job, address, privileged=job.server.ssh_port in (None, 22))
        await target.hypervisor.define(spec)  # from here on it is there: the disk is whole


async def _hand_over(job: Job, target: _End) -> None:
    """Have the row say that the server is at the other host, and the first one have its room again."""
    async with job.write() as ctx:
        server = await servers.lock(ctx, job.server.id)
        is_reached = target.hypervisor.is_here and server.provisioned_at_ms is not None
        address = await addresses.assign(ctx, server.id) if is_reached else None
        await updates.set_moved(ctx, server, target.host.id, address)
        await updates.set_seed(ctx, server.id, job.server.hostname)
    await job.refresh()
    job.go_on_at(target.host)


async def power_on_moved(job: Job) -> None:
    """Have a server run again that was stopped for its move."""
    if job.operation.allows_cold and job.server.status == Status.ACTIVE:
        guest = await find_unpaused(job)
        if guest is not None and guest.power in (PowerState.OFF, PowerState.CRASHED):  # never started there
            await power_on(job)


async def clear_source(job: Job) -> None:
    """Have nothing of the server at its former host, once it is seen to be at the new one.

    What a host keeps that does not answer never runs again by itself, and `vpsd check` finds it.
    """
    source, target = await _ends(job)
    try:
        if not source.is_off:
            await _remove_left(job, source, target)
            async with job.write() as ctx:
                await updates.forget_previous_host(ctx, job.server.id, source.host.id)
    except Unavailable as error:
        if job.operation.attempts <= _TRIES_AT_SOURCE:
            raise
        log.warning("server %s has left something on host %s: %s", job.server.id, source.host.name, error)


async def _remove_left(job: Job, source: _End, target: _End) -> None:
    left = await source.guest(job.name)
    disks = disks_of(job.server, job.name, await _disks(source))
    if left is None and not disks:
        return
    if _runs(left):
        raise Unusable(_BOTH_RUN)
    if job.disk in disks and await target.hypervisor.disk_layout(job.disk) is None:
        raise Unusable(f"{target.host.name} has not got the server's disk: what {source.host.name} has is kept.")
    await leave_behind(source.hypervisor, target.hypervisor, job.name, disks)


async def await_moved(job: Job) -> None:
    """Wait until a guest that was powered on at its new host is up."""
    if job.powered_on:
        await await_boot(job)


async def clean_up_move(job: Job) -> str | None:
    """Have a move that came to nothing leave the guest at one of the hosts, and nothing of it at the other.

    Raises `Unavailable` until that can be told: as long as the move may end at the target nothing else may begin.
    """
    source, target = await _ends(job)
    if not _is_there(job):
        seen = await _end_move(job, source, target)
        if not seen.has_arrived:
            await _clear_arrival(job, source, target, seen)
            await _power_on_again(job, source, seen)
            return "It is where it was."
        await _hand_over(job, target)
    with suppress(Unavailable):
        await clear_source(job)
    return "It is at its new host all the same."


async def _end_move(job: Job, source: _End, target: _End) -> _Seen:
    """End what is on its way; where the guest is then."""
    with suppress(Unavailable):  # it does not answer, or tells that the move has failed: either way both are asked next
        if not source.is_off and await source.hypervisor.move_progress(job.name) is not None:
            await source.hypervisor.abort_move(job.name)
            await source.hypervisor.move_progress(job.name)
    seen = await _look(job, source, target)
    if seen.progress is not None:
        raise Unavailable("The guest is still on its way to the other host.")
    return seen


async def _clear_arrival(job: Job, source: _End, target: _End, seen: _Seen) -> None:
    """Remove what has come to the target, as long as the source has the disk."""
    if target.is_off:
        return
    if _runs(seen.at_target):
        raise Unusable(_BOTH_RUN)
    arrived = disks_of(job.server, job.name, await _disks(target))
    if seen.at_target is None and not arrived:
        return
    if job.disk in arrived and not source.is_off and await source.hypervisor.disk_layout(job.disk) is None:
        raise Unusable(f"{source.host.name} has not got the server's disk: what {target.host.name} has is kept.")
    await leave_behind(target.hypervisor, source.hypervisor, job.name, arrived)


async def _power_on_again(job: Job, source: _End, seen: _Seen) -> None:
    """Have a guest run again that was stopped for the move."""
    was_stopped = job.operation.allows_cold and job.server.status == Status.ACTIVE
    if was_stopped and not job.superseded and seen.at_source is not None and seen.at_source.power is PowerState.OFF:
        await source.hypervisor.take(job.name)
        await source.hypervisor.power_on(job.name)
