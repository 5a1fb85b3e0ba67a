"""For tests of backups: a target in memory that fails where it is told to, and a disk to export."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Literal

from tests.killed import Killed
from vpsd.backups.repository import BackupRef, Manifest, Repository
from vpsd.backups.targets import Missing
from vpsd.backups.transfer import StoreResult, chunk_numbers, store, stream_contents
from vpsd.hypervisor.protocol import BlockMap, Extent

SERVER = "11111111-1111-4111-8111-111111111111"
KEY = bytes(range(32))
CHUNK = 64


def backup_ref(number: int, server: str = SERVER) -> BackupRef:
    """A backup of the server."""
    return BackupRef(server, f"{number:08x}-0000-4000-8000-000000000000")


def quiet(fraction: float, text: str) -> None:
    """Progress that nobody watches."""


class RecordingTarget:
    """A target in memory; every object that is put, read or deleted, and every listing, is a step that may fail."""

    name = "target"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.reads: list[str] = []
        self.steps_left: int | None = None
        self.dies: Literal["before", "after"] = "before"
        self.failure: BaseException = Killed()

    async def put(self, key: str, data: bytes) -> None:
        await self._step(lambda: self.objects.update({key: data}))
        self.puts.append(key)

    async def create(self, key: str, data: bytes) -> bytes:
        await self._step(lambda: self.objects.setdefault(key, data))
        return self.objects[key]

    async def get(self, key: str) -> bytes:
        await self._step(lambda: self.reads.append(key))
        if key not in self.objects:
            raise Missing(f"no {key}")
        return self.objects[key]

    async def keys(self, folder: str) -> list[str]:
        assert folder.endswith("/")
        await self._step(lambda: None)
        return sorted(key for key in self.objects if key.startswith(folder))

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._step(partial(self.objects.pop, key, None))

    async def _step(self, effect: Callable[[], object]) -> None:
        await asyncio.sleep(0)
        if self.steps_left is None:
            effect()
            return
        self.steps_left -= 1
        if self.steps_left == 0 and self.dies == "after":
            effect()
        if self.steps_left <= 0:
            raise self.failure
        effect()

    def manifests(self) -> set[str]:
        """The backups that look whole."""
        return {key.split("/")[-2] for key in self.objects if key.endswith("/manifest")}


class Disk:
    """A disk, and what was written to it since it was last exported."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self._written: list[bool] = [False] * size_bytes

    def write(self, offset: int, data: bytes) -> None:
        """Write to the disk; it does not grow by that."""
        data = data[: max(0, len(self.content) - offset)]
        self.content[offset : offset + len(data)] = data
        self._written[offset : offset + len(data)] = [True] * len(data)

    def grow(self, more_bytes: int) -> None:
        """Have a larger disk."""
        self.content += bytes(more_bytes)
        self._written += [False] * more_bytes

    def copy(self, whole: bool) -> "Copy":
        """Copy the disk as it is now."""
        extents: list[Extent] = []
        for offset, byte in enumerate(self.content):
            if not (whole or self._written[offset]):
                continue
            zero = byte == 0
            if extents and extents[-1].offset + extents[-1].length == offset and extents[-1].zero == zero:
                extents[-1] = Extent(extents[-1].offset, extents[-1].length + 1, zero)
            else:
                extents.append(Extent(offset, 1, zero))
        self._written = [False] * len(self.content)
        return Copy(bytes(self.content), BlockMap(len(self.content), tuple(extents)))


class Copy:
    """An export that reads as a driver's does: what is in no extent is zeros."""

    def __init__(self, content: bytes, block_map: BlockMap) -> None:
        self.content = content
        self.block_map = block_map
        self._read = bytearray(block_map.size_bytes)
        for extent in block_map.extents:
            self._read[extent.offset : extent.offset + extent.length] = content[
                extent.offset : extent.offset + extent.length
            ]

    async def read(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(self._read[offset : offset + length])


async def keep(repository: Repository, where: BackupRef, copy: Copy, parent: BackupRef | None = None) -> StoreResult:
    """Store a copy."""
    return await store(
        repository, where, copy.block_map, copy.read, parent, {"os": "debian-13"}, 1_750_000_000_000, quiet
    )


async def restored(repository: Repository, where: BackupRef) -> bytes:
    """The whole disk of a backup, put together as a driver does it."""
    manifest = await repository.read_manifest(where)
    return await rebuilt(repository, manifest)


async def rebuilt(repository: Repository, manifest: Manifest) -> bytes:
    """The whole disk of a manifest."""
    disk = bytearray(manifest.size_bytes)
    numbers = chunk_numbers(manifest)
    async with aclosing(stream_contents(repository, manifest, quiet)) as chunks:
        async for chunk in chunks:
            offset = numbers.pop(0) * manifest.chunk_bytes
            disk[offset : offset + len(chunk)] = chunk
    assert not numbers
    assert len(disk) == manifest.size_bytes
    return bytes(disk)


async def chain(repository: Repository, count: int, seed: int = 1) -> dict[int, bytes]:
    """Backups 0 … count-1 of a disk that changes and grows between them; gives what each has to restore to."""
    chance = random.Random(seed)
    disk = Disk(CHUNK * 8 + 10)
    disk.write(0, chance.randbytes(CHUNK * 6))
    held: dict[int, bytes] = {}
    for number in range(count):
        copy = disk.copy(whole=number == 0)
        await keep(repository, backup_ref(number), copy, backup_ref(number - 1) if number else None)
        held[number] = copy.content
        disk.write(chance.randrange(CHUNK * 7), chance.randbytes(CHUNK + 9))
        disk.write(chance.randrange(CHUNK * 7), bytes(CHUNK + 3))
        disk.grow(chance.choice([0, 5, CHUNK]))
    return held
