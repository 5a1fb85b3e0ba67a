"""What an image is made from, what a build produces, and what the store records about it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from vpsd.core.units import GIB
from vpsd.hypervisor.protocol import Image, Progress


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image comes from; a pulled one needs `url`, and `sha256` or `sums_url`."""

    slug: str
    kind: str  # tiny | debian | pull | import
    url: str | None = None
    sha256: str | None = None
    sums_url: str | None = None


class Parts(msgspec.Struct, frozen=True):
    """Names of an image's files in its folder; without a kernel the disk itself boots."""

    disk: str = "disk.qcow2"
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    firmware: str | None = None  # that the disk needs: uefi; None: BIOS
    schema: str | None = None  # of a #cloud-config: the JSON Schema of the image's own cloud-init

    def names(self) -> list[str]:
        """The files that exist."""
        return [name for name in (self.disk, self.kernel, self.initrd, self.schema) if name]


class StoredImage(msgspec.Struct, frozen=True):
    """The manifest of an image in the store: `image.json` in its folder."""

    slug: str
    digest: str  # sha256 over the files
    parts: Parts
    virtual_size_bytes: int
    size_bytes: int  # of all files
    made_at: str  # UTC, ISO 8601
    source: str  # the recipe's kind, and where it came from

    @property
    def key(self) -> str:
        """A name for exactly these bytes."""
        return f"{self.slug}-{self.digest[:12]}"

    @property
    def disk_gb(self) -> int:
        """The smallest disk that holds it, in GB."""
        return -(-self.virtual_size_bytes // GIB)

    def image(self, folder: Path) -> Image:
        """The image in the form that hypervisors expect; `folder` holds its files."""
        parts = self.parts
        return Image(
            key=self.key,
            disk=folder / parts.disk,
            virtual_size_bytes=self.virtual_size_bytes,
            kernel=folder / parts.kernel if parts.kernel else None,
            initrd=folder / parts.initrd if parts.initrd else None,
            cmdline=parts.cmdline,
            firmware=parts.firmware,
        )


Build = Callable[[Path, Path, Progress], Awaitable[Parts]]
"""Called with an empty work folder that becomes the image's, a log file and progress; returns its files' names."""
