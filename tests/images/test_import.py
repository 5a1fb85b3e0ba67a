"""What is fetched or given is looked at before it becomes an image."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.synthetic import (
    ARM_ROOT,
    BIOS_BOOT,
    BOOT_CODE,
    ESP,
    LINUX,
    bios_disk,
    boot_record,
    fat,
    gpt_disk,
    qcow2_of,
)
from tests.images.test_store import make_disk, silent
from vpsd.core.units import GIB, MIB
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import Image
from vpsd.images import disks, space, unpack
from vpsd.images.bootable import list_folder
from vpsd.images.store import ImageStore


async def take(tmp_path: Path, path: Path) -> Image:
    return await ImageStore(tmp_path / "images").import_file("mine", path, silent)


async def refused(tmp_path: Path, path: Path) -> str:
    with pytest.raises(Unusable) as error:
        await take(tmp_path, path)
    assert not list((tmp_path / "images" / "mine").glob("*/image.json"))
    assert not (tmp_path / "images" / "mine" / ".work").exists()
    return str(error.value)


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {"xz": lzma.compress, "gz": gzip.compress, "zst": zstd}


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_disk_with_boot_code_boots_by_bios(tmp_path: Path, form: str) -> None:
    disk = bios_disk(tmp_path / "disk.raw")
    image = await take(tmp_path, disk if form == "raw" else qcow2_of(disk))
    assert (image.firmware, image.virtual_size_bytes, image.disk_gb) == (None, 2 * MIB, 1)


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_disk_with_a_loader_in_its_esp_alone_boots_by_uefi(tmp_path: Path, form: str, bits: int) -> None:
    disk = gpt_disk(tmp_path / "disk.raw", [LINUX, ESP], loaders=["BOOTX64.EFI"], bits=bits)
    path = disk if form == "raw" else qcow2_of(disk)
    image = await take(tmp_path, path)
    assert image.firmware == "uefi"
    assert ImageStore(tmp_path / "images").get("mine") == image  # and the manifest says so too


async def test_a_disk_that_boots_by_both_gets_bios(tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "disk", [BIOS_BOOT, ESP], code=BOOT_CODE, loaders=["BOOTX64.EFI"])
    assert (await take(tmp_path, disk)).firmware is None


async def test_boot_code_that_only_says_that_the_disk_needs_uefi_is_not_believed(tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "disk", [ESP], code=BOOT_CODE, loaders=["BOOTX64.EFI"])
    assert (await take(tmp_path, disk)).firmware == "uefi"


@pytest.mark.parametrize(
    ("kinds", "loaders", "named"),
    [
        ([ESP], ["BOOTAA64.EFI"], "64-bit ARM"),
        ([ARM_ROOT, ESP], [], "64-bit ARM"),
        ([ESP], ["BOOTIA32.EFI"], "32-bit x86"),
        ([ESP], ["BOOTRI~1.EFI"], "RISC-V"),
    ],
)
async def test_another_machines_disk_is_refused_by_name(
    tmp_path: Path, kinds: list[str], loaders: list[str], named: str
) -> None:
    said = await refused(tmp_path, gpt_disk(tmp_path / "disk.raw", kinds, loaders=loaders))
    assert said == f"disk.raw is for {named} machines; the guests here are x86-64 (amd64) machines."


async def test_a_disk_for_several_machines_is_taken(tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "disk", [ESP], loaders=["BOOTAA64.EFI", "BOOTX64.EFI"])
    assert (await take(tmp_path, disk)).firmware == "uefi"


@pytest.mark.parametrize("case", ["no table", "no code", "no loader", "damaged esp"])
async def test_a_disk_that_boots_nothing_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "disk"
    if case == "no table":
        path.write_bytes(bytes(2 * MIB))
    elif case == "no code":
        path.write_bytes(boot_record(b"").ljust(2 * MIB, b"\0"))
    elif case == "no loader":
        gpt_disk(path, [LINUX, ESP], loaders=["GRUBX64.EFI"])
    else:
        gpt_disk(path, [ESP], loaders=["BOOTX64.EFI"])
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"\xff" * 4096)
    assert "is not a bootable disk" in await refused(tmp_path, path)


async def test_a_disk_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "disk", [ESP, LINUX], loaders=["BOOTX64.EFI"])
    with disk.open("r+b") as file:
        file.truncate(12 * MIB)
    assert "is incomplete: a partition ends at" in await refused(tmp_path, disk)


async def test_the_boot_record_of_a_file_system_is_no_partition_table(tmp_path: Path) -> None:
    code = b"\xeb" * 462 + b"\x80\0\0\0\x83".ljust(16, b"\x7f")  # what would read as a partition beyond the end
    (tmp_path / "disk").write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(2 * MIB, b"\0"))
    assert (await take(tmp_path, tmp_path / "disk")).firmware is None


async def test_a_qcow2_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    raw = bios_disk(tmp_path / "disk.raw")
    with raw.open("r+b") as file:
        file.seek(512)
        file.write(b"\x17" * (2 * MIB - 512))
    disk = qcow2_of(raw)
    with disk.open("r+b") as file:
        file.truncate(disk.stat().st_size - MIB)
    assert "damaged or incomplete" in await refused(tmp_path, disk)


def tar_of(content: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        info = tarfile.TarInfo("disk.raw")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


ISO = bytes(32769) + b"CD001" + bytes(MIB)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Not found", "is an HTML page"),
        (b"\n  <html>", "is an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "is an XML document"),
        (tar_of(boot_record()), "is a tar archive"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive"),
        (bz2.compress(boot_record()), "is packed with bzip2"),
        (ISO, "is an ISO 9660 image"),
        (b"vhdxfile" + bytes(1000), "is a VHDX image; convert it to qcow2 with qemu-img convert"),
        (bytes(512) + b"conectix" + bytes(504), "is a VHD image"),
        (b"hsqs" + bytes(1000), "is a squashfs file system"),
    ],
)
async def test_what_is_no_disk_is_refused_by_name(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "disk.img").write_bytes(content)
    assert (await refused(tmp_path, tmp_path / "disk.img")).startswith(f"disk.img {named}")


@pytest.mark.parametrize("form", ["vmdk", "vdi", "vhdx", "vpc", "qed"])
async def test_an_image_of_another_hypervisor_is_refused_by_name(tmp_path: Path, form: str) -> None:
    disk = make_disk(tmp_path / "disk", form=form, size="8M")
    said = await refused(tmp_path, disk)
    assert ("VHD" if form == "vpc" else form.upper()) in said
    assert "qemu-img convert" in said


@pytest.mark.parametrize("kind", PACKERS)
async def test_a_packed_disk_is_unpacked_whatever_its_name(tmp_path: Path, kind: str) -> None:
    content = bios_disk(tmp_path / "disk.raw", 3 * MIB).read_bytes()
    (tmp_path / "disk.img").write_bytes(PACKERS[kind](content[:MIB]) + PACKERS[kind](content[MIB:]))  # two members
    image = await take(tmp_path, tmp_path / "disk.img")
    assert image.virtual_size_bytes == 3 * MIB
    assert {file.name for file in image.disk.parent.iterdir()} == {"disk.qcow2", "image.json"}


@pytest.mark.parametrize("kind", PACKERS)
async def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    packed = PACKERS[kind](bios_disk(tmp_path / "disk.raw").read_bytes())
    (tmp_path / "disk.img").write_bytes(packed[: len(packed) // 2])
    assert "damaged or incomplete" in await refused(tmp_path, tmp_path / "disk.img")


@pytest.mark.parametrize("kind", PACKERS)
async def test_what_is_in_an_archive_is_looked_at_too(tmp_path: Path, kind: str) -> None:
    pack = PACKERS[kind]
    for content, named in ((tar_of(boot_record()), "is a tar archive"), (pack(b"disk"), "is packed once more")):
        (tmp_path / "disk.img").write_bytes(pack(content))
        assert (await refused(tmp_path, tmp_path / "disk.img")).startswith(f"disk.img, unpacked, {named}")


@pytest.mark.parametrize("kind", PACKERS)
async def test_an_archive_that_grows_too_large_is_given_up(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bomb").write_bytes(PACKERS[kind](bytes(5 * MIB)))
    target = tmp_path / "unpacked"
    with pytest.raises(Unusable, match="larger than 4 MiB when it is unpacked"):
        await unpack.unpack(tmp_path / "bomb", "bomb", kind, target, silent, limit_bytes=4 * MIB)
    await unpack.unpack(tmp_path / "bomb", "bomb", kind, target, silent, limit_bytes=5 * MIB)
    assert target.stat().st_size == 5 * MIB
    assert target.stat().st_blocks == 0  # zeros take no space


async def test_an_installers_iso_inside_a_qcow2_is_found(tmp_path: Path) -> None:
    (tmp_path / "cd.raw").write_bytes(ISO)
    assert "is an ISO 9660 image" in await refused(tmp_path, qcow2_of(tmp_path / "cd.raw"))


@pytest.fixture
def made_by_tools(tmp_path: Path) -> Path:
    """A disk with an ESP, as people make them."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(80 * MIB)
    script = 'printf "label: gpt\\nstart=2048, size=131072, type=uefi\\n" | sfdisk -q "$1"\n'
    script += 'mformat -i "$1@@1M" -T 131072 -F ::\nmmd -i "$1@@1M" ::/EFI ::/EFI/BOOT\n'
    script += 'echo | mcopy -i "$1@@1M" - ::/EFI/BOOT/bootx64.efi'
    path = "/usr/bin:/bin:/usr/sbin:/sbin"
    subprocess.run(["sh", "-euc", script, "sh", str(disk)], check=True, env={"PATH": path})
    return disk


async def test_what_the_usual_tools_make_is_read(tmp_path: Path, made_by_tools: Path) -> None:
    assert (await take(tmp_path, made_by_tools)).firmware == "uefi"


def test_a_folder_that_never_ends_is_not_read_for_ever() -> None:
    volume = io.BytesIO(fat(["BOOTX64.EFI"], 16, loops=True))
    assert "BOOT" not in list_folder(volume, ("EFI", "NOTHING"))
    assert "F0" in list_folder(volume, ("EFI",))


async def test_a_disk_that_is_larger_than_is_taken_is_refused_before_it_is_read(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", limit_bytes=GIB)
    with pytest.raises(Unusable, match=r"^huge is a disk of 16384 GB; the largest that is taken has 1 GB\.$"):
        await store.import_file("mine", make_disk(tmp_path / "huge", size="16T"), silent)
    assert store.available() == []


async def test_what_is_unpacked_leaves_the_disk_some_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk.xz").write_bytes(lzma.compress(bios_disk(tmp_path / "disk.raw").read_bytes()))
    with monkeypatch.context() as full:
        full.setattr(space, "RESERVE_BYTES", shutil.disk_usage(tmp_path).total)
        with pytest.raises(Unavailable, match="What is unpacked needs 1 MiB more"):
            await take(tmp_path, tmp_path / "disk.xz")
        with pytest.raises(Unavailable, match="A partition needs 1 MiB more"):
            await take(tmp_path, tmp_path / "disk.raw")
        with pytest.raises(Unavailable, match="The disk image needs 1 MiB more"):
            await disks.to_qcow2(tmp_path / "disk.raw", tmp_path / "disk.qcow2", tmp_path / "log")
    await take(tmp_path, tmp_path / "disk.xz")


async def test_an_xz_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    packed = bytearray(lzma.compress(bytes(100)))
    assert packed[12:16] == b"\x02\x00\x21\x01"  # a block header of 12 bytes, with one filter: LZMA2
    packed[16] = 40  # the size of its dictionary, 4 GiB; the header's checksum follows
    packed[20:24] = struct.pack("<I", zlib.crc32(packed[12:20]))
    (tmp_path / "disk.xz").write_bytes(packed)
    assert "Memory usage limit" in await refused(tmp_path, tmp_path / "disk.xz")


async def test_a_zst_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    # A frame that may look back 2 GiB (RFC 8878, 3.1.1.1.2), with one empty block.
    (tmp_path / "disk.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00")
    assert "requires too much memory" in await refused(tmp_path, tmp_path / "disk.zst")


async def test_qemu_img_has_limits_of_memory_and_time_whatever_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    script = (
        f'#!/bin/sh\necho "$1 $(ulimit -v) $(ulimit -t)" >> {tmp_path}/seen\nexec {shutil.which("qemu-img")} "$@"\n'
    )
    (tmp_path / "bin/qemu-img").write_text(script)
    (tmp_path / "bin/qemu-img").chmod(0o755)
    disk = qcow2_of(bios_disk(tmp_path / "disk.raw"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    await take(tmp_path, disk)
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert {line[0] for line in seen} == {"info", "check", "measure", "convert"}
    assert {line[1] for line in seen} == {"2097152"}  # KiB
    assert all(int(line[2]) <= 1800 for line in seen)
