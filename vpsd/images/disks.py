"""Disk images: created without privileges, and inspected before they are trusted."""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vpsd.errors import Unusable
from vpsd.images.programs import run
from vpsd.images.space import require_space

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
    text = await _qemu_img("measure", "--output=json", "-f", form, "-O", "qcow2", source, log=log, timeout_seconds=300)
    require_space(target.parent, int(msgspec.json.decode(text)["required"]), "The disk image")
    await _qemu_img("convert", "-f", form, "-O", "qcow2", *how, source, target, log=log, timeout_seconds=1800)


async def _qemu_img(*argv: str | Path, log: Path, timeout_seconds: float, accepted: Sequence[int] = (0,)) -> str:
    """Run qemu-img, limited: what strangers made may have been made to keep it busy."""
    return await run("qemu-img", *argv, log=log, timeout_seconds=timeout_seconds, accepted=accepted, limited=True)


async def _format(path: Path, log: Path) -> str:
    return str((await describe(path, log))["format"])


async def describe(path: Path, log: Path, name: str | None = None) -> dict[str, Any]:
    """What `qemu-img info` says about a disk image, which people know by its `name`.

    Raises `Unusable` for a file that is not a disk image, or would make the host read other files for the guest.
    """
    text = await _qemu_img("info", "--output=json", path, log=log, timeout_seconds=60)
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
    try:
        await _qemu_img("check", "-q", "-f", "qcow2", path, log=log, timeout_seconds=600, accepted=(0, _LEAKS))
    except Unusable as error:
        raise Unusable(f"{name} is damaged or incomplete; fetch it again. {error}") from error


async def read_range(path: Path, form: str, offset: int, length: int, target: Path, log: Path) -> Path:
    """Write bytes of a disk into `target`; `offset` and `length` are multiples of 512."""
    disk = {"driver": form, "file": {"driver": "file", "filename": str(path)}}
    part = msgspec.json.encode({"driver": "raw", "offset": offset, "size": length, "file": disk}).decode()
    require_space(target.parent, length, "A partition")
    await _qemu_img("convert", "-O", "raw", f"json:{part}", target, log=log, timeout_seconds=300)
    return target
