"""A vpsd's own state in one file: rows, secrets and settings; and the way back, into either kind of database.

Compressed lines of JSON: what it is, with the settings and the files of the data folder; all rows
(`migrations/rows.py`); and the SHA-256 of everything before. Guests, disks, images and backups are elsewhere: on the
hosts, and on the target.
"""

import contextlib
import gzip
import hashlib
import os
import shlex
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import msgspec
from sqlalchemy import Connection

from vpsd import __version__
from vpsd.core import folder
from vpsd.core.db import sqlite_path
from vpsd.core.files import PRIVATE, sync, write_private
from vpsd.errors import Misconfigured
from vpsd.migrations import rows, schema, shape
from vpsd.migrations.rows import Damaged, Report, Sum
from vpsd.settings import Settings

FORMAT = 1
SETTINGS = "settings.env"
KEY = "backup.key"


class Head(msgspec.Struct, kw_only=True):
    """The first line of a file."""

    format: int
    version: str
    made_at: str
    settings: dict[str, str]
    files: dict[str, bytes]


class State(msgspec.Struct, frozen=True):
    """What a file holds."""

    head: Head
    schema: str
    rows: dict[str, int]  # by table


async def back_up(settings: Settings, environ: Mapping[str, str], to: Path, made_at: str, report: Report) -> State:
    """Write a file that only its owner may read, in the place of what is there, while vpsd runs.

    `environ` is where the settings came from. Raises `Misconfigured` where that cannot be.
    """
    new = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        head = Head(
            format=FORMAT,
            version=__version__,
            made_at=made_at,
            settings={name: value for name, value in sorted(environ.items()) if name.startswith("VPSD_")},
            files={name: path.read_bytes() for name, path in _files(settings).items() if path.exists()},
        )
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE), "wb") as file:
            await schema.snapshot(settings.url, partial(_write, file, head, report))
            file.flush()
            os.fsync(file.fileno())
        found = read(new)  # what cannot be read is no backup
        new.rename(to)
        sync(to.absolute().parent)
    except OSError as error:
        raise Misconfigured(f"{error.filename or to} cannot be used: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return found


def _write(file: IO[bytes], head: Head, report: Report, connection: Connection) -> None:
    digest = hashlib.sha256()
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
        for line in chain((msgspec.json.encode(head),), rows.dump(connection, report)):
            packed.write(line + b"\n")
            digest.update(line + b"\n")
        packed.write(msgspec.json.encode({"sha256": digest.hexdigest()}) + b"\n")


def read(path: Path) -> State:
    """Read a file to its end; raises `Damaged` unless everything in it is as it was written, and of a known version."""
    digest, last = hashlib.sha256(), b""
    head = end = None
    present = ""
    try:
        for line in _lines(path):
            if head is None:
                head = _head(path, line)
            elif line.startswith(b'{"schema"'):
                present = msgspec.json.decode(line, type=dict[str, str])["schema"]
            elif line.startswith(b'{"end"'):
                end = msgspec.json.decode(line, type=dict[str, dict[str, Sum]])["end"]
            digest.update(last)
            last = line + b"\n"
    except msgspec.MsgspecError:
        end = None
    if head is None or end is None or last != msgspec.json.encode({"sha256": digest.hexdigest()}) + b"\n":
        raise Damaged(f"{path} is damaged: it is not as it was written")
    if present not in shape.released():
        raise Misconfigured(f"{path} is of schema {present}, which this vpsd does not know: use vpsd {head.version}")
    return State(head, present, {name: each.rows for name, each in end.items()})


def _head(path: Path, line: bytes) -> Head:
    try:
        version = msgspec.json.decode(line)["format"]
        if version != FORMAT:
            raise Misconfigured(f"{path} has the format {version}, which this vpsd does not know: use a later version")
        return msgspec.json.decode(line, type=Head)
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise Damaged(f"{path} is not a file of `vpsd state backup`") from None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                yield line.removesuffix(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Damaged(f"{path} is damaged, or not a file of `vpsd state backup`") from None
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}") from error


async def restore(settings: Settings, path: Path, report: Report, *, replace: bool = False) -> list[str]:
    """Bring a state back: the rows to the database of the settings, which is empty, the files to the data folder.

    Everything is verified before anything is written. With `replace`, an SQLite database and files that are there are
    set aside; else they are refused. The caller keeps others from the data folder. Returns, in words, what was done.
    """
    found = read(path)
    wanted = {**_places(settings), SETTINGS: settings.data_dir / SETTINGS}
    files = {**found.head.files, SETTINGS: _environment_file(found.head.settings)}
    changed = {wanted[name]: data for name, data in files.items() if _content(wanted[name]) != data}
    in_the_way = [place for place in changed if place.exists()]
    database = Path(sqlite_path(settings.url)) if settings.url.startswith("sqlite") else None
    if database is not None and database.exists() and database.stat().st_size:
        in_the_way.insert(0, database)
    if in_the_way and not replace:
        raise Misconfigured(
            f"{', '.join(map(str, in_the_way))} would be written over, so nothing was restored. Set VPSD_DATA_DIR to "
            "an empty folder, or set aside what is there: --replace"
        )
    said = []
    if database is None:
        await schema.run(settings.url, partial(_load, path, report))
    else:
        new = database.with_name(f"{database.name}.restoring")
        _remove(new)
        try:
            await schema.run(f"sqlite:///{new}", partial(_load, path, report))
            if database in in_the_way:
                said.append(f"{database} is {set_aside(database).name} now")
            new.rename(database)
            sync(database.parent)
        finally:
            _remove(new)
    said.append(f"restored {sum(found.rows.values())} rows, as of {found.head.made_at}")
    for place, data in changed.items():
        if place.exists():
            said.append(f"{place} is {folder.set_aside(place).name} now")
        write_private(place, data.decode())
        said.append(f"wrote {place}")
    return said


def _load(path: Path, report: Report, connection: Connection) -> None:
    lines = _lines(path)
    next(lines)
    rows.load(connection, lines, report)


async def move(source: Path, url: str, report: Report) -> dict[str, int]:
    """Move the rows of an SQLite file to the empty database of a URL; the file is then set aside.

    The caller keeps vpsd from the file. Returns how many rows there are, by table.
    """
    if not source.exists():
        raise Misconfigured(f"there is no database {source}")
    between = source.with_name(f".{source.name}.moving")
    head = Head(format=FORMAT, version=__version__, made_at="", settings={}, files={})
    try:
        with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as others:
            others.execute("BEGIN IMMEDIATE")  # nobody writes what would be left behind
            between.unlink(missing_ok=True)
            with os.fdopen(os.open(between, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
                await schema.snapshot(f"sqlite:///{source}", partial(_write, file, head, lambda _f, _t: None))
            found = read(between)
            await schema.run(url, partial(_load, between, report))
    except sqlite3.Error as error:
        raise Misconfigured(f"the database {source} cannot be used: {error}") from error
    finally:
        between.unlink(missing_ok=True)
    return found.rows


def set_aside(database: Path) -> Path:
    """Give an SQLite file, and the log that belongs to it, a name that no other has."""
    new = folder.set_aside(database)
    for end in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{database}{end}").rename(f"{new}{end}")
    sync(database.absolute().parent)
    return new


def _remove(database: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal", ".lock"):
        Path(f"{database}{end}").unlink(missing_ok=True)


def _files(settings: Settings) -> dict[str, Path]:
    """What is kept, by its name in the file; the key only where there is one."""
    return {name: path for name, path in _places(settings).items() if name != KEY or settings.backup_key_file}


def _places(settings: Settings) -> dict[str, Path]:
    data = settings.data_dir
    places = {name: data / name for name in (folder.TOKEN, folder.MARK, "catalog.toml")}
    return {**places, KEY: settings.backup_key_file or data / KEY}


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _environment_file(settings: Mapping[str, str]) -> bytes:
    """As a shell and systemd's EnvironmentFile read it."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()).encode()
