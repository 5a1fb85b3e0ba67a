"""The images that this vpsd has: each in its own folder, complete or not there at all.

<folder>/<slug>/<digest>/image.json   the manifest, beside the files it names
<folder>/<slug>/.work/                a build in progress, or the remains of a killed one
<folder>/<slug>/build.log             log of the last build
"""

import asyncio
import fcntl
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec

from vpsd.core.files import sync
from vpsd.core.units import GIB
from vpsd.errors import Invalid, NotFound, Unavailable
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.images import sources
from vpsd.images.disks import describe
from vpsd.images.programs import remove_tree
from vpsd.images.recipes import Build, Parts, Recipe, StoredImage

__all__ = ["ImageStore", "Recipe", "StoredImage"]

_MANIFEST = "image.json"
_SLUG = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_POLL_SECONDS = 0.2


class ImageStore:
    """Images in a folder; several processes may share it."""

    def __init__(
        self, folder: Path, build_of: Callable[[Recipe], Build] | None = None, *, limit_bytes: int = 64 * GIB
    ) -> None:
        """`build_of` returns the function that makes a recipe's image; disks of others may be of `limit_bytes`."""
        self._folder = folder
        self._build_of = build_of or partial(sources.build_of, limit_bytes=limit_bytes)
        self._limit_bytes = limit_bytes

    def available(self) -> list[StoredImage]:
        """The newest complete image of every slug, sorted by slug."""
        slugs = sorted(path.name for path in self._folder.glob("*") if _SLUG.fullmatch(path.name))
        return [found[-1][1] for slug in slugs if (found := self._stored(slug))]

    def get(self, slug: str) -> Image | None:
        """The slug's newest image, or None."""
        found = self._stored(slug)
        return found[-1][1].image(found[-1][0]) if found else None

    def find(self, slug: str, key: str) -> Image | None:
        """The slug's image of that key, or None."""
        return next((stored.image(folder) for folder, stored in self._stored(slug) if stored.key == key), None)

    def schema(self, slug: str) -> str | None:
        """The JSON Schema of a #cloud-config that the newest image's own cloud-init brings, if it is known."""
        for folder, stored in self._stored(slug)[-1:]:
            if stored.parts.schema is not None:
                return (folder / stored.parts.schema).read_text()
        return None

    async def ensure(self, recipe: Recipe, progress: Progress) -> Image:
        """Return the recipe's image; a missing one is built or pulled once, however many callers wait.

        Raises what the build raises: `Unavailable` if retrying may help, else `Unusable` or `Misconfigured`.
        """
        image = self.get(recipe.slug)
        if image is not None:
            return image
        async with self._lock(recipe.slug, progress):
            return self.get(recipe.slug) or await self._make(recipe, self._build_of(recipe), progress)

    async def build(self, recipe: Recipe, progress: Progress) -> Image:
        """Rebuild or pull the image again; the old one stays for its users until the next build."""
        async with self._lock(recipe.slug, progress):
            return await self._make(recipe, self._build_of(recipe), progress)

    async def pull(self, recipe: Recipe, progress: Progress) -> Image:
        """Download the recipe's image again, resuming a partial download."""
        return await self.build(msgspec.structs.replace(recipe, kind="pull"), progress)

    async def import_file(self, slug: str, path: Path, progress: Progress) -> Image:
        """Import a qcow2 or raw disk image as the slug's; the file is copied.

        Raises `Unusable` if it is neither, or refers to other files.
        """
        recipe = Recipe(slug=slug, kind="import", url=str(path))
        async with self._lock(slug, progress):
            return await self._make(recipe, sources.import_of(path, self._limit_bytes), progress)

    async def remove(self, slug: str) -> None:
        """Delete all images of the slug; raises `NotFound` if there are none."""
        async with self._lock(slug, lambda _fraction, _text: None):
            found = self._stored(slug)
            if not found:
                raise NotFound("image", slug)
            for folder, _ in found:
                await self._delete(folder)
            await remove_tree(self._folder / slug)

    def _stored(self, slug: str) -> list[tuple[Path, StoredImage]]:
        """Complete images of a slug, oldest first."""
        found = []
        for manifest in (self._folder / _checked(slug)).glob(f"*/{_MANIFEST}"):
            try:
                stored = msgspec.json.decode(manifest.read_bytes(), type=StoredImage)
            except (OSError, msgspec.MsgspecError):
                continue
            if manifest.parent.name != ".work" and all((manifest.parent / n).exists() for n in stored.parts.names()):
                found.append((manifest.parent, stored))
        return sorted(found, key=lambda pair: pair[1].made_at)

    async def _make(self, recipe: Recipe, build: Build, progress: Progress) -> Image:
        home = self._folder / recipe.slug
        work, log = home / ".work", home / "build.log"
        try:
            await self._clear(recipe.slug)
            work.mkdir(parents=True)
            log.write_text("")
            parts = await build(work, log, progress)
            progress(0.97, "checking and storing the image")
            stored = await self._describe(recipe, parts, work, log)
            place = home / stored.digest[:12]
            if (place / _MANIFEST).exists():
                (place / _MANIFEST).unlink()
                await remove_tree(place)
            await asyncio.to_thread(_seal, work, stored)
            work.rename(place)
        except OSError as error:
            raise Unavailable(f"The image {recipe.slug} cannot be stored: {error}") from error
        finally:
            await remove_tree(work)
        progress(1.0, "the image is ready")
        return stored.image(place)

    async def _clear(self, slug: str) -> None:
        """Delete the remains of killed builds, and images older than the newest."""
        home = self._folder / slug
        await remove_tree(home / ".work")
        stored = self._stored(slug)
        for folder in home.glob("*/"):
            if folder not in [kept for kept, _ in stored[-1:]]:
                await self._delete(folder)

    async def _delete(self, folder: Path) -> None:
        (folder / _MANIFEST).unlink(missing_ok=True)
        await remove_tree(folder)

    async def _describe(self, recipe: Recipe, parts: Parts, work: Path, log: Path) -> StoredImage:
        facts = await describe(work / parts.disk, log)
        return StoredImage(
            slug=recipe.slug,
            digest=await asyncio.to_thread(_digest, work, parts),
            parts=parts,
            virtual_size_bytes=int(facts["virtual-size"]),
            size_bytes=sum((work / name).stat().st_size for name in parts.names()),
            made_at=self._after_all(recipe.slug).isoformat(timespec="microseconds"),
            source=f"{recipe.kind} {recipe.url or ''}".strip(),
        )

    def _after_all(self, slug: str) -> datetime:
        """Now, or right after the newest image where a clock that was ahead made that: the newest is the one in use."""
        made = [datetime.fromisoformat(stored.made_at) for _, stored in self._stored(slug)]
        return max([datetime.now(UTC), *(at + timedelta(microseconds=1) for at in made)])

    @asynccontextmanager
    async def _lock(self, slug: str, progress: Progress) -> AsyncIterator[None]:
        """Lock the slug's images against other tasks and processes."""
        locks = self._folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / _checked(slug)).open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    progress(0.0, f"waiting for another build of {slug}")
                    await asyncio.sleep(_POLL_SECONDS)
            yield


def _checked(slug: str) -> str:
    if not _SLUG.fullmatch(slug):
        raise Invalid({"slug": ["Use lowercase letters, digits, dots and hyphens, at most 63."]})
    return slug


def _digest(folder: Path, parts: Parts) -> str:
    digest = hashlib.sha256(msgspec.json.encode(parts))
    for name in parts.names():
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _seal(folder: Path, stored: StoredImage) -> None:
    """Write the manifest once everything else is synced to disk."""
    for name in stored.parts.names():
        (folder / name).chmod(0o644)
        sync(folder / name)
    (folder / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(stored)))
    sync(folder / _MANIFEST)
    sync(folder)
