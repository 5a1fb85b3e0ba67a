"""Storage for the objects of backups: a directory, or a bucket of an S3-compatible service."""

import errno
import fcntl
import hashlib
import os
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Meta

from vpsd.backups.concurrency import run_in_thread
from vpsd.core.files import sync_folder
from vpsd.core.units import MIB
from vpsd.errors import Unavailable, Unusable, VpsdError
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


_NO_ANSWER = "The backups' store does not answer as it should; the operator can see why."
_REFUSES = "The backups' store refuses it; the operator can see why."


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
    bucket, _, prefix = settings.backup_s3.partition("/")
    return S3(bucket, prefix, settings.backup_s3_endpoint, settings.backup_s3_region)


def _refuse_larger(size_bytes: int) -> None:
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
        sync_folder(folder.parent)

    def _write(self, path: Path, data: bytes, replace: bool) -> None:
        temporary = path.with_name(f".{path.name}")
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unavailable(f"{self.name}: {path.name} is being written by another process", _NO_ANSWER) from None
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
        sync_folder(path.parent)

    def _get(self, key: str) -> bytes:
        with self._translated_errors():
            try:
                _refuse_larger((self._root / key).stat().st_size)
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
            sync_folder(folder)

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
                raise Unusable(f"{self.name}: no access to {where}: {error.strerror}", _REFUSES) from error
            raise Unavailable(f"{self.name}: {where}: {error.strerror}", _NO_ANSWER) from error


# Every S3 service has its own codes: AWS, Ceph (QuotaExceeded), MinIO (XMinio…)
_FULL = {"QuotaExceeded", "StorageQuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_IS_THERE = {"PreconditionFailed", "ConditionalRequestConflict"}  # answers to If-None-Match
_NO_CONDITIONS = {"NotImplemented", "InvalidArgument"}  # of services that do not know it
_TRANSIENT = {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}


class S3:
    """A bucket of AWS S3 or of a compatible service; boto3 finds the credentials.

    In a bucket with versioning, deleted objects stay until a lifecycle rule of the bucket expires them.
    """

    _BATCH = 1000  # the maximum number of keys in one DeleteObjects

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None, region: str | None) -> None:
        self.name = f"s3 {bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._cached_client: Any = None
        self._lock = threading.Lock()

    async def put(self, key: str, data: bytes) -> None:
        await run_in_thread(self._put, key, data)

    async def create(self, key: str, data: bytes) -> bytes:
        return await run_in_thread(self._create, key, data)

    async def get(self, key: str) -> bytes:
        return await run_in_thread(self._get, key)

    async def keys(self, folder: str) -> list[str]:
        return await run_in_thread(self._keys, folder)

    async def delete(self, keys: Sequence[str]) -> None:
        await run_in_thread(self._delete, keys)

    def _put(self, key: str, data: bytes) -> None:
        with self._translated_errors() as client:
            client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def _create(self, key: str, data: bytes) -> bytes:
        from botocore.exceptions import ClientError

        try:
            return self._get(key)
        except Missing:
            pass
        with self._translated_errors() as client:
            wanted = {"Bucket": self._bucket, "Key": self._prefix + key, "Body": data}
            try:
                client.put_object(**wanted, IfNoneMatch="*")
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code in _NO_CONDITIONS:
                    client.put_object(**wanted)
                elif code not in _IS_THERE:
                    raise
        return self._get(key)

    def _get(self, key: str) -> bytes:
        with self._translated_errors() as client:
            found = client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            _refuse_larger(found["ContentLength"])
            data: bytes = found["Body"].read()
            return data

    def _keys(self, folder: str) -> list[str]:
        with self._translated_errors() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + folder)
            return sorted(
                found["Key"].removeprefix(self._prefix) for page in pages for found in page.get("Contents", [])
            )

    def _delete(self, keys: Sequence[str]) -> None:
        with self._translated_errors() as client:
            for start in range(0, len(keys), self._BATCH):
                batch = [{"Key": self._prefix + key} for key in keys[start : start + self._BATCH]]
                answer = client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
                for error in answer.get("Errors", []):
                    if error.get("Code") != "NoSuchKey":
                        raise self._failure(error, 0)

    def _client(self) -> Any:
        import boto3  # slow to import, and only needed for S3
        from botocore.config import Config

        with self._lock:
            if self._cached_client is None:
                # Other services do not support the newer checksums. (With an endpoint botocore puts the bucket into
                # the path.)
                options = Config(
                    connect_timeout=10,
                    read_timeout=60,
                    retries={"mode": "standard", "total_max_attempts": 3},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                session = boto3.session.Session(region_name=self._region)
                self._cached_client = session.client("s3", endpoint_url=self._endpoint_url, config=options)
                self._cached_client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
            return self._cached_client

    @contextmanager
    def _translated_errors(self) -> Iterator[Any]:
        """A client whose errors are translated."""
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        try:
            yield self._client()
        except exceptions.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise self._failure(error.response.get("Error", {}), status) from error
        except (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,  # timeouts too
            exceptions.IncompleteReadError,
            exceptions.CredentialRetrievalError,
            ResponseParserError,  # the answer of a proxy in between
        ) as error:
            raise Unavailable(f"{self.name} does not answer: {error}", _NO_ANSWER) from error
        except exceptions.BotoCoreError as error:
            raise Unusable(f"{self.name}: {error}", _REFUSES) from error

    def _failure(self, error: Mapping[str, str], status: int) -> VpsdError:
        code = error.get("Code", "")
        text = f"{self.name}: {code}: {error.get('Message') or 'no details'}"
        if code in _FULL or status == 507:
            return TargetFull(f"{text} (it is full: free some space or delete backups)")
        if code in _TRANSIENT or status >= 500 or status == 429:
            return Unavailable(text, _NO_ANSWER)
        if code == "NoSuchKey":
            return Missing(text)
        return Unusable(text, _REFUSES)


def _add_md5(params: dict[str, Any], **_: object) -> None:
    # boto3 only sends a newer checksum, and many services still require this one for deletions.
    params["headers"]["Content-MD5"] = b64encode(hashlib.md5(params["body"], usedforsecurity=False).digest()).decode()
