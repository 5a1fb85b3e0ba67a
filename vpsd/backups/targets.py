"""Storage for the objects of backups: a directory, or a bucket of an S3-compatible service."""

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Meta

from vpsd.backups.concurrency import run_in_thread
from vpsd.core.files import sync
from vpsd.core.units import MIB
from vpsd.errors import Unavailable, Unusable
from vpsd.settings import Settings


class TargetFull(Unusable):
    """The target is full; the message names it."""

    public = "The backups' store is full; the operator has to make room."


class Missing(Unusable):
    """There is no such object on the target."""

    public = "A part of the backup is missing from the backups' store."


class TooLarge(Unusable):
    """An object is larger than any that vpsd stores; nothing of it was read."""


class TargetNotThere(Unusable):
    """What is at the target's place is not that target: a folder that is not mounted, or another one."""

    public = "The backups' store is not there now; try again when the operator has it back."


NO_ANSWER = "The backups' store does not answer as it should; the operator can see why."
REFUSES = "The backups' store refuses it; the operator can see why."


class Target(Protocol):
    """Stores objects by key: names joined by `/`, none of which starts with a dot.

    Calls are idempotent, and raise `Unavailable` (retry) or `Unusable` (permanent).
    """

    name: str  # in rows and messages: `directory /srv/backups`, `s3 bucket/prefix`

    async def put(self, key: str, data: bytes) -> None:
        """Store the object atomically and durably. Raises `TargetFull`."""

    async def create(self, key: str, data: bytes) -> bytes:
        """Store the object unless there is one of that key; the bytes that are there then."""

    async def get(self, key: str) -> bytes:
        """The object's bytes; raises `Missing`, `TooLarge`."""

    async def keys(self, folder: str) -> list[str]:
        """The keys that start with `folder`, which ends in `/`, in order."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete these objects; missing ones are ignored."""


MARK = "vpsd-target.json"
LARGEST_OBJECT_BYTES = 512 * MIB  # that is read into memory


class Mark(msgspec.Struct, frozen=True):
    """What lies on a target under that key: it is known by this, wherever it is."""

    mark: Annotated[str, Meta(pattern=r"^[0-9a-f-]{36}\Z")]


TargetState: TypeAlias = Literal["unknown", "ok", "unused", "missing", "unavailable", "elsewhere"]


class TargetStatus(msgspec.Struct):
    """How the target was when it was last looked at."""

    status: TargetState = "unknown"
    error: str | None = None


async def read_mark(target: Target) -> str | None:
    """The mark of what is at the target's place, None where there is none; raises `TargetNotThere` for no mark."""
    try:
        return _decode_mark(target, await target.get(MARK))
    except Missing:
        return None


async def put_mark(target: Target, mark: str) -> str:
    """Mark the target, unless it is marked; its mark then."""
    return _decode_mark(target, await target.create(MARK, msgspec.json.encode(Mark(mark)) + b"\n"))


def _decode_mark(target: Target, data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=Mark).mark
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        what = f"{target.name}: {MARK} is not a mark of vpsd ({error})"
        raise TargetNotThere(f"{what}; delete it, and then: vpsd backup target adopt") from error


def open_target(settings: Settings) -> Target:
    """The configured target; does not access it yet."""
    if settings.backup_s3 is None:
        return Directory(settings.backup_folder)
    from vpsd.backups.s3 import S3  # here: it builds on this module

    bucket, _, prefix = settings.backup_s3.partition("/")
    return S3(bucket, prefix, settings.backup_s3_endpoint, settings.backup_s3_region)


def refuse_larger(size_bytes: int) -> None:
    """Raise `TooLarge` for what is no object of vpsd's."""
    if size_bytes > LARGEST_OBJECT_BYTES:
        raise TooLarge(f"it has {size_bytes} bytes, more than any that vpsd stores")


class Directory:
    """A local folder, possibly on a network file system. Folders have mode 0700, files 0600.

    An object is written to a temporary file, its name with a leading dot, and renamed. What a killed writer leaves is
    not an object; it is removed when the object is written again, or with the last object of the folder.
    """

    _ATTEMPTS = 5  # to write if somebody else removes the empty folder meanwhile

    def __init__(self, path: Path) -> None:
        self.name = f"directory {path}"
        self._root = path

    async def put(self, key: str, data: bytes) -> None:
        await run_in_thread(self._put, key, data)

    async def create(self, key: str, data: bytes) -> bytes:
        await run_in_thread(self._put, key, data, replace=False)
        return await run_in_thread(self._get, key)

    async def get(self, key: str) -> bytes:
        return await run_in_thread(self._get, key)

    async def keys(self, folder: str) -> list[str]:
        return await run_in_thread(self._keys, folder)

    async def delete(self, keys: Sequence[str]) -> None:
        await run_in_thread(self._delete, keys)

    def _put(self, key: str, data: bytes, *, replace: bool = True) -> None:
        path = self._root / key
        with self._translated_errors():
            for left in reversed(range(self._ATTEMPTS)):
                try:
                    self._make_folder(path.parent)
                    self._write(path, data, replace)
                    return
                except FileNotFoundError:
                    if not left:
                        raise

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(folder.parent)

    def _write(self, path: Path, data: bytes, replace: bool) -> None:
        temporary = path.with_name(f".{path.name}")
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unavailable(f"{self.name}: {path.name} is being written by another process", NO_ANSWER) from None
            if not os.path.samestat(os.fstat(file.fileno()), temporary.stat()):
                raise FileNotFoundError(temporary)  # renamed since it was opened: it is an object by now
            try:
                if not replace and path.exists():  # whoever writes it has this lock
                    temporary.unlink()
                    return
                file.truncate(0)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        sync(path.parent)

    def _get(self, key: str) -> bytes:
        with self._translated_errors():
            try:
                refuse_larger((self._root / key).stat().st_size)
                return (self._root / key).read_bytes()
            except FileNotFoundError:
                raise Missing(f"{self.name}: there is no {key}") from None

    def _keys(self, folder: str) -> list[str]:
        def failed(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        with self._translated_errors():
            return sorted(
                f"{where}/{name}".removeprefix(f"{self._root}/")
                for where, _, names in os.walk(self._root / folder, onerror=failed)
                for name in names
                if not name.startswith(".")
            )

    def _delete(self, keys: Sequence[str]) -> None:
        paths = [self._root / key for key in keys]
        with self._translated_errors():
            for path in paths:
                path.unlink(missing_ok=True)
            for folder in {path.parent for path in paths}:
                self._remove_empty(folder)

    def _remove_empty(self, folder: Path) -> None:
        """Remove empty folders upwards, and sync the removal to disk."""
        while folder != self._root:
            try:
                names = list(folder.iterdir())
                if not all(path.name.startswith(".") for path in names):
                    break
                for path in names:
                    path.unlink(missing_ok=True)
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                break  # somebody is writing there
            folder = folder.parent
        if folder.is_dir():
            sync(folder)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate operating system errors."""
        try:
            yield
        except OSError as error:
            where = error.filename or self._root
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TargetFull(f"{self.name} is full: free some space or delete backups") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise Unusable(f"{self.name}: no access to {where}: {error.strerror}", REFUSES) from error
            raise Unavailable(f"{self.name}: {where}: {error.strerror}", NO_ANSWER) from error
