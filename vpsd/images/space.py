"""Space for images: looked at before it is taken, and while it is."""

import shutil
from pathlib import Path

from vpsd.core.units import GIB, MIB
from vpsd.errors import Unavailable

RESERVE_BYTES = GIB  # that is left on the disk, for everybody else who writes there


def require_space(folder: Path, needed_bytes: int, name: str) -> None:
    """Raise `Unavailable`, with a sentence about `name`, unless so much more may be written to a folder."""
    free_bytes = shutil.disk_usage(folder).free - RESERVE_BYTES
    if needed_bytes > free_bytes:
        raise Unavailable(
            f"{name} needs {-(-needed_bytes // MIB)} MiB more, and the disk for images has {max(free_bytes, 0) // MIB} "
            f"MiB to spare ({RESERVE_BYTES // MIB} MiB are left free)."
        )
