"""Maps a recipe to the function that makes its image."""

import hashlib
from pathlib import Path

from vpsd.errors import Misconfigured, Unusable
from vpsd.hypervisor.protocol import Progress
from vpsd.images import debian, tiny
from vpsd.images.disks import describe, require_boot_record, to_qcow2
from vpsd.images.programs import require
from vpsd.images.recipes import Build, Parts, Recipe


def build_of(recipe: Recipe) -> Build:
    """The function that builds or pulls a recipe's image; raises `Misconfigured` if it must be imported."""
    match recipe.kind:
        case "tiny":
            return tiny.build
        case "debian":
            return debian.build
        case "pull":
            return _pull_of(recipe)
    raise Misconfigured(f"The image {recipe.slug} has to be imported: vpsd image import {recipe.slug} FILE")


def import_of(path: Path) -> Build:
    """The function that imports a disk image from this machine."""

    async def build(work: Path, log: Path, progress: Progress) -> Parts:
        require("qemu-img")
        if not path.is_file():
            raise Unusable(f"{path} is not a file.")
        facts = await describe(path, log)
        if facts["format"] == "raw":
            require_boot_record(path)
        progress(0.2, "converting the disk image")
        parts = Parts()
        await to_qcow2(path, work / parts.disk, log)
        return parts

    return build


def _pull_of(recipe: Recipe) -> Build:
    url = recipe.url
    if url is None:
        raise Misconfigured(f"The image {recipe.slug} has no URL to pull from.")

    async def build(work: Path, log: Path, progress: Progress) -> Parts:
        from vpsd.images.pull import pull  # its HTTP client is slow to import and rarely needed

        require("qemu-img")
        # outside the work folder, which a failed build deletes, so that the download can resume
        part = log.parent / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
        pulled, parts = work / "pulled", Parts()
        await pull(
            url, pulled, lambda fraction, text: progress(0.9 * fraction, text),
            part=part, sha256=recipe.sha256, sums_url=recipe.sums_url,
        )  # fmt: skip
        facts = await describe(pulled, log)
        if facts["format"] == "qcow2":
            pulled.rename(work / parts.disk)
        else:
            progress(0.92, "converting the disk image")
            await to_qcow2(pulled, work / parts.disk, log)
            pulled.unlink()
        return parts

    return build
