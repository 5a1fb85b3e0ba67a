"""Compares database, guests, volumes, addresses and the backups' target: what is unknown, what is missing.

Safe beside a running vpsd: a server that an operation is working on is left out, and what lies on the host is only
called unknown when no row spoke for it before the look nor after it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec

from vpsd.backups import marks
from vpsd.backups import queries as backups
from vpsd.backups.models import BackupStatus
from vpsd.core.context import OPERATOR, Ctx
from vpsd.core.db import UniqueViolation
from vpsd.core.sums import SUMS, Difference, Sums
from vpsd.errors import DatabaseUnavailable, Misconfigured, Unavailable, Unusable, VpsdError
from vpsd.hosts import base_images
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host
from vpsd.hosts.service import Used
from vpsd.hypervisor.names import disk_name, guest_name, guest_of, server_id_of
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import Guest, Volumes
from vpsd.lifecycle import AT_REST, FOUND, Command, Status
from vpsd.network import addresses
from vpsd.network.addresses import Assignment
from vpsd.operations import service as operations
from vpsd.operations.moves import open_moves
from vpsd.runtime import HostRuntime, Runtime
from vpsd.servers import capacity, commands
from vpsd.servers import queries as servers
from vpsd.servers.models import LockedServer, Server, disks_of
from vpsd.servers.transitions import found, transition

_OLD_COPY = (
    "Was an older copy of the database put back? Then it may be somebody's, and is left alone: bring the newer "
    "database back, or delete it by hand if nobody needs it."
)

Repair = Callable[[], Awaitable[bool | None]]
"""Puts something in order; False when that was not possible now."""


class Finding(msgspec.Struct, frozen=True):
    """Something that is not in order, and what was done about it."""

    kind: str
    name: str
    text: str
    fixed: str | None = None


class _Look(msgspec.Struct, frozen=True):
    """What a host has."""

    runtime: HostRuntime
    host: Host
    guests: Mapping[str, Guest]
    volumes: Volumes


class _Rows(msgspec.Struct, frozen=True):
    hosts: list[Host]
    servers: dict[int, Server]
    busy: dict[int, str]
    moves: dict[int, tuple[int | None, int | None]]  # by server: the hosts between which it is moved now
    assignments: list[Assignment]


class Audit:
    """One comparison; with `fix`, one repair."""

    def __init__(self, runtime: Runtime, *, fix: bool = False) -> None:
        self._runtime = runtime
        self._fix = fix
        self._findings: list[Finding] = []

    async def run(self) -> list[Finding]:
        """Look, repair if asked to, and report."""
        await self._check_target()
        before = await self._rows()
        looks = [look for host in before.hosts if (look := await self._look(host)) is not None]
        after = await self._rows()
        for of_place in _by_place(looks):
            for look in of_place:
                await self._check_guests(look, looks, before, after)
            await self._check_pool(of_place, looks, before, after)
            for look in of_place:
                await self._check_servers(look, before, after)
        await self._check_used()
        await self._check_sums()
        for held in after.assignments:
            if held.server_id not in before.servers and held.server_id not in after.servers:
                text = f"is held for server {held.server_id}, which is gone"
                await self._report("address", held.address, text, "freed", partial(self._free, held.address))
        return self._findings

    async def _look(self, host: Host) -> _Look | None:
        """What a host has; None, and a finding, where it does not answer."""
        try:
            runtime = self._runtime.at(host)
            return _Look(runtime, host, await runtime.hypervisor.guests(), await runtime.hypervisor.volumes())
        except (Misconfigured, Unavailable, Unusable) as error:
            await self._report("host", host.name, f"cannot be looked at: {error}")
            return None

    async def _check_guests(self, look: _Look, looks: Sequence[_Look], before: _Rows, after: _Rows) -> None:
        guests = look.guests
        await self._check_guests_storage(look, after)
        known = self._known(before, after, [look.host])
        for name in sorted(set(guests) - known.keys()):
            await self._check_ownerless(look, name, guests[name], looks)
        for name in sorted(guests.keys() & known.keys()):
            if guests[name].uuid != known[name].uuid:
                await self._report("guest", name, f"is not that of server {known[name].id}. {_OLD_COPY}")

    async def _check_servers(self, look: _Look, before: _Rows, after: _Rows) -> None:
        guests, volumes = look.guests, look.volumes
        for server in after.servers.values():
            if server.host_id != look.host.id or server.id in before.busy | after.busy:
                continue
            if server.id in before.servers:
                has_disk = disk_name(self._name(server.id), server.disk) in volumes.disks
                guest = guests.get(self._name(server.id))
                await self._check_server(server, guest is not None and guest.uuid == server.uuid, has_disk, after)
                await self._check_left_behind(look, server)

    async def _check_pool(
        self, looks: Sequence[_Look], all_looks: Sequence[_Look], before: _Rows, after: _Rows
    ) -> None:
        """What lies in a pool: all the hosts that share it may have put it there, also one that does not answer."""
        look, guests = looks[0], {name for look in looks for name in look.guests}
        volumes, place = look.volumes, look.host.place
        await self._check_storage(look)
        known = self._known(before, after, [host for host in after.hosts if host.place == place])
        for name in sorted(volumes.guests - guests - known.keys()):
            await self._check_ownerless(look, name, None, all_looks)
        for name in sorted(volumes.unknown):
            await self._report("volume", name, "is in vpsd's pool and unknown; delete it by hand if you do not know it")
        if not before.busy and not after.busy:  # an operation may be sending an image right now
            for key in sorted(volumes.unfinished):
                fixed, repair = "removed from the host; the next use sends it", partial(self._remove_base, look, key)
                await self._report("image", key, "was sent only in part", fixed, repair)

    async def _remove_base(self, look: _Look, key: str) -> bool:
        async with base_images.claimed(self._runtime, look.host.place, key, seconds=60) as has_it:
            if has_it:
                await look.runtime.hypervisor.delete_base(key)
        return has_it

    def _known(self, before: _Rows, after: _Rows, hosts: Sequence[Host]) -> dict[str, Server]:
        """The servers of which something may be on one of the hosts, by guest."""
        return {
            self._name(server_id): row
            for rows in (before, after)
            for server_id, row in rows.servers.items()
            if any(_may_be_on(row, host, rows) for host in hosts)
        }

    async def _check_used(self) -> None:
        """What a host has handed out is the sum of its servers."""
        async with self._runtime.snapshot() as ctx:
            known, counted = await hosts.list_hosts(ctx), await capacity.counted(ctx)
        for host in known:
            stands = Used(host.id, host.used_servers, host.used_vcpus, host.used_memory_mb, host.used_storage_gb)
            right = counted.get(host.id, Used(host.id, 0, 0, 0, 0))
            if stands != right:
                text = f"has {_words(stands)} handed out by its row, and {_words(right)} by its servers"
                await self._report("host", host.name, text, "counted anew", partial(self._recount, host.id))

    async def _recount(self, host_id: int) -> None:
        async with self._runtime.write() as ctx:
            await capacity.recount(ctx, host_id)

    async def _check_sums(self) -> None:
        """What is known of an account without counting is what counting comes to."""
        for sums in SUMS:
            async with self._runtime.read() as ctx:
                differences = await sums.differences(ctx)
            for one in differences:
                text = f"its sums in {sums.table.name} have to be changed by: {one}"
                await self._report("account", str(one.account_id), text, "counted anew", partial(self._add, sums, one))

    async def _add(self, sums: Sums, difference: Difference) -> None:
        async with self._runtime.write() as ctx:
            await sums.add(ctx, [difference])

    async def _check_stale(self, look: _Look, server: Server, name: str, looks: Sequence[_Look]) -> None:
        """What a server has left on a host may go once its disk has been seen where it is now."""
        where = next((other for other in looks if other.host.id == server.host_id), None)
        text = f"was left on host {look.host.name}; server {server.id} is on another"
        if where is None or disk_name(name, server.disk) not in where.volumes.disks:
            await self._report("guest", name, f"{text}, where its disk was not seen: look which is right")
            return
        if where.host.place == look.host.place:  # its files are the server's own
            undefine = partial(look.runtime.hypervisor.held_by(Owner(uuid=server.uuid)).undefine, name)
            await self._report("guest", name, text, "undefined on the host", undefine)
            return
        stale = disks_of(server, name, look.volumes.disks)
        repair = partial(look.runtime.hypervisor.held_by(Owner(uuid=server.uuid)).remove, name, stale)
        await self._report("guest", name, text, "removed from the host", repair)

    async def _check_ownerless(self, look: _Look, name: str, guest: Guest | None, looks: Sequence[_Look]) -> None:
        """What is named after a server that is gone may go; what is named after one that never was is not for us."""
        kind, volumes = "volume" if guest is None else "guest", look.volumes
        async with self._runtime.read() as ctx:
            gone = await servers.find_row(ctx, server_id_of(name))
        if gone is None or (guest is not None and guest.uuid != gone.uuid):
            await self._report(kind, name, f"belongs to no server that the database has ever known. {_OLD_COPY}")
            return
        if gone.purged_at_ms is None:
            await self._check_stale(look, gone, name, looks)
            return
        disks = disks_of(gone, name, volumes.disks)
        if guest is not None or disks or name in volumes.seeds | volumes.exports | volumes.logs:
            repair = partial(look.runtime.hypervisor.held_by(Owner(uuid=gone.uuid)).remove, name, disks)
            await self._report(kind, name, "belongs to no server", "removed from the host", repair)
        for disk in sorted(disk for disk in volumes.disks - disks if guest_of(disk) == name):
            await self._report("volume", disk, f"belongs to no server that the database has ever known. {_OLD_COPY}")

    async def _check_storage(self, look: _Look) -> None:
        facts = await look.runtime.hypervisor.facts()
        reserve_mb = hosts.reserve_mb(facts, self._runtime.settings)
        if facts.storage_free_mb is not None and facts.storage_free_mb < reserve_mb:
            await self._report("storage", facts.name, hosts.storage_low_text(facts.storage_free_mb, reserve_mb))

    async def _check_guests_storage(self, look: _Look, rows: _Rows) -> None:
        for server in rows.servers.values():
            guest = look.guests.get(self._name(server.id)) if server.host_id == look.host.id else None
            if guest is not None and guest.paused_by is not None:
                await self._report("server", f"{server.id} ({server.name})", f"cannot write: {guest.paused_by.text}")

    def _name(self, server_id: int) -> str:
        return guest_name(self._runtime.instance, server_id)

    async def _rows(self) -> _Rows:
        async with self._runtime.read() as ctx:
            present = {server.id: server for server in await servers.present(ctx)}
            known = await hosts.list_hosts(ctx)
            busy, moves = await operations.busy_servers(ctx), await open_moves(ctx)
            between = {move.server_id: (move.host_id, move.argument) for move in moves}
            return _Rows(known, present, busy, between, await addresses.assignments(ctx))

    async def _report(
        self, kind: str, name: str, text: str, fixed: str | None = None, repair: Repair | None = None
    ) -> None:
        """Add a finding; where there is a repair, and repairing is asked for, only what was done is said to be."""
        done = self._fix and fixed is not None and (repair is None or await repair() is not False)
        self._findings.append(Finding(kind, name, text, fixed if done else None))

    async def _free(self, address: str) -> None:
        async with self._runtime.write() as ctx:
            await addresses.free(ctx, address)

    async def _check_target(self) -> None:
        repository = self._runtime.repository
        try:
            await marks.identify(self._runtime, repository)
        except DatabaseUnavailable:
            raise
        except VpsdError as error:
            await self._report("target", repository.location, f"backups cannot be made: {error}")
        async with self._runtime.read() as ctx:
            damaged = [one for one in await backups.stored(ctx) if one.status == BackupStatus.DAMAGED]
        for one in damaged:
            text = f"({one.kind}) of server {one.server_id} is damaged; vpsd backup verify {one.id} says where"
            await self._report("backup", str(one.id), text)

    async def _check_left_behind(self, look: _Look, server: Server) -> None:
        """What a backup or restore that could not clean up has left."""
        hypervisor, volumes, name = look.runtime.hypervisor, look.volumes, self._name(server.id)
        previous = server.previous_boot_source
        owned = {disk_name(name, disk) for disk in (server.disk, server.disk if previous is None else previous.disk)}
        own = disks_of(server, name, volumes.disks)
        for disk in sorted(disk for disk in volumes.disks - owned if guest_of(disk) == name):
            if disk in own:
                repair = partial(hypervisor.delete_disk, disk)
                await self._report("disk", disk, "is not the server's any more", "removed from the host", repair)
            else:
                await self._report("disk", disk, f"is not that of server {server.id}. {_OLD_COPY}")
        if name in volumes.exports:
            repair = partial(hypervisor.held_by(Owner(uuid=server.uuid)).drop_export, name)
            await self._report("copy", name, "was made for a backup that is over", "removed from the host", repair)

    async def _check_server(self, server: Server, has_guest: bool, has_disk: bool, after: _Rows) -> None:
        report = partial(self._report, "server", f"{server.id} ({server.name})")
        idle = f"is {server.status}, and nothing is under way"
        if server.deleted_at_ms is not None:
            text = "is deleted, and nothing is cleaning up after it"
            await report(text, "the clean-up is queued", partial(self._enqueue, server, Command.DELETE))
        elif server.status not in AT_REST and server.purge_due_at_ms is not None:
            await report(idle, "its shutdown is queued", partial(self._enqueue, server, Command.SOFT_DELETE))
        elif server.status not in AT_REST:
            reason = f"Found {server.status} with nothing under way."
            await report(idle, "set to error; start goes on", partial(self._set_error, server, reason))
        elif server.provisioned_at_ms is not None and not has_disk:
            repair = partial(self._set_error, server, "The server's disk is gone from the host.")
            rests = Status.ERROR not in FOUND.get(Status(server.status), ())
            fixed = "set to error; restore the disk, or delete the server"
            await report("has no disk on the host", *((None, None) if rests else (fixed, repair)))
        elif server.status == Status.ACTIVE and not has_guest:
            repair = partial(self._enqueue, server, Command.RECOVER)
            await report("has no guest on the host", "its making anew is queued", repair)
        if server.ip_address is not None and server.id not in {held.server_id for held in after.assignments}:
            repair = partial(self._hold, server, server.ip_address)
            await report(f"does not hold its address {server.ip_address}", "held again", repair)

    async def _enqueue(self, server: Server, command: Command) -> bool:
        async with self._runtime.write(OPERATOR) as ctx:
            locked = await _lock_idle(ctx, server)
            if locked is not None:
                await commands.enqueue(ctx, locked, command, detail="by vpsd check")
            return locked is not None

    async def _set_error(self, server: Server, reason: str) -> bool:
        async with self._runtime.write(OPERATOR) as ctx:
            locked = await _lock_idle(ctx, server)
            if locked is not None:
                await transition(ctx, locked, Status.ERROR, found(reason), error=reason)
            return locked is not None

    async def _hold(self, server: Server, address: str) -> bool:
        try:
            async with self._runtime.write(OPERATOR) as ctx:
                await addresses.hold(ctx, address, server.id)
        except UniqueViolation:
            return False  # another server has it by now; the next boot gives this one a new address
        return True


def _words(used: Used) -> str:
    return (
        f"{used.used_servers} servers, {used.used_vcpus} vCPUs, {used.used_memory_mb} MB of memory and "
        f"{used.used_storage_gb} GB of storage"
    )


def _by_place(looks: Sequence[_Look]) -> list[list[_Look]]:
    """The hosts by the pool that they see."""
    places: dict[str, list[_Look]] = {}
    for look in looks:
        places.setdefault(look.host.place, []).append(look)
    return list(places.values())


def _may_be_on(server: Server, host: Host, rows: _Rows) -> bool:
    """Whether something of a server may be on a host; one that an older vpsd has made has no host yet."""
    is_left = server.previous_host_id == host.id and server.id in rows.busy
    return server.host_id in (None, host.id) or is_left or host.id in rows.moves.get(server.id, ())


async def _lock_idle(ctx: Ctx, server: Server) -> LockedServer | None:
    """The server's row, locked; None where something has begun since the look."""
    locked = await servers.lock(ctx, server.id)
    has_begun = locked.status != server.status or await operations.open_operation(ctx, server.id) is not None
    return None if has_begun else locked
