"""Writes files so that they are whole or not there, also after a power cut, and private from their first moment."""

import contextlib
import os
from pathlib import Path

PRIVATE = 0o600


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in the place of what is there; raises `OSError`."""
    new = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync(path.parent)


def create_private(path: Path) -> None:
    """Have a file that only its owner may read, where there is none; raises `OSError`.

    One that is there is not even opened: closing a database would take away the locks that this process has of it.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))


def open_private(path: Path) -> int:
    """Open a file that others can neither read nor lock, made where there is none; raises `OSError`."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)


def sync(path: Path) -> None:
    """Have a file's content, or what was created, renamed or removed in a folder, on the disk; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
