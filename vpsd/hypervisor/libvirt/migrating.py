"""The part of the driver that moves guests to another host, live or as the disk of one that is off."""

import asyncio
from collections.abc import Awaitable, Callable

import libvirt
import msgspec

from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt import connect, domains, exports, migration, qcow2
from vpsd.hypervisor.libvirt.calls import QUICK_SECONDS, Calls
from vpsd.hypervisor.libvirt.domain_xml import Files, build
from vpsd.hypervisor.libvirt.transfer import transfer_seconds
from vpsd.hypervisor.libvirt.volumes import Upload, receive, send_bytes
from vpsd.hypervisor.moving import DiskLayout, MoveProgress, is_like, is_there, share_pool
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.protocol import GuestSpec, Hypervisor, Progress

_PIECE_BYTES = 8 << 20
_BEGIN_SECONDS = 40.0  # until a move is on its way: the hosts have to reach each other, and the target to start a QEMU
_ABORT_SECONDS = 40.0
_LOOK_SECONDS = 0.1


class Migrating(Calls):
    """Moves guests from host to host."""

    async def disk_layout(self, disk: str) -> DiskLayout | None:
        """What a disk is made of."""
        self._require_own(disk)
        found = await self._host.call(
            lambda host: self._pool.layout(host, disk), f"look at the disk {disk}", QUICK_SECONDS
        )
        return found and msgspec.structs.replace(found, shared_pool=self.shared_pool)

    async def prepare_disk(self, disk: str, layout: DiskLayout) -> None:
        """Have an empty disk for a guest to arrive in, unless a guest of that name is here."""

        def ask(host: libvirt.virConnect) -> None:
            present = domains.require_name(host, guest_of(disk), self._owner)
            if is_there(layout, self):
                self._pool.disk_volume(host, disk)
            elif present is None:
                self._pool.make_empty_disk(host, disk, layout, self._owner)

        await self._change(disk, ask, f"prepare the disk {disk}")

    async def start_move(self, spec: GuestSpec, target: Hypervisor, *, max_mb_per_second: int | None = None) -> None:
        """Start moving the guest, peer to peer; returns once that is on its way or over."""
        name, action = spec.name, f"move the guest {spec.name}"
        if not isinstance(target, Migrating):
            raise Unusable("A guest of libvirt can only move to another host of libvirt.")
        if await self._progress(name) is not None:
            return

        def leave(host: libvirt.virConnect) -> tuple[libvirt.virDomain, DiskLayout | None]:
            domains.require_name(host, name, self._owner)
            self._drop_export(host, name)
            domain = migration.require_ready(host, name, self._owner)
            return domain, self._pool.layout(host, spec.disk)

        domain, layout = await self._change(name, leave, action, _BEGIN_SECONDS)
        landing = await target._landing(spec, layout)
        copies = not share_pool(self, target)
        departure = self._departures[name] = migration.Departure(
            domain, landing, max_mb_per_second, self._owner, copies=copies
        )

        async def has_begun() -> bool:
            return departure.is_over or await self._progress(name) is not None

        await _until(has_begun, _BEGIN_SECONDS, action)
        if departure.failure is not None:
            del self._departures[name]
            raise departure.failure

    async def _landing(self, spec: GuestSpec, layout: DiskLayout | None) -> migration.Landing:
        """Where the guest is to arrive here; raises `Unusable` where it cannot."""

        def ask(host: libvirt.virConnect) -> migration.Landing:
            domains.require_name(host, spec.name, self._owner)
            if layout is None or not is_like(layout, self._pool.layout(host, spec.disk)):
                raise Unusable(f"The target lacks the disk {spec.disk}, or has another one.")
            if not self._pool.has_seed(host, spec.name):
                raise Unusable(f"The target lacks the seed of {spec.name}.")
            virt_type, _ = self._virtualization.find(host, local=self._is_local)
            xml = domains.with_term(build(spec, self._files(host, spec), virt_type), self._owner)
            uri = self._choice.uri
            return migration.Landing(xml, connect.peer_uri(uri), connect.move_uri(uri))

        return await self._change(spec.name, ask, f"expect the guest {spec.name}")

    async def move_progress(self, name: str) -> MoveProgress | None:
        """How far the guest's move is; None if none is on its way."""
        departure = self._departures.get(name)
        found = await self._progress(name)
        if found is not None or departure is None:
            return found
        if not departure.is_over:  # libvirt has ended the job, and its call is about to return
            return MoveProgress(1.0, departure.seconds)
        self._departures.pop(name, None)
        if departure.failure is not None:
            raise departure.failure
        return None

    async def _progress(self, name: str) -> MoveProgress | None:
        action = f"say how far the move of {name} is"
        return await self._host.call(lambda host: migration.progress(host, name, self._owner), action, QUICK_SECONDS)

    async def abort_move(self, name: str) -> None:
        """End the guest's move, if one is on its way."""
        action = f"end the move of the guest {name}"
        await self._change(name, lambda host: migration.abort(host, name, self._owner), action, _ABORT_SECONDS)

        async def has_ended() -> bool:
            return await self._progress(name) is None

        await _until(has_ended, _ABORT_SECONDS, action)

    async def copy_disk(self, disk: str, source: Hypervisor, progress: Progress) -> None:
        """Copy the disk of a guest that is off from another host, through this process; its first cluster last."""
        self._require_own(disk)
        if not isinstance(source, Migrating):
            raise Unusable("The disk of a guest of libvirt can only be copied from another host of libvirt.")
        layout, size = await source._file_of(disk)
        action = f"copy the disk {disk}"
        if share_pool(self, source):
            await self._host.call(lambda host: self._pool.disk_volume(host, disk), action, QUICK_SECONDS)
            progress(1.0, "the disk is where it was")
            return

        def begin(host: libvirt.virConnect) -> libvirt.virStorageVol | None:
            domains.require_name(host, guest_of(disk), self._owner)
            if layout.base is not None and not self._pool.has_base(host, layout.base):
                raise Unusable(f"The base image {layout.base} is not on the host.")
            return self._pool.begin_disk(host, disk, size, self._owner)

        volume = await self._change(disk, begin, action)
        if volume is None:
            return
        head = await source._read_file(disk, 0, qcow2.CLUSTER_BYTES)
        at = len(head)
        upload = await self._host.call(lambda _: Upload(volume, size - at, at), action, QUICK_SECONDS)
        try:
            while at < size:
                piece = await source._read_file(disk, at, min(_PIECE_BYTES, size - at))
                if not piece:
                    raise Unavailable(f"The disk {disk} became shorter while it was copied.")
                await self._send(upload, piece, action)
                at += len(piece)
                progress(at / size, "copying the disk to the other host")
            await self._host.call(lambda _: upload.finish(), action, transfer_seconds(0))
        except BaseException:
            await self._host.run(upload.abort, action, QUICK_SECONDS)
            raise
        if await source._file_of(disk) != (layout, size):
            raise Unavailable(f"The disk {disk} changed while it was copied.")

        def complete(_: libvirt.virConnect) -> None:
            self._owner.check()  # the name may be that of another worker's file by now
            send_bytes(volume, qcow2.with_relative_backing(head) or head)

        await self._host.call(complete, action, QUICK_SECONDS)

    async def _send(self, upload: Upload, piece: bytes, action: str) -> None:
        await self._host.call(lambda _: upload.send(piece), action, transfer_seconds(len(piece)))

    async def _file_of(self, disk: str) -> tuple[DiskLayout, int]:
        """What the disk of a guest that is off is made of, and the size of its file."""

        def ask(host: libvirt.virConnect) -> tuple[DiskLayout, int]:
            domain = domains.find(host, guest_of(disk))
            if domain is not None and domain.isActive():
                raise Unusable("The guest is running.")
            layout = self._pool.layout(host, disk)
            if layout is None:
                raise Unusable(f"There is no disk {disk}.")
            return layout, self._pool.disk_file_bytes(host, disk)

        return await self._host.call(ask, f"look at the disk {disk}", QUICK_SECONDS)

    async def _read_file(self, disk: str, offset: int, length: int) -> bytes:
        def read(host: libvirt.virConnect) -> bytes:
            return receive(self._pool.disk_volume(host, disk), offset, length)

        return await self._host.call(read, f"read the disk {disk}", transfer_seconds(length))

    def _drop_export(self, host: libvirt.virConnect, name: str) -> None:
        self._exports.forget(name)
        if domains.may_change(host, name, self._owner):
            exports.abort(host, name, self._owner)
            self._pool.delete_export(host, name, self._owner)

    def _files(self, host: libvirt.virConnect, spec: GuestSpec) -> Files:
        folder = self._pool.path(host)
        base = self._pool.base_paths(host, spec.base) if spec.direct_kernel else None
        return Files(
            disk=self._pool.disk_path(host, spec.disk),
            seed=str(folder / f"{spec.name}-seed.iso"),
            kernel=base and base.kernel,
            initrd=base and base.initrd,
            serial_log=self._logs.prepare(host, spec.name),
            nvram=str(folder / f"{spec.name}-nvram.fd"),
        )


async def _until(holds: Callable[[], Awaitable[bool]], limit_seconds: float, action: str) -> None:
    """Look until it holds; raises `Unavailable` if it takes too long."""
    try:
        async with asyncio.timeout(limit_seconds):
            while not await holds():  # noqa: ASYNC110  libvirt reports no event for it
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise Unavailable(f"The host could not {action} within {limit_seconds:g} seconds.") from None
