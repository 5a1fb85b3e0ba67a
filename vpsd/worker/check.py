"""Compares database, guests, volumes and addresses: what has no owner, and what has no body.

Safe beside a running vpsd: a server that an operation is working on is left out, and what lies on the host is only
called ownerless when no row spoke for it before the look nor after it.
"""

import msgspec
from sqlalchemy import bindparam, delete, insert

from vpsd.addresses.models import addresses
from vpsd.addresses.service import Assignment, assignments
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.ids import Ids
from vpsd.errors import Busy
from vpsd.hypervisor.protocol import Volumes, disk_name, guest_name
from vpsd.operations import service as operations
from vpsd.servers import rows, service
from vpsd.servers.jobs import World
from vpsd.servers.lifecycle import Command, Status
from vpsd.servers.models import Made, Server

_AT_REST = {Status.ACTIVE, Status.STOPPED, Status.SUSPENDED, Status.DELETED, Status.ERROR}

_RELEASE = Statement(delete(addresses).where(addresses.c.address == bindparam("the_address")))
_HOLD = Statement(insert(addresses), ("address", "server_id", "assigned_at_ms"))


class Finding(msgspec.Struct, frozen=True):
    """Something that is not in order, and what was done about it."""

    kind: str
    name: str
    text: str
    fixed: str | None = None


class _Rows(msgspec.Struct, frozen=True):
    servers: dict[int, Server]
    busy: set[int]
    assignments: list[Assignment]


class Check:
    """One comparison; with `fix`, one repair."""

    def __init__(self, world: World, ids: Ids, *, fix: bool = False) -> None:
        self._world = world
        self._ids = ids
        self._fix = fix
        self._findings: list[Finding] = []

    async def run(self) -> list[Finding]:
        """Look, repair if asked to, and tell."""
        before = await self._rows()
        guests = await self._world.hypervisor.guests()
        volumes = await self._world.hypervisor.volumes()
        after = await self._rows()
        owned = {self._name(server_id) for rows in (before, after) for server_id in rows.servers}
        for name in sorted(set(guests) - owned):
            await self._ownerless("guest", name)
        bodies = {disk.partition(".")[0] for disk in volumes.disks} | volumes.seeds | volumes.exports
        for name in sorted(bodies - set(guests) - owned):
            await self._ownerless("volume", name)
        for name in sorted(volumes.unknown):
            self._tell("volume", name, "lies in vpsd's pool and is nobody's; delete it by hand if you do not know it")
        if not before.busy and not after.busy:  # an operation may be sending an image right now
            for key in sorted(volumes.unfinished):
                await self._half_sent(key)
        await self._held_by_nobody(before, after)
        quiet = [s for s in after.servers.values() if s.id not in before.busy | after.busy and s.id in before.servers]
        for server in quiet:
            has_disk = disk_name(self._name(server.id), server.disk) in volumes.disks
            await self._bodiless(server, self._name(server.id) in guests, has_disk, after)
            await self._left_behind(server, volumes)
        return self._findings

    def _name(self, server_id: int) -> str:
        return guest_name(self._world.instance, server_id)

    async def _rows(self) -> _Rows:
        async with self._world.database.read() as tx:
            servers = {server.id: server for server in await rows.present(tx)}
            return _Rows(servers, await operations.busy_servers(tx), await assignments(tx))

    def _tell(self, kind: str, name: str, text: str, fixed: str | None = None) -> None:
        self._findings.append(Finding(kind, name, text, fixed if self._fix else None))

    async def _ownerless(self, kind: str, name: str) -> None:
        if self._fix:
            await self._world.hypervisor.remove(name)
        self._tell(kind, name, "belongs to no server", "removed from the host")

    async def _half_sent(self, key: str) -> None:
        if self._fix:
            await self._world.hypervisor.delete_base(key)
        self._tell("image", key, "was not sent to the host to its end", "removed from the host; the next use sends it")

    async def _held_by_nobody(self, before: _Rows, after: _Rows) -> None:
        for assignment in after.assignments:
            if assignment.server_id in before.servers or assignment.server_id in after.servers:
                continue
            if self._fix:
                async with self._world.database.write() as tx:
                    await tx.run(_RELEASE, the_address=assignment.address)
            self._tell(
                "address", assignment.address, f"is held for server {assignment.server_id}, which is gone", "freed"
            )

    async def _left_behind(self, server: Server, volumes: Volumes) -> None:
        """What a backup or restore that could not tidy up has left."""
        name, known = self._name(server.id), {server.disk}
        if server.replaced is not None:
            known.add(msgspec.json.decode(server.replaced, type=Made).disk)
        owned = {disk_name(name, disk) for disk in known}
        for disk in sorted(disk for disk in volumes.disks - owned if disk.partition(".")[0] == name):
            if self._fix:
                await self._world.hypervisor.delete_disk(disk)
            self._tell("disk", disk, "is not the server's any more", "removed from the host")
        if name in volumes.exports:
            if self._fix:
                await self._world.hypervisor.drop_export(name)
            self._tell("copy", name, "was made for a backup that is over", "removed from the host")

    async def _bodiless(self, server: Server, has_guest: bool, has_disk: bool, after: _Rows) -> None:
        name = f"{server.id} ({server.name})"
        if server.deleted_at_ms is not None:
            await self._begin(server, Command.DELETE)
            self._tell("server", name, "is deleted, and nothing is cleaning up after it", "the clean-up is queued")
        elif server.status not in _AT_REST and server.delete_at_ms is not None:
            await self._begin(server, Command.RETIRE)
            self._tell("server", name, f"is {server.status}, and nothing is under way", "its shutdown is queued")
        elif server.status not in _AT_REST:
            await self._rest_in_error(server, f"Found {server.status} with nothing under way.")
            self._tell("server", name, f"is {server.status}, and nothing is under way", "set to error; start goes on")
        elif server.provisioned_at_ms is not None and not has_disk:
            if server.status not in (Status.ERROR, Status.DELETED):
                await self._rest_in_error(server, "The server's disk is gone from the host.")
            self._tell(
                "server", name, "has no disk on the host", "set to error; restore the disk, or delete the server"
            )
        elif server.status == Status.ACTIVE and not has_guest:
            await self._begin(server, Command.RECOVER)
            self._tell("server", name, "has no guest on the host", "its making anew is queued")
        if server.ip_address is not None and server.id not in {held.server_id for held in after.assignments}:
            await self._hold(server)
            self._tell("server", name, f"does not hold its address {server.ip_address}", "held again")

    async def _begin(self, server: Server, command: Command) -> None:
        if self._fix:
            try:
                async with self._world.database.write() as tx:
                    await service.begin(tx, self._ids, self._world.clock, server.id, command)
            except Busy:
                return  # something is under way by now

    async def _rest_in_error(self, server: Server, reason: str) -> None:
        if self._fix:
            async with self._world.database.write() as tx:
                await rows.set_status(tx, server.id, Status.ERROR, reason, self._world.clock.now_ms())

    async def _hold(self, server: Server) -> None:
        if not self._fix:
            return
        try:
            async with self._world.database.write() as tx:
                await self._insert(tx, server)
        except UniqueViolation:
            return  # another server has it by now; the next boot gives this one a new address

    async def _insert(self, tx: Tx, server: Server) -> None:
        now = self._world.clock.now_ms()
        await tx.run(_HOLD, address=server.ip_address, server_id=server.id, assigned_at_ms=now)
