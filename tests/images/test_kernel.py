"""Kernel, modules and initramfs."""

import gzip
import lzma
import struct
from pathlib import Path

import pytest

from vpsd.images.kernel import cpio, extract_vmlinux, unsigned

ELF = b"\x7fELF and the rest of a kernel"


def bzimage(payload: bytes) -> bytes:
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"trailing"


async def never(packed: Path, unpacked: Path) -> None:
    raise AssertionError("asked to unpack LZ4")


@pytest.mark.parametrize("payload", [gzip.compress(ELF, mtime=0) + bytes(4), lzma.compress(ELF) + bytes(4)])
async def test_a_compressed_kernel_is_unpacked(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(payload))
    assert await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", never)
    assert (tmp_path / "vmlinux").read_bytes() == ELF


async def test_lz4_is_left_to_its_program(tmp_path: Path) -> None:
    async def unlz4(packed: Path, unpacked: Path) -> None:
        assert packed.read_bytes() == b"\x02\x21\x4c\x18blocks"
        unpacked.write_bytes(ELF)

    (tmp_path / "vmlinuz").write_bytes(bzimage(b"\x02\x21\x4c\x18blocks" + struct.pack("<I", len(ELF))))
    assert await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", unlz4)


async def test_a_kernel_of_an_unknown_compression_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(b"(\xb5/\xfd of zstd"))
    assert not await extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux", never)


def test_the_signature_of_a_module_is_cut_off() -> None:
    module = b"\x7fELF module"
    signed = module + b"S" * 300 + bytes(8) + struct.pack(">I", 300) + b"~Module signature appended~\n"
    assert unsigned(signed) == module
    assert unsigned(module) == module


def test_an_initramfs_has_every_folder_before_its_files() -> None:
    archive = cpio({"init": b"#!/bin/sh\n", "m/a.ko": b"xyz"}, {"bin/sh": "busybox"})
    names, position = [], 0
    while position < len(archive):
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        name = archive[position + 110 : position + 110 + fields[11] - 1].decode()
        names.append((name, oct(fields[1]), fields[2], fields[6]))
        position += (110 + fields[11] + 3) // 4 * 4 + (fields[6] + 3) // 4 * 4
    assert names == [
        ("bin", "0o40755", 0, 0),
        ("m", "0o40755", 0, 0),
        ("init", "0o100755", 0, 10),
        ("m/a.ko", "0o100755", 0, 3),
        ("bin/sh", "0o120777", 0, 7),
        ("TRAILER!!!", "0o0", 0, 0),
    ]
