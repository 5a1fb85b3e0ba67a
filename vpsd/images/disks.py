"""Disk images: created without privileges, and inspected before they are trusted."""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vpsd.errors import Unusable
from vpsd.images.programs import run

_FORMATS = ("qcow2", "raw")


async def make_ext4(root: Path, image: Path, size_bytes: int, options: Sequence[str], log: Path) -> None:
    """Make an ext4 file system from a folder; root owns everything in it, whoever runs the build."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    await run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", *options, "-d", root, image, log=log, timeout_seconds=300,
    )  # fmt: skip
    # mke2fs copies the folder's owners, which an ordinary user cannot set
    script = image.with_suffix(".debugfs")
    script.write_text("".join(f'sif "{path}" {field} 0\n' for path in _inodes(root) for field in ("uid", "gid")))
    await run("debugfs", "-w", "-f", script, image, log=log, timeout_seconds=300)
    script.unlink()


def _inodes(root: Path) -> Iterator[str]:
    yield "/"
    for path in sorted(root.rglob("*")):
        if not stat.S_ISLNK(path.lstat().st_mode):
            yield f"/{path.relative_to(root)}"


async def to_qcow2(source: Path, target: Path, log: Path, *, compress: bool = False) -> None:
    """Convert a checked disk image."""
    how = ("-c", "-o", "compression_type=zstd") if compress else ()
    form = await _format(source, log)
    await run("qemu-img", "convert", "-f", form, "-O", "qcow2", *how, source, target, log=log, timeout_seconds=1800)


async def _format(path: Path, log: Path) -> str:
    return str((await describe(path, log))["format"])


async def describe(path: Path, log: Path) -> dict[str, Any]:
    """What `qemu-img info` says about a disk image.

    Raises `Unusable` for a file that is not a disk image, or would make the host read other files for the guest.
    """
    text = await run("qemu-img", "info", "--output=json", path, log=log, timeout_seconds=60)
    facts: dict[str, Any] = msgspec.json.decode(text)
    if facts.get("format") not in _FORMATS:
        raise Unusable(f"{path.name} is a {facts.get('format')} image; only {' and '.join(_FORMATS)} are supported.")
    if facts.get("backing-filename") or facts.get("full-backing-filename"):
        raise Unusable(f"{path.name} depends on another file (backing file); convert it with qemu-img convert first.")
    if facts.get("format-specific", {}).get("data", {}).get("data-file"):
        raise Unusable(f"{path.name} keeps its data in another file; convert it with qemu-img convert first.")
    return facts


def require_boot_record(path: Path) -> None:
    """Raise `Unusable` for a raw image that no BIOS would boot: any file passes for a raw image."""
    with path.open("rb") as file:
        if file.read(512)[510:] != b"\x55\xaa":
            raise Unusable(f"{path.name} is not a bootable disk: there is no boot record in its first sector.")
