"""The data folder: who may read what is in it, and what an earlier cloud has left there.

Others than its owner may pass through the folder and list nothing: QEMU may be another user, and has disks below it. So
whatever nobody else may read is private by itself (docs/decisions/0014).
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vpsd.core.files import write_private
from vpsd.core.ids import Ids
from vpsd.errors import Misconfigured
from vpsd.settings import Settings

MARK = "host-mark"
TOKEN = "token"  # noqa: S105  # the name of a file
_FOLDER_MODE = 0o711
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_PASS = stat.S_IXGRP | stat.S_IXOTH
_PRIVATE = ("vpsd.lock", f"{TOKEN}*", "simulator*.*", "backups", "libvirt/sock", "libvirt/etc", "libvirt/log")
_PASSABLE = (".", "pool", "pool/serial", "libvirt")
_DISK_FILES = ("vpsd-*.qcow2", "vpsd-*-seed.iso")


def prepare(settings: Settings) -> None:
    """Have the data folder; raises `Misconfigured` where there can be none."""
    data = settings.data_dir
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        data.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"VPSD_DATA_DIR={data} cannot be used: {error.strerror}") from error
    if not os.access(data, os.W_OK | os.X_OK):
        raise Misconfigured(f"VPSD_DATA_DIR={data} cannot be used: this user may not write to it")


def mark(settings: Settings, ids: Ids) -> str:
    """A uuid that tells this data folder from all others: from here hosts without an address are reached."""
    path = settings.data_dir / MARK
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    made = path.with_name(f".{path.name}.{os.getpid()}")
    write_private(made, f"{ids.uuid()}\n")
    with contextlib.suppress(FileExistsError):  # another process that shares the folder was quicker
        os.link(made, path)
    made.unlink()
    return path.read_text().strip()


def exposed(settings: Settings) -> list[Path]:
    """What others than its owner could read or change and should not."""
    return [path for path, _ in _exposed(settings)]


def hide(settings: Settings) -> list[Path]:
    """Make that private; what could not be, because it is somebody else's, is still `exposed`."""
    done = []
    for path, mode in _exposed(settings):
        try:
            path.chmod(mode)
        except OSError:
            continue
        done.append(path)
    return done


def _exposed(settings: Settings) -> Iterator[tuple[Path, int]]:
    """Each, and the mode that it should have."""
    data = settings.data_dir
    private = [path for pattern in _PRIVATE for path in data.glob(pattern)]
    if (database := _sqlite_file(settings)) is not None:
        private += [Path(f"{database}{end}") for end in ("", "-wal", "-shm", ".lock")]
    for paths, kept in ((private, 0), ([data / name for name in _PASSABLE], _PASS)):
        for path in sorted(set(paths)):
            with contextlib.suppress(OSError):  # it is not there, or not any more
                mode = stat.S_IMODE(path.stat().st_mode)
                if mode & _OTHERS & ~kept:
                    yield path, mode & ~(_OTHERS & ~kept)


def refuse_traces(settings: Settings) -> None:
    """Raise `Misconfigured` where an earlier cloud has left something: a new database would never know of it."""
    found = list(_traces(settings))
    if not found:
        return
    new, way_back = str(_sqlite_file(settings)), "Put the database of that cloud back"
    if settings.database_url is not None:
        new, way_back = "VPSD_DATABASE_URL", "Use the database of that cloud"
    raise Misconfigured(
        f"the database ({new}) is new, but there is an earlier cloud's {'; '.join(found)}. A new cloud would not know "
        f"of that, so none was begun. {way_back}, or set VPSD_DATA_DIR to another folder. To begin a new cloud "
        "here all the same, and leave all that where it is: vpsd up --new-cloud"
    )


def _traces(settings: Settings) -> Iterator[str]:
    """In words, what only a vpsd with a database can have made. Images, keys and the catalogue may come before one."""
    data = settings.data_dir
    database = _sqlite_file(settings)
    databases = dict.fromkeys((data / "vpsd.sqlite", database or data / "vpsd.sqlite"))
    for path in (*databases, *(Path(f"{path}-wal") for path in databases)):
        if path != database and _size(path):
            yield f"database {path}"
    if (data / TOKEN).exists():
        yield f"token {data / TOKEN}"
    for folder in dict.fromkeys((data / "pool", settings.pool_dir or data / "pool")):
        if files := sum(1 for pattern in _DISK_FILES for _ in folder.glob(pattern)):
            yield f"{files} disks and seeds in {folder}"
    if guests := sum(1 for _ in data.glob("libvirt/etc/qemu/vpsd-*.xml")):
        yield f"{guests} guests of the libvirtd in {data / 'libvirt'}"
    if _has_changes(data / "simulator.journal") or _size(data / "simulator.sqlite"):
        yield f"simulated host {data / 'simulator.journal'}"
    if any(data.glob("backups/vpsd-*")):
        yield f"backups in {data / 'backups'}"


def _sqlite_file(settings: Settings) -> Path | None:
    scheme, _, path = settings.url.partition(":///")
    return Path(path) if scheme == "sqlite" else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _has_changes(journal: Path) -> bool:
    """Whether there is more than a header: `vpsd doctor` alone makes that."""
    try:
        with journal.open("rb") as file:
            return bool(file.readline() and file.readline())
    except OSError:
        return False


def set_aside(path: Path) -> Path:
    """Give a file another name, beside it, that no other has."""
    number = 1
    while (new := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(new)
