"""Small disks, made of the parts that decide how they boot."""

import struct
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from vpsd.core.units import MIB

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
ARM_ROOT = "b921b045-1df0-41c3-af44-4c6f280d3fae"

BOOT_CODE = b"\xeb\x63\x90" + b"\x90" * 300


def boot_record(code: bytes = BOOT_CODE, partition: tuple[int, int, int] | None = None) -> bytes:
    """A disk's first sector; `partition` is type, first sector and number of sectors."""
    kind, first, sectors = partition or (0x83, 2048, 2048)
    entry = struct.pack("<B3xB3xII", 0x80, kind, first, sectors)
    return code.ljust(446, b"\0") + entry + bytes(48) + b"\x55\xaa"


def bios_disk(path: Path, size_bytes: int = 2 * MIB) -> Path:
    """A raw disk that a BIOS would boot."""
    with path.open("wb") as file:
        file.write(boot_record())
        file.truncate(size_bytes)
    return path


def gpt_disk(
    path: Path, kinds: Sequence[str], *, code: bytes = b"", loaders: Sequence[str] = (), bits: int = 16
) -> Path:
    """A raw disk with a GPT, and partitions of 8 MiB each; the first ESP holds the loaders, on a FAT of these bits."""
    size, sectors = 8 * MIB, 8 * MIB // 512
    entries = b""
    for number, kind in enumerate(kinds):
        first = 2048 + number * sectors
        entries += uuid.UUID(kind).bytes_le + bytes(16) + struct.pack("<QQQ", first, first + sectors - 1, 0) + bytes(72)
    header = b"EFI PART" + struct.pack("<4sII4xQQQQ16sQIII", b"\0\0\1\0", 92, 0, 1, 99, 34, 99, b"", 2, 128, 128, 0)
    with path.open("wb") as file:
        file.write(boot_record(code, (0xEE, 1, 0xFFFFFFFF)) + header.ljust(512, b"\0") + entries)
        if ESP in kinds:
            file.seek(MIB + kinds.index(ESP) * size)
            file.write(fat(loaders, bits))
        file.truncate(2 * MIB + len(kinds) * size)
    return path


def fat(names: Sequence[str], bits: int, *, loops: bool = False) -> bytes:
    """A FAT file system (8 MiB at most) with empty files in EFI/BOOT, after Microsoft's specification.

    The first folder has two clusters, the second apart from the first, so that the chain has to be followed; it may
    lead back to where it began.
    """
    per_cluster = {12: 8, 16: 1, 32: 1}[bits]
    cluster_bytes, table_sectors, root_entries = per_cluster * 512, 128, 0 if bits == 32 else 512
    boot = bytearray(512)
    struct.pack_into(
        "<HBHBHHxHHHIII", boot, 11, 512, per_cluster, 32, 2, root_entries, 0,
        0 if bits == 32 else table_sectors, 63, 255, 0, 16384, table_sectors if bits == 32 else 0,
    )  # fmt: skip
    struct.pack_into("<I", boot, 44, 2 if bits == 32 else 0)
    clusters: dict[int, bytes] = {}
    chain: dict[int, int] = {}
    end = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}[bits]

    def entry(name: str, cluster: int, attributes: int) -> bytes:
        base, _, extension = name.partition(".")
        packed = f"{base:8}{extension:3}".encode()
        return packed + struct.pack("<B8xH4xHI", attributes, cluster >> 16, cluster & 0xFFFF, 0)

    noise = entry("ESP", 0, 0x08) + b"\xe5" + entry("XELETED.EFI", 9, 0x20)[1:]
    filler = b"".join(entry(f"F{number}", 0, 0x20) for number in range(cluster_bytes // 32))
    root = noise + entry("EFI", 4, 0x10)
    clusters[4], chain[4], clusters[7], chain[7] = filler, 7, entry("BOOT", 5, 0x10), 4 if loops else end
    clusters[5], chain[5] = noise + b"".join(entry(name, 0, 0x20) for name in names), end
    if bits == 32:
        clusters[2], chain[2] = root, end
    table = bytearray(table_sectors * 512)
    for cluster, following in chain.items():
        if bits == 12:
            place = cluster * 3 // 2
            (value,) = struct.unpack_from("<H", table, place)
            value |= following << 4 if cluster % 2 else following
            struct.pack_into("<H", table, place, value & 0xFFFF)
        else:
            struct.pack_into("<H" if bits == 16 else "<I", table, cluster * bits // 8, following)
    area = root.ljust(root_entries * 32, b"\0") if root_entries else b""
    data = bytearray(16 * cluster_bytes)
    for cluster, content in clusters.items():
        data[(cluster - 2) * cluster_bytes : (cluster - 2) * cluster_bytes + len(content)] = content
    return bytes(boot) + bytes(31 * 512) + bytes(table) * 2 + area + bytes(data)


def qcow2_of(raw: Path) -> Path:
    """The same disk as qcow2."""
    path = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    return path
