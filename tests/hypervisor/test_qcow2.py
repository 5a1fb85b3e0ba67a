"""The qcow2 files that vpsd reads and writes, held to QEMU's own tools."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt import qcow2

CHUNK = 1 << 20


def write(path: Path, size: int, chunks: dict[int, bytes]) -> None:
    plan = qcow2.plan_file(size, CHUNK, sorted(chunks))
    with path.open("wb") as file:
        file.write(plan.header + plan.tables)
        for number in sorted(chunks):
            file.write(qcow2.padded(chunks[number]))
        assert file.tell() == plan.file_bytes


def qemu_img(*args: str | Path) -> str:
    return subprocess.run(["qemu-img", *args], capture_output=True, text=True, check=True).stdout


def reader(path: Path) -> qcow2.Read:
    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        (64 << 20, [0, 1, 5, 63]),
        (64 << 20, []),
        ((5 << 20) + 4096, [0, 5]),  # the last chunk is shorter than a cluster
        (40 << 30, [0, 511, 512, 40 * 1024 - 1]),  # several tables
        (1 << 30, list(range(0, 1024, 3))),
    ],
)
def test_a_written_file_is_what_qemu_reads(tmp_path: Path, size: int, numbers: list[int]) -> None:
    some = random.Random(7)
    chunks = {number: some.randbytes(min(CHUNK, size - number * CHUNK)) for number in numbers}
    path = tmp_path / "disk.qcow2"
    write(path, size, chunks)
    assert json.loads(qemu_img("check", "--output=json", path)).get("leaks", 0) == 0  # raises for corruptions
    assert json.loads(qemu_img("info", "--output=json", path))["virtual-size"] == size
    raw = tmp_path / "disk.raw"
    qemu_img("convert", "-O", "raw", path, raw)
    with raw.open("rb") as file:
        for number, content in chunks.items():
            file.seek(number * CHUNK)
            assert file.read(len(content)) == content
    held = sum(extent["length"] for extent in json.loads(qemu_img("map", "--output=json", path)) if extent["data"])
    assert held == sum(-(-len(content) // 4096) * 4096 for content in chunks.values())


def test_a_refcount_table_grows_with_the_file() -> None:
    plan = qcow2.plan_file(6 << 30, CHUNK, range(6 * 1024))
    counted = plan.file_bytes // qcow2.CLUSTER_BYTES
    assert counted > 3 * 32768  # needs four blocks of counts
    assert plan.tables.count(b"\x00\x01" * counted) == 1


def test_what_qemu_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "export.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1G")
    commands = ("write -P 7 70k 130k", "write -P 9 600M 2M", "write -z 1M 3M", "write -P 1 1048508k 64k")
    subprocess.run(
        ["qemu-io", *(part for command in commands for part in ("-c", command)), path], check=True, stdout=-3
    )
    found = qcow2.read_map(reader(path))
    raw = tmp_path / "export.raw"
    qemu_img("convert", "-O", "raw", path, raw)
    expected = reader(raw)
    for offset, length in ((0, CHUNK), (CHUNK, 4 * CHUNK), (599 << 20, 4 << 20), ((1 << 30) - 9, 100), (65_000, 9)):
        assert found.read(reader(path), offset, length) == expected(offset, length)
    extents = found.extents()
    assert [extent.offset for extent in extents] == sorted(extent.offset for extent in extents)
    assert any(extent.zero for extent in extents)
    assert all(not extent.zero or extent.offset >= CHUNK for extent in extents)
    assert sum(extent.length for extent in extents if not extent.zero) == (4 << 16) + (2 << 20) + (1 << 16)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with pytest.raises(Unusable, match="not a qcow2"):
        qcow2.read_map(reader(path))
    raw = tmp_path / "raw"
    raw.write_bytes(b"data" * 65536)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    with pytest.raises(Unusable, match="compressed"):
        qcow2.read_map(reader(path))


def _with_backing(name: bytes, at: int = 512) -> bytes:
    header = qcow2._HEADER.pack(qcow2.MAGIC, 3, at, len(name), 16, 1 << 20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 4, 104)
    return (header.ljust(at, b"e") + name).ljust(qcow2.CLUSTER_BYTES, b"t")


def test_a_backing_file_is_named_without_its_path_and_nothing_else_changes() -> None:
    before = _with_backing(b"/srv/pool/base-tiny-1.qcow2")
    after = qcow2.with_relative_backing(before)
    assert after is not None
    assert len(after) == 512 + len(b"/srv/pool/base-tiny-1.qcow2")
    assert after[512:].rstrip(b"\0") == b"base-tiny-1.qcow2"
    assert int.from_bytes(after[16:20]) == len(b"base-tiny-1.qcow2")
    assert (after[:16], after[20:512]) == (before[:16], before[20:512])


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"not a disk".ljust(qcow2.CLUSTER_BYTES),
        _with_backing(b"base-tiny-1.qcow2"),
        _with_backing(b"", 0),
        _with_backing(b"/srv/pool/"),
        _with_backing(b"/srv/pool/base-tiny-1.qcow2")[:520],
    ],
)
def test_a_start_in_which_nothing_is_to_be_changed_is_left(start: bytes) -> None:
    assert qcow2.with_relative_backing(start) is None
