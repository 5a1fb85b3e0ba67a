"""What tests of backups stand on: a target in memory that fails where it is told to, and a disk that is copied."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Literal

from vpsd.backups.copying import Stored, chunk_numbers, contents, store
from vpsd.backups.targets import Missing
from vpsd.backups.vault import Manifest, Place, Vault
from vpsd.hypervisor.protocol import Copied, Run

SERVER = "11111111-1111-4111-8111-111111111111"
KEY = bytes(range(32))
CHUNK = 64


def place(number: int, server: str = SERVER) -> Place:
    """A backup of the server."""
    return Place(server, f"{number:08x}-0000-4000-8000-000000000000")


def quiet(fraction: float, text: str) -> None:
    """Progress that nobody watches."""


class Killed(Exception):
    """What a process feels that is killed: it gets no further."""


class Shelf:
    """A target in memory. Every object that is put, read, deleted, and every look at a folder, is a step."""

    name = "shelf"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.reads: list[str] = []
        self.steps_left: int | None = None
        self.dies: Literal["before", "after"] = "before"
        self.failure: Exception = Killed()

    async def put(self, key: str, data: bytes) -> None:
        await self._step(lambda: self.objects.update({key: data}))
        self.puts.append(key)

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
    """A disk, and what was written to it since it was last copied."""

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
        runs: list[Run] = []
        for offset, byte in enumerate(self.content):
            if not (whole or self._written[offset]):
                continue
            zero = byte == 0
            if runs and runs[-1].offset + runs[-1].length == offset and runs[-1].zero == zero:
                runs[-1] = Run(runs[-1].offset, runs[-1].length + 1, zero)
            else:
                runs.append(Run(offset, 1, zero))
        self._written = [False] * len(self.content)
        return Copy(bytes(self.content), Copied(len(self.content), tuple(runs)))


class Copy:
    """A copy that reads as drivers' copies do: what is in no run is zeros."""

    def __init__(self, content: bytes, copied: Copied) -> None:
        self.content = content
        self.copied = copied
        self._read = bytearray(copied.size_bytes)
        for run in copied.runs:
            self._read[run.offset : run.offset + run.length] = content[run.offset : run.offset + run.length]

    async def read(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(self._read[offset : offset + length])


async def keep(vault: Vault, where: Place, copy: Copy, parent: Place | None = None) -> Stored:
    """Store a copy."""
    return await store(vault, where, copy.copied, copy.read, parent, {"os": "debian-13"}, 1_750_000_000_000, quiet)


async def restored(vault: Vault, where: Place) -> bytes:
    """The whole disk of a backup, put together as a driver does it."""
    manifest = await vault.read_manifest(where)
    return await rebuilt(vault, manifest)


async def rebuilt(vault: Vault, manifest: Manifest) -> bytes:
    """The whole disk of a manifest."""
    disk = bytearray(manifest.size_bytes)
    numbers = chunk_numbers(manifest)
    async with aclosing(contents(vault, manifest, quiet)) as chunks:
        async for chunk in chunks:
            offset = numbers.pop(0) * manifest.chunk_bytes
            disk[offset : offset + len(chunk)] = chunk
    assert not numbers
    assert len(disk) == manifest.size_bytes
    return bytes(disk)


async def chain(vault: Vault, count: int, seed: int = 1) -> dict[int, bytes]:
    """Backups 0 … count-1 of a disk that changes and grows between them; gives what each has to restore to."""
    chance = random.Random(seed)
    disk = Disk(CHUNK * 8 + 10)
    disk.write(0, chance.randbytes(CHUNK * 6))
    held: dict[int, bytes] = {}
    for number in range(count):
        copy = disk.copy(whole=number == 0)
        await keep(vault, place(number), copy, place(number - 1) if number else None)
        held[number] = copy.content
        disk.write(chance.randrange(CHUNK * 7), chance.randbytes(CHUNK + 9))
        disk.write(chance.randrange(CHUNK * 7), bytes(CHUNK + 3))
        disk.grow(chance.choice([0, 5, CHUNK]))
    return held
