"""Maps a recipe to the function that makes its image."""

import hashlib
from pathlib import Path

from vpsd.core.units import GIB
from vpsd.errors import Misconfigured, Unusable
from vpsd.hypervisor.protocol import Progress
from vpsd.images import debian, tiny
from vpsd.images.bootable import firmware_of
from vpsd.images.disks import describe, read_range, require_whole, to_qcow2
from vpsd.images.looks import packing, refusal
from vpsd.images.programs import require
from vpsd.images.recipes import Build, Parts, Recipe
from vpsd.images.unpack import unpack


def build_of(recipe: Recipe, limit_bytes: int) -> Build:
    """The function that builds or pulls a recipe's image; raises `Misconfigured` if it must be imported.

    `limit_bytes` is how large a disk may be that vpsd did not build itself, and its file.
    """
    match recipe.kind:
        case "tiny":
            return tiny.build
        case "debian":
            return debian.build
        case "pull":
            return _pull_of(recipe, limit_bytes)
    raise Misconfigured(f"The image {recipe.slug} has to be imported: vpsd image import {recipe.slug} FILE")


def import_of(path: Path, limit_bytes: int) -> Build:
    """The function that imports a disk image from this machine; its disk may be that large."""

    async def build(work: Path, log: Path, progress: Progress) -> Parts:
        require("qemu-img")
        if not path.is_file():
            raise Unusable(f"{path} is not a file.")
        return await _take_in(path, path.name, work, log, limit_bytes, lambda part, text: progress(0.97 * part, text))

    return build


async def _take_in(path: Path, name: str, work: Path, log: Path, limit_bytes: int, progress: Progress) -> Parts:
    """Have a disk image of which nothing is known as the image's disk, once it has been looked at.

    The file may be packed. It stays where it is, unless it lies in `work`. Raises `Unusable`, with a sentence about
    `name`, for what no guest boots from.
    """
    kind, unpacked = packing(path), work / "unpacked"
    if kind is not None:
        await unpack(path, name, kind, unpacked, lambda part, text: progress(0.5 * part, text), limit_bytes=limit_bytes)
        path, name = unpacked, f"{name}, unpacked,"
        if packing(path) is not None:
            raise Unusable(f"{name} is packed once more; unpack it first.")
    refused = refusal(path)
    if refused is not None:
        raise Unusable(f"{name} {refused}.")
    progress(0.6, "looking at the disk image")
    facts, parts, piece = await describe(path, log, name), Parts(), work / "piece"
    size_bytes = int(facts["virtual-size"])
    if size_bytes > limit_bytes:
        raise Unusable(
            f"{name} is a disk of {-(-size_bytes // GIB)} GB; the largest that is taken has {limit_bytes // GIB} GB."
        )
    if facts["format"] == "qcow2":
        await require_whole(path, name, log)

    async def read(offset: int, length: int) -> Path:
        return await read_range(path, facts["format"], offset, length, piece, log)

    firmware = await firmware_of(name, size_bytes, read)
    piece.unlink()
    if facts["format"] == "qcow2" and path.parent == work:
        path.rename(work / parts.disk)
    else:
        progress(0.7, "converting the disk image")
        await to_qcow2(path, work / parts.disk, log)
        if path.parent == work:
            path.unlink()
    return Parts(firmware=firmware)


def _pull_of(recipe: Recipe, limit_bytes: int) -> Build:
    url = recipe.url
    if url is None:
        raise Misconfigured(f"The image {recipe.slug} has no URL to pull from.")

    async def build(work: Path, log: Path, progress: Progress) -> Parts:
        from vpsd.images.pull import pull  # its HTTP client is slow to import and rarely needed

        require("qemu-img")
        # outside the work folder, which a failed build deletes, so that the download can resume
        part = log.parent / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
        pulled = work / "pulled"
        await pull(
            url, pulled, lambda fraction, text: progress(0.7 * fraction, text),
            part=part, limit_bytes=limit_bytes, sha256=recipe.sha256, sums_url=recipe.sums_url,
        )  # fmt: skip
        parts = await _take_in(
            pulled, url, work, log, limit_bytes, lambda part, text: progress(0.7 + 0.27 * part, text)
        )
        pulled.unlink(missing_ok=True)  # what was unpacked lies beside it
        return parts

    return build
