"""Images for the simulator."""

import hashlib
from pathlib import Path

from vpsd.catalog.models import OperatingSystem
from vpsd.core.units import MIB
from vpsd.hypervisor.protocol import Image, Progress


class SimulatedImages:
    """Images for the simulator: a key, and no files."""

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        """An image that nothing can boot."""
        progress(1.0, "simulated")
        return self.find(system, self.current(system))

    def find(self, system: OperatingSystem, key: str) -> Image:
        """The same, whatever its key."""
        return Image(key=key, disk=Path("simulated"), virtual_size_bytes=system.disk_bytes or MIB)

    def current(self, system: OperatingSystem) -> str:
        """Its key, which follows from its name."""
        return f"{system.slug}-{hashlib.sha256(system.slug.encode()).hexdigest()[:12]}"

    def cloud_config_schema(self, system: OperatingSystem) -> str | None:  # noqa: ARG002
        """None: there is no cloud-init in it."""
        return None
