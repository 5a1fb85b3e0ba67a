"""Writes the content of disks to the host's pool, and reads that of exports from it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import libvirt

from vpsd.core.units import MIB
from vpsd.hypervisor.libvirt import qcow2
from vpsd.hypervisor.libvirt.host import LibvirtHost
from vpsd.hypervisor.libvirt.storage import Pool
from vpsd.hypervisor.libvirt.volumes import Upload, receive, send_bytes
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import BlockMap

_QUICK_SECONDS = 20.0
_TRANSFER_SECONDS = 120.0
_TRANSFER_BYTES_PER_SECOND = MIB  # slower than that counts as hanging


def transfer_seconds(size_bytes: int) -> float:
    """The time limit for a transfer of that size."""
    return _TRANSFER_SECONDS + size_bytes / _TRANSFER_BYTES_PER_SECOND


async def write_disk(
    host: LibvirtHost,
    pool: Pool,
    disk: str,
    size_bytes: int,
    chunk_bytes: int,
    chunks: Sequence[int],
    content: AsyncIterator[bytes],
    owner: Owner,
) -> None:
    """Create a disk with that content: one stream from its tables to its end, and the first cluster last."""
    plan = await asyncio.to_thread(qcow2.plan_file, size_bytes, chunk_bytes, chunks)
    action = f"write the disk {disk}"
    volume = await host.call(
        lambda open_host: pool.begin_disk(open_host, disk, plan.file_bytes, owner), action, _QUICK_SECONDS
    )
    if volume is None:
        return
    rest = plan.file_bytes - len(plan.header)
    upload = await host.call(lambda _: Upload(volume, rest, len(plan.header)), action, _QUICK_SECONDS)

    async def send(data: bytes) -> None:
        await host.call(lambda _: upload.send(data), action, transfer_seconds(len(data)))

    try:
        await send(plan.tables)
        async for chunk in content:
            await send(qcow2.padded(chunk))
        await host.call(lambda _: upload.finish(), action, _TRANSFER_SECONDS)
    except BaseException:
        await host.run(upload.abort, action, _QUICK_SECONDS)
        raise

    def complete(_: libvirt.virConnect) -> None:
        owner.check()  # the name may be that of another worker's file by now, and that one not yet a whole disk
        send_bytes(volume, plan.header)

    await host.call(complete, action, _QUICK_SECONDS)


class ExportReader:
    """Reads complete exports; keeps their cluster maps, so that each is read only once."""

    def __init__(self, host: LibvirtHost, pool: Pool) -> None:
        self._host = host
        self._pool = pool
        self._maps: dict[str, qcow2.ClusterMap] = {}  # by guest name

    async def block_map(self, name: str) -> BlockMap:
        """What the export holds."""

        def read(host: libvirt.virConnect) -> qcow2.ClusterMap:
            volume = self._pool.export_volume(host, name, refreshed=True)
            return qcow2.read_map(lambda offset, length: receive(volume, offset, length))

        found = self._maps[name] = await self._host.call(read, f"read the export of {name}", _TRANSFER_SECONDS)
        return BlockMap(found.size_bytes, found.extents())

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        if name not in self._maps:
            await self.block_map(name)
        found = self._maps[name]

        def read(host: libvirt.virConnect) -> bytes:
            volume = self._pool.export_volume(host, name)
            return found.read(lambda at, size: receive(volume, at, size), offset, length)

        return await self._host.call(read, f"read the export of {name}", transfer_seconds(length))

    def forget(self, name: str) -> None:
        """Drop the map of an export that is about to be replaced or deleted."""
        self._maps.pop(name, None)
