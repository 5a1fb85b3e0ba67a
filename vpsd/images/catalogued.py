"""Images for the worker: turns an operating system in the catalogue into files."""

from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Ctx
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.images.store import ImageStore, Recipe


def recipe_of(system: OperatingSystem) -> Recipe:
    """Where the image comes from, according to the catalogue."""
    return Recipe(slug=system.slug, kind=system.source, url=system.url, sha256=system.sha256, sums_url=system.sums_url)


async def measure_images(ctx: Ctx, store: ImageStore) -> None:
    """Write down what disks the images need that are here since before vpsd did so."""
    disk_gb = {image.slug: image.disk_gb for image in store.available()}
    for system in await catalog.list_operating_systems(ctx):
        if system.image_disk_gb is None and system.slug in disk_gb:
            await catalog.set_image_disk(ctx, system.id, disk_gb[system.slug])


class CataloguedImages:
    """Real images, from the store."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        """The operating system's image, fetched or built on first use."""
        return await self._store.ensure(recipe_of(system), progress)

    def find(self, system: OperatingSystem, key: str) -> Image | None:
        """The operating system's image of that key, which need not be its newest."""
        return self._store.find(system.slug, key)

    def current(self, system: OperatingSystem) -> str | None:
        """The key of the newest image in the store."""
        image = self._store.get(system.slug)
        return None if image is None else image.key

    def cloud_config_schema(self, system: OperatingSystem) -> str | None:
        """The JSON Schema of a #cloud-config that the image's own cloud-init brings, if it is known."""
        return self._store.schema(system.slug)
