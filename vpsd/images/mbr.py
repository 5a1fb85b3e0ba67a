"""A disk's first megabyte: boot sector, then GRUB's core image, and one partition."""

import struct
from pathlib import Path

from vpsd.errors import Unusable

_SECTOR = 512
_LINUX = 0x83
_ACTIVE = 0x80
_NO_CHS = b"\xfe\xff\xff"


def write_mbr(disk: Path, boot: bytes, core: bytes, start_bytes: int, size_bytes: int) -> None:
    """Make the disk BIOS-bootable with one partition; `boot` and `core` are GRUB's boot.img and core.img."""
    if _SECTOR + len(core) > start_bytes:
        raise Unusable("GRUB's core image does not fit before the first partition.")
    where = struct.pack("<II", start_bytes // _SECTOR, size_bytes // _SECTOR)
    partition = bytes([_ACTIVE]) + _NO_CHS + bytes([_LINUX]) + _NO_CHS + where
    sector = boot[:440] + b"vpsd\0\0" + partition + bytes(48) + b"\x55\xaa"
    with disk.open("r+b") as file:
        file.write(sector + core)
