"""How a disk boots, if it does: its partition table, its boot code, and the loaders in its EFI system partition.

After the UEFI specification 2.10 (5.2 LBA 0 format, 5.3 GPT, 3.5.1.1 removable media boot behaviour) and Microsoft's
FAT specification. Partition types are those of the Discoverable Partitions Specification.
"""

import struct
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from vpsd.core.units import GIB, MIB
from vpsd.errors import Unusable
from vpsd.images.looks import name_of

UEFI = "uefi"

_SECTOR = 512
_CODE_BYTES = 440  # of a boot record; the partition table stands behind it
_PROTECTIVE, _ESP_ON_MBR, _PREP_ON_MBR = 0xEE, 0xEF, 0x41
_ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
_LEGACY_BOOT = 1 << 2  # an attribute of a partition
_FOREIGN = {
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "64-bit ARM",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": "32-bit ARM",
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224": "RISC-V",
    "c31c45e6-3f39-412e-80fb-4809c4980599": "PowerPC",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PowerPC",
    "5eead9a9-fe09-4a1e-a1d7-520d00531306": "IBM Z",
    "77055800-792c-4f94-b39a-98c91b762bb6": "LoongArch",
}
_LOADER = "BOOTX64.EFI"
_FOREIGN_LOADERS = {
    "BOOTAA64.EFI": "64-bit ARM",
    "BOOTARM.EFI": "32-bit ARM",
    "BOOTIA32.EFI": "32-bit x86",
    "BOOTRI~1.EFI": "RISC-V",  # the short name of BOOTRISCV64.EFI
    "BOOTLO~1.EFI": "LoongArch",
}
_LARGEST_ESP_BYTES = 4 * GIB
_MAX_CLUSTERS = 4096  # of a directory: more than any has, so that a loop ends


class Partition(msgspec.Struct, frozen=True):
    """One partition."""

    kind: str  # GPT: the type's UUID; MBR: the type in hex
    start_bytes: int
    size_bytes: int
    attributes: int = 0


Read = Callable[[int, int], Awaitable[Path]]
"""Writes bytes of the disk (offset, length) into a file, which the next call may replace."""


async def firmware_of(name: str, size_bytes: int, read: Read) -> str | None:
    """What a disk needs to boot an x86-64 machine: None for BIOS, which also those get that know both, or `UEFI`.

    Raises `Unusable`, with a sentence about `name`, for a disk that boots none, or ends before its partitions do.
    """
    head = (await read(0, min(size_bytes, MIB))).read_bytes()
    held = name_of(head)
    if held is not None:
        raise Unusable(f"{name} is {held}.")
    found = partitions(name, head)
    for partition in found:
        end_bytes = partition.start_bytes + partition.size_bytes
        if end_bytes > size_bytes:
            raise Unusable(
                f"{name} is incomplete: a partition ends at {end_bytes} bytes, and the disk has {size_bytes}."
            )
    loaders: set[str] = set()
    for partition in found:
        if partition.kind in (_ESP, f"{_ESP_ON_MBR:02x}") and partition.size_bytes <= _LARGEST_ESP_BYTES:
            with (await read(partition.start_bytes, partition.size_bytes)).open("rb") as file:
                loaders |= list_folder(file, ("EFI", "BOOT"))
    by_uefi = _LOADER in loaders
    if _boots_by_bios(head, found, by_uefi=by_uefi):
        _refuse_foreign(name, found, loaders if not by_uefi else set())
        return None
    if by_uefi:
        return UEFI
    _refuse_foreign(name, found, loaders)
    raise Unusable(
        f"{name} is not a bootable disk: it has neither boot code in its first sector, for BIOS, nor "
        f"EFI/BOOT/{_LOADER} in an EFI system partition, for UEFI."
    )


def _boots_by_bios(head: bytes, found: list[Partition], *, by_uefi: bool) -> bool:
    """Whether its boot record has code; on a GPT disk that boots by UEFI it may be there only to say so."""
    if head[510:512] != b"\x55\xaa" or not any(head[:_CODE_BYTES]):
        return False
    if not by_uefi or head[512:520] != b"EFI PART":
        return True
    return any(one.kind == _BIOS_BOOT or one.attributes & _LEGACY_BOOT for one in found)


def _refuse_foreign(name: str, found: list[Partition], loaders: set[str]) -> None:
    machines = {_FOREIGN_LOADERS[loader] for loader in loaders if loader in _FOREIGN_LOADERS}
    machines |= {_FOREIGN[partition.kind] for partition in found if partition.kind in _FOREIGN}
    if any(partition.kind == f"{_PREP_ON_MBR:02x}" for partition in found):
        machines.add("PowerPC")
    if machines:
        raise Unusable(
            f"{name} is for {' and '.join(sorted(machines))} machines; the guests here are x86-64 (amd64) machines."
        )


def partitions(name: str, head: bytes) -> list[Partition]:
    """The partitions of a disk that begins like this, from a GPT or an MBR; none where there is no table.

    Raises `Unusable` for sectors of 4096 bytes, which no BIOS of a guest here has.
    """
    if head[512:520] == b"EFI PART":
        return list(_gpt(head))
    if head[4096:4104] == b"EFI PART":
        raise Unusable(f"{name} is made for disks with sectors of 4096 bytes; the guests' disks have sectors of 512.")
    return list(_mbr(head)) if head[510:512] == b"\x55\xaa" else []


def _gpt(head: bytes) -> Iterator[Partition]:
    start, count, length = struct.unpack_from("<QII", head, _SECTOR + 72)
    if length < 128:
        return
    for number in range(min(count, 1024)):
        entry = head[start * _SECTOR + number * length :][:128]
        if len(entry) == 128 and any(entry[:16]):
            first, last, attributes = struct.unpack_from("<QQQ", entry, 32)
            kind = str(uuid.UUID(bytes_le=entry[:16]))
            yield Partition(kind, first * _SECTOR, (last - first + 1) * _SECTOR, attributes)


def _mbr(head: bytes) -> Iterator[Partition]:
    entries = range(446, 510, 16)
    if any(head[offset] not in (0, 0x80) for offset in entries):
        return  # the boot record of a file system without a partition table: there is code here too
    for offset in entries:
        kind, (first, sectors) = head[offset + 4], struct.unpack_from("<II", head, offset + 8)
        if kind not in (0, _PROTECTIVE) and first and sectors:
            yield Partition(f"{kind:02x}", first * _SECTOR, sectors * _SECTOR)


def list_folder(volume: BinaryIO, path: tuple[str, ...]) -> set[str]:
    """The short names (8.3, upper case) in a folder of a FAT file system; none where there is no such folder."""
    try:
        fat = _Fat(volume)
        entries = fat.root()
        for name in path:
            entries = fat.folder(entries[name])
        return set(entries)
    except (KeyError, struct.error, ZeroDivisionError, OverflowError):
        return set()


class _Fat:
    """FAT12, FAT16 or FAT32. A damaged one raises `struct.error` or the like."""

    def __init__(self, volume: BinaryIO) -> None:
        self._volume = volume
        (sector, per_cluster, reserved, copies, root_entries, sectors_16, table_16, sectors_32, table_32, root) = (
            struct.unpack_from("<HBHBHHxH8xII4xI", self._read(0, 48), 11)
        )
        self._cluster_bytes = sector * per_cluster
        self._table = reserved * sector
        self._root = self._table + copies * (table_16 or table_32) * sector
        self._root_bytes = root_entries * 32
        self._root_cluster = root
        self._data = self._root + -(-self._root_bytes // sector) * sector
        clusters = ((sectors_16 or sectors_32) * sector - self._data) // self._cluster_bytes
        self._bits = 32 if not table_16 else 16 if clusters >= 4085 else 12
        self._end = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[self._bits]

    def root(self) -> dict[str, int]:
        """Short names and first clusters in the root folder."""
        if self._bits == 32:
            return self.folder(self._root_cluster)
        return _entries(self._read(self._root, self._root_bytes))

    def folder(self, cluster: int) -> dict[str, int]:
        """Short names and first clusters in the folder that begins there."""
        content = b""
        for _ in range(_MAX_CLUSTERS):
            if not 2 <= cluster < self._end:
                break
            content += self._read(self._data + (cluster - 2) * self._cluster_bytes, self._cluster_bytes)
            cluster = self._next(cluster)
        return _entries(content)

    def _next(self, cluster: int) -> int:
        if self._bits == 32:
            return int(struct.unpack("<I", self._read(self._table + cluster * 4, 4))[0]) & 0x0FFFFFFF
        place = self._table + cluster * self._bits // 8
        value = int(struct.unpack("<H", self._read(place, 2))[0])
        if self._bits == 12:
            value = value >> 4 if cluster % 2 else value & 0xFFF
        return value

    def _read(self, offset: int, length: int) -> bytes:
        self._volume.seek(offset)
        return self._volume.read(length)


def _entries(content: bytes) -> dict[str, int]:
    found = {}
    for place in range(0, len(content) - 31, 32):
        entry = content[place : place + 32]
        if entry[0] == 0:
            break
        if entry[0] == 0xE5 or entry[11] & 0x08:  # deleted; a label, or a part of a long name
            continue
        base, extension = entry[:8].decode("ascii", "replace").rstrip(), entry[8:11].decode("ascii", "replace").rstrip()
        high, low = struct.unpack_from("<H4xH", entry, 20)
        found[f"{base}.{extension}" if extension else base] = high << 16 | low
    return found
