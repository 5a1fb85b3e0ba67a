"""A bucket of an S3-compatible service as the target of backups."""

import hashlib
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vpsd.backups.concurrency import run_in_thread
from vpsd.backups.targets import NO_ANSWER, REFUSES, Missing, TargetFull, refuse_larger
from vpsd.errors import Unavailable, Unusable, VpsdError

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
            refuse_larger(found["ContentLength"])
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
            raise Unavailable(f"{self.name} does not answer: {error}", NO_ANSWER) from error
        except exceptions.BotoCoreError as error:
            raise Unusable(f"{self.name}: {error}", REFUSES) from error

    def _failure(self, error: Mapping[str, str], status: int) -> VpsdError:
        code = error.get("Code", "")
        text = f"{self.name}: {code}: {error.get('Message') or 'no details'}"
        if code in _FULL or status == 507:
            return TargetFull(f"{text} (it is full: free some space or delete backups)")
        if code in _TRANSIENT or status >= 500 or status == 429:
            return Unavailable(text, NO_ANSWER)
        if code == "NoSuchKey":
            return Missing(text)
        return Unusable(text, REFUSES)


def _add_md5(params: dict[str, Any], **_: object) -> None:
    # boto3 only sends a newer checksum, and many services still require this one for deletions.
    params["headers"]["Content-MD5"] = b64encode(hashlib.md5(params["body"], usedforsecurity=False).digest()).decode()
