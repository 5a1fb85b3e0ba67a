"""Images of operating systems."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.catalog import service as catalog
from vpsd.cli.output import print_json, print_result, print_rows, progress_shown
from vpsd.cli.run import Json, read_settings, reading, run_async, writing
from vpsd.errors import Invalid
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.images.catalogued import recipe_of
from vpsd.images.store import ImageStore, Recipe

app = typer.Typer(
    no_args_is_help=True,
    help="""Images of operating systems. They are built or pulled when first needed; these commands do it in
    advance. New servers use the new image; existing disks keep the one that they were created from.""",
)

Slug = Annotated[str, typer.Argument(help="Slug of the operating system, from `vpsd catalog show`.")]
Make = Callable[[ImageStore, Recipe, Progress], Coroutine[Any, Any, Image]]


def _store() -> ImageStore:
    return main.image_store(read_settings())


@app.command("list")
def list_images(json: Json = False) -> None:
    """List the images on this machine. `vpsd catalog show` lists all operating systems."""
    found = _store().available()
    if json:
        print_json([{"key": image.key, **_fields(image)} for image in found])
        return
    rows = [(image.key, f"{image.size_bytes / 1e6:.0f} MB", image.made_at, image.source) for image in found]
    print_rows(("key", "size", "made", "source"), rows, "There are no images yet; `vpsd image build tiny` makes one.")


def _fields(image: object) -> dict[str, object]:
    return {name: getattr(image, name) for name in ("slug", "digest", "size_bytes", "made_at", "source")}


@run_async
async def _make(slug: str, json: bool, kinds: tuple[str, ...], make: Make) -> None:
    async with reading() as ctx:
        system = await catalog.get_operating_system(ctx, slug)
    recipe = recipe_of(system)
    if recipe.kind not in kinds:
        raise Invalid({"slug": [f"to get {slug}, use `vpsd image {_COMMANDS[recipe.kind]}`."]})
    with progress_shown(slug) as progress:
        image = await make(_store(), recipe, progress)
    async with writing() as ctx:
        await catalog.set_image_disk(ctx, system.id, image.disk_gb)
    fields = {"key": image.key, "disk": str(image.disk), "virtual_size_bytes": image.virtual_size_bytes}
    fields |= {"firmware": image.firmware or "bios", "min_disk_gb": image.disk_gb}
    print_result(json, fields, f"Image {image.key} is ready. It needs a disk of {image.disk_gb} GB.")


_COMMANDS = {"tiny": "build", "debian": "build", "pull": "pull", "import": "import"}


@app.command()
def build(slug: Slug, json: Json = False) -> None:
    """Build an image from Debian packages: `vpsd image build tiny`, `vpsd image build debian-12`."""
    _make(slug, json, ("tiny", "debian"), lambda store, recipe, progress: store.build(recipe, progress))


@app.command()
def pull(slug: Slug, json: Json = False) -> None:
    """Download an image from its URL in the catalogue: `vpsd image pull ubuntu-22.04`.

    It is verified against the checksum that its publisher gives, unpacked (.xz, .gz, .zst), and looked at: it has to be
    a disk that boots x86-64 machines, by BIOS or UEFI.
    """
    _make(slug, json, ("pull",), lambda store, recipe, progress: store.pull(recipe, progress))


@app.command("import")
def import_image(
    slug: Slug,
    file: Annotated[Path, typer.Argument(help="Disk image: qcow2 or raw, also packed as .xz, .gz or .zst.")],
    json: Json = False,
) -> None:
    """Use a disk image of your own for an operating system of the catalogue, whatever its source.

    Example: `vpsd image import debian-12 my-debian.qcow2`. The file is copied, and used for new servers. It has to be a
    disk that boots x86-64 machines, by BIOS or UEFI.
    """
    kinds = tuple(_COMMANDS)
    _make(slug, json, kinds, lambda store, recipe, progress: store.import_file(recipe.slug, file, progress))
