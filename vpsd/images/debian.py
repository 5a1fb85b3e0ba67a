"""Debian 12."""

from pathlib import Path

from vpsd.hypervisor.protocol import Progress
from vpsd.images.recipes import Parts


async def build(work: Path, log: Path, progress: Progress) -> Parts:
    """Build."""
    raise NotImplementedError
