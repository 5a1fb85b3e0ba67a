"""Images for the worker: turns an operating system in the catalogue into files."""

from vpsd.catalog.models import OperatingSystem
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.images.store import ImageStore, Recipe


def recipe_of(system: OperatingSystem) -> Recipe:
    """Where the image comes from, according to the catalogue."""
    return Recipe(slug=system.slug, kind=system.source, url=system.url, sha256=system.sha256, sums_url=system.sums_url)


class CataloguedImages:
    """Real images, from the store."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        """The operating system's image, fetched or built on first use."""
        return await self._store.ensure(recipe_of(system), progress)

    def cloud_config_schema(self, system: OperatingSystem) -> str | None:
        """The JSON Schema of a #cloud-config that the image's own cloud-init brings, if it is known."""
        return self._store.schema(system.slug)
