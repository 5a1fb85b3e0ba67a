"""Disk images: created without privileges, and inspected before they are trusted."""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vpsd.errors import Unusable
from vpsd.images.programs import run

_FORMATS = ("qcow2", "raw")
_LEAKS = 3  # how qemu-img check ends for clusters that nobody refers to: only space is lost


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


async def describe(path: Path, log: Path, name: str | None = None) -> dict[str, Any]:
    """What `qemu-img info` says about a disk image, which people know by its `name`.

    Raises `Unusable` for a file that is not a disk image, or would make the host read other files for the guest.
    """
    text = await run("qemu-img", "info", "--output=json", path, log=log, timeout_seconds=60)
    facts: dict[str, Any] = msgspec.json.decode(text)
    name = name or path.name
    if facts.get("format") not in _FORMATS:
        raise Unusable(f"{name} is a {facts.get('format')} image; only {' and '.join(_FORMATS)} are supported.")
    if facts.get("backing-filename") or facts.get("full-backing-filename"):
        raise Unusable(f"{name} depends on another file (backing file); convert it with qemu-img convert first.")
    if facts.get("format-specific", {}).get("data", {}).get("data-file"):
        raise Unusable(f"{name} keeps its data in another file; convert it with qemu-img convert first.")
    return facts


async def require_whole(path: Path, name: str, log: Path) -> None:
    """Raise `Unusable` for a qcow2 image that is damaged, or was not copied to its end: QEMU reads zeros there."""
    command = ("qemu-img", "check", "-q", "-f", "qcow2", path)
    try:
        await run(*command, log=log, timeout_seconds=600, accepted=(0, _LEAKS))
    except Unusable as error:
        raise Unusable(f"{name} is damaged or incomplete; fetch it again. {error}") from error


async def read_range(path: Path, form: str, offset: int, length: int, target: Path, log: Path) -> Path:
    """Write bytes of a disk into `target`; `offset` and `length` are multiples of 512."""
    disk = {"driver": form, "file": {"driver": "file", "filename": str(path)}}
    part = msgspec.json.encode({"driver": "raw", "offset": offset, "size": length, "file": disk}).decode()
    await run("qemu-img", "convert", "-O", "raw", f"json:{part}", target, log=log, timeout_seconds=300)
    return target
