"""The backups on a target: encodes, names and verifies their objects, and deletes backups without breaking others.

    vpsd-target.json                                                the target's mark, by which it is known
    vpsd-<instance>/servers/<server uuid>/<backup uuid>/<digest>    a chunk that this backup was the first to have
    vpsd-<instance>/servers/<server uuid>/<backup uuid>/manifest    written last: without it a backup is incomplete
    vpsd-<instance>/servers/<server uuid>/<backup uuid>/deleted     its manifest, while it is being deleted

A manifest describes the whole disk: a chunk that did not change since an older backup is referenced where that one
stored it. So every backup is a full one, and a chunk is kept as long as any manifest references it.

An object is a header (magic, flags, id of the key, digest of the content) followed by the content, compressed if that
makes it smaller, and encrypted if there is a key. A digest is a SHA-256; with a key it is an HMAC, so that names reveal
nothing. The keys for each backup and for each server's names are derived from the operator's key (HKDF, RFC 5869);
encrypted objects are bound to their location.
"""

import hashlib
import hmac
import logging
import os
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Annotated

import msgspec
from msgspec import Meta

from vpsd.backups.concurrency import map_ordered, run_in_thread
from vpsd.backups.keys import derive_key
from vpsd.backups.targets import Missing, Target, TargetNotThere, TargetStatus, TooLarge, put_mark, read_mark
from vpsd.core.units import MIB
from vpsd.errors import DatabaseUnavailable, Unusable, VpsdError

log = logging.getLogger(__name__)

CHUNK_BYTES = MIB

_FORMAT = 1  # of manifests
_MANIFEST_BYTES = 256 * MIB  # enough for a disk of 3 TB; a larger one is neither written nor read
_MANIFEST = "manifest"
_DELETED = "deleted"
_DIGEST = re.compile("[0-9a-f]{64}")

_HEADER = struct.Struct(">4sB4s32s")
_MAGIC = b"VPB1"
_COMPRESSED = 1
_ENCRYPTED = 2
_NO_KEY = bytes(4)
_NONCE_BYTES = 12


ChunkRef = tuple[str, str]
"""The backup in whose folder a chunk is, and its digest."""


class Damaged(Unusable):
    """An object on the target is not what was stored; the message names the backup and the chunk.

    `chunks` are those that it is about; none where it is a manifest.
    """

    def __init__(self, text: str, chunks: Collection[ChunkRef] = ()) -> None:
        super().__init__(text)
        self.chunks = frozenset(chunks)

    public = "The backup is damaged; choose another."


class WrongKey(Unusable):
    """The backup was encrypted with another key than vpsd has now, or only one of the two has a key."""

    public = "The backup was encrypted with another key than vpsd has now; the operator can help."


class BackupRef(msgspec.Struct, frozen=True):
    """Identifies a backup: the UUIDs of its server and of the backup itself."""

    server: str
    backup: str


Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f-]{36}\Z")]  # so that a forged manifest cannot point outside the folder


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A complete backup: every chunk of the disk, by number."""

    version: int = _FORMAT
    server: Uuid
    backup: Uuid
    created_at_ms: int
    size_bytes: Annotated[int, Meta(ge=0)]  # of the disk
    chunk_bytes: Annotated[int, Meta(ge=1, le=64 * CHUNK_BYTES)]  # the last chunk is padded with zeros
    facts: dict[str, str]  # defined by the caller
    owners: list[Uuid]  # the backups whose chunks are referenced
    chunks: list[tuple[int, Digest] | None]  # index of the owner, and digest; None: only zeros

    @property
    def ref(self) -> BackupRef:
        """The backup that this is the manifest of."""
        return BackupRef(self.server, self.backup)

    def referenced_chunks(self) -> set[ChunkRef]:
        """The chunks that the backup needs."""
        return {(self.owners[chunk[0]], chunk[1]) for chunk in self.chunks if chunk is not None}


class VerifyResult(msgspec.Struct, frozen=True):
    """What was read and verified."""

    chunks: int  # each counted once, however often it is on the disk
    size_bytes: int  # of their content


class _Version(msgspec.Struct):
    version: int


class Repository:
    """The backups of one vpsd on a target."""

    def __init__(self, target: Target, instance: str, key: bytes | None, chunk_bytes: int = CHUNK_BYTES) -> None:
        """`instance` is the database's own id: several vpsd may share a target. Without a key nothing is encrypted."""
        self._target = target
        self.status = TargetStatus()
        self._folder = f"vpsd-{instance}/servers"
        self._key = key
        self.chunk_bytes = chunk_bytes
        self._key_id = _NO_KEY if key is None else derive_key(key, b"key id")[:4]

    @property
    def location(self) -> str:
        """Where the target is, for people."""
        return self._target.name

    async def read_mark(self) -> str | None:
        """The mark of what is at the target's place, None where there is none; raises `TargetNotThere` for no mark."""
        return await read_mark(self._target)

    async def put_mark(self, mark: str) -> str:
        """Mark the target, unless it is marked; its mark then."""
        return await put_mark(self._target, mark)

    async def check_mark(self, mark: str | None) -> None:
        """Raise `TargetNotThere` unless the target with that mark is where it is looked for."""
        with self.noting():
            if mark is None or await self.read_mark() != mark:
                raise TargetNotThere(f"{self.location} does not bear the mark {mark}: is it mounted?")

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note in `status` why a look at the target failed."""
        try:
            yield
        except DatabaseUnavailable:  # says nothing of the target
            raise
        except VpsdError as error:
            self.status.status = "missing" if isinstance(error, TargetNotThere) else "unavailable"
            self.status.error = str(error)
            raise

    async def has_manifest(self, ref: BackupRef) -> bool:
        """Whether a complete backup is there; not whether it can be read."""
        try:
            await self._target.get(self._path(ref, _MANIFEST))
        except Missing:
            return False
        return True

    @property
    def key_id(self) -> str | None:
        """Eight hex digits that identify the key and reveal nothing about it; None without a key."""
        return None if self._key is None else self._key_id.hex()

    def digest(self, server: str, content: bytes) -> str:
        """The name of a chunk of that server, in hex digits."""
        if self._key is None:
            return hashlib.sha256(content).hexdigest()
        return hmac.digest(derive_key(self._key, b"names " + server.encode()), content, "sha256").hex()

    async def own_chunks(self, ref: BackupRef) -> set[str]:
        """The digests of the chunks in the folder of a backup, complete or not."""
        names = {key.rpartition("/")[2] for key in await self._target.keys(self._path(ref, ""))}
        return {name for name in names if _DIGEST.fullmatch(name)}

    async def put_chunk(self, ref: BackupRef, digest: str, content: bytes) -> int:
        """Store a chunk in the folder of a backup; returns the size of its object in bytes."""
        return await self._put(ref, digest, digest, content)

    async def delete_chunks(self, ref: BackupRef, digests: Sequence[str]) -> None:
        """Delete chunks that no manifest references."""
        await self._target.delete([self._path(ref, digest) for digest in digests])

    async def read_chunk(self, manifest: Manifest, number: int) -> bytes:
        """Read and verify a chunk of the disk: `manifest.chunk_bytes` bytes. Raises `Damaged`."""
        chunk = manifest.chunks[number]
        if chunk is None:
            return bytes(manifest.chunk_bytes)
        owner, digest = BackupRef(manifest.server, manifest.owners[chunk[0]]), chunk[1]
        what = f"backup {manifest.backup}: chunk {number} ({self._path(owner, digest)} on {self._target.name})"
        this = [(owner.backup, digest)]
        try:
            data = await self._target.get(self._path(owner, digest))
            found, content = await run_in_thread(self._decode, owner, digest, data, manifest.chunk_bytes)
        except Missing:
            raise Damaged(f"{what} is missing", this) from None
        except (WrongKey, Damaged, TooLarge) as error:  # the manifest had the right key
            raise Damaged(f"{what} is damaged: {error}", this) from error
        if found != digest or len(content) != manifest.chunk_bytes:
            raise Damaged(f"{what} is damaged: it is a different chunk", this)
        return content

    async def missing_chunks(self, manifest: Manifest) -> set[ChunkRef]:
        """The chunks that the backup needs and that are not there; whether the others can be read is not looked at."""
        keys = await self._target.keys(f"{self._folder}/{manifest.server}/")
        present = {(owner, digest) for owner, digest in (key.split("/")[-2:] for key in keys)}
        return manifest.referenced_chunks() - present

    async def put_manifest(self, manifest: Manifest) -> None:
        """Complete a backup; all chunks that the manifest references have to be stored."""
        await self._put_manifest(manifest, _MANIFEST)

    async def read_manifest(self, ref: BackupRef) -> Manifest:
        """The manifest of a backup; raises `Missing` if it is incomplete, `WrongKey`, `Damaged`."""
        return await self._read_manifest(ref, _MANIFEST)

    async def verify(self, ref: BackupRef) -> VerifyResult:
        """Read everything that the backup needs; raises `Damaged` with a list of the problems, and all those chunks."""
        manifest = await self.read_manifest(ref)
        numbers: dict[tuple[int, str], int] = {}
        for number, chunk in enumerate(manifest.chunks):
            if chunk is not None:
                numbers.setdefault(chunk, number)

        async def problem(number: int) -> Damaged | None:
            try:
                await self.read_chunk(manifest, number)
            except Damaged as error:
                return error
            return None

        async with aclosing(map_ordered(numbers.values(), problem)) as results:
            found = [error async for error in results if error is not None]
        if found:
            more = f" (and {len(found) - 20} more)" if len(found) > 20 else ""
            raise Damaged("\n".join(map(str, found[:20])) + more, {chunk for error in found for chunk in error.chunks})
        return VerifyResult(len(numbers), len(numbers) * manifest.chunk_bytes)

    async def discard(self, ref: BackupRef, others: Sequence[BackupRef]) -> None:
        """Delete a backup, complete or not, with the chunks that only it references.

        `others` are all other backups of the server that have a manifest; raises, and deletes nothing, if one of those
        cannot be read. No backup of the server may be in progress. Idempotent; resumes where it stopped.
        """
        kept: set[ChunkRef] = set()
        for other in others:
            kept |= (await self.read_manifest(other)).referenced_chunks()
        own = {(ref.backup, digest) for digest in await self.own_chunks(ref)}
        candidates = own | await self._noted_chunks(ref)
        chunks = [self._path(BackupRef(ref.server, owner), digest) for owner, digest in sorted(candidates - kept)]
        # It stops looking complete before anything that it needs is gone; and the note of its chunks goes last.
        await self._target.delete([self._path(ref, _MANIFEST)])
        await self._target.delete(chunks)
        await self._target.delete([self._path(ref, _DELETED)])

    async def _noted_chunks(self, ref: BackupRef) -> set[ChunkRef]:
        """The chunks of a backup that is about to lose its manifest, noted next to it; none if it never had one."""
        try:
            try:
                manifest = await self._read_manifest(ref, _MANIFEST)
            except Missing:
                return (await self._read_manifest(ref, _DELETED)).referenced_chunks()
        except Missing:
            return set()
        except Damaged as error:
            log.warning("%s; chunks of previously deleted backups that only it references stay on the target", error)
            return set()
        await self._put_manifest(manifest, _DELETED)
        return manifest.referenced_chunks()

    async def _put_manifest(self, manifest: Manifest, name: str) -> None:
        content = msgspec.json.encode(manifest)
        if len(content) > _MANIFEST_BYTES:
            raise Unusable("The disk is too large for a backup.")
        await self._put(manifest.ref, name, self.digest(manifest.server, content), content)

    async def _read_manifest(self, ref: BackupRef, name: str) -> Manifest:
        what = f"backup {ref.backup} on {self._target.name}"
        try:
            data = await self._target.get(self._path(ref, name))
        except Missing:
            raise Missing(f"{what} is incomplete: it has no manifest") from None
        except TooLarge as error:
            raise Damaged(f"{what}: its manifest is damaged: {error}") from error
        try:
            return await run_in_thread(self._decode_manifest, ref, name, data)
        except Damaged as error:
            raise Damaged(f"{what}: its manifest is damaged: {error}") from error
        except WrongKey as error:
            raise WrongKey(f"{what}: {error}") from error

    def _decode_manifest(self, ref: BackupRef, name: str, data: bytes) -> Manifest:
        _, content = self._decode(ref, name, data, _MANIFEST_BYTES)
        try:
            version = msgspec.json.decode(content, type=_Version).version
            if version != _FORMAT:
                raise Unusable(f"backup {ref.backup}: it was written by another version of vpsd (format {version})")
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Damaged(str(error)) from error
        if manifest.ref != ref:
            raise Damaged("it belongs to another backup")
        owners = range(len(manifest.owners))
        if len(manifest.chunks) != -(-manifest.size_bytes // manifest.chunk_bytes) or not all(
            chunk[0] in owners for chunk in manifest.chunks if chunk is not None
        ):
            raise Damaged("it is inconsistent")
        return manifest

    async def _put(self, ref: BackupRef, name: str, digest: str, content: bytes) -> int:
        data = await run_in_thread(self._encode, ref, name, digest, content)
        await self._target.put(self._path(ref, name), data)
        return len(data)

    def _path(self, ref: BackupRef, name: str) -> str:
        return f"{self._folder}/{ref.server}/{ref.backup}/{name}"

    def _encode(self, ref: BackupRef, name: str, digest: str, content: bytes) -> bytes:
        flags = 0
        body = zlib.compress(content, 1)
        if len(body) < len(content):
            flags |= _COMPRESSED
        else:
            body = content
        if self._key is not None:
            flags |= _ENCRYPTED
        header = _HEADER.pack(_MAGIC, flags, self._key_id, bytes.fromhex(digest))
        if self._key is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # slow to import, and rarely needed

            nonce = os.urandom(_NONCE_BYTES)
            cipher = AESGCM(derive_key(self._key, b"contents " + ref.backup.encode()))
            body = nonce + cipher.encrypt(nonce, body, self._path(ref, name).encode())
        return header + body

    def _decode(self, ref: BackupRef, name: str, data: bytes, limit_bytes: int) -> tuple[str, bytes]:
        """The digest and the verified content of an object; raises `Damaged`, `WrongKey`."""
        if len(data) < _HEADER.size:
            raise Damaged("it is truncated")
        header, body = data[: _HEADER.size], data[_HEADER.size :]
        magic, flags, key_id, digest = _HEADER.unpack(header)
        if magic != _MAGIC or flags & ~(_COMPRESSED | _ENCRYPTED):
            raise Damaged("it does not have the header of a vpsd backup")
        if bool(flags & _ENCRYPTED) != (self._key is not None) or key_id != self._key_id:
            theirs = f"was encrypted with the key {key_id.hex()}" if flags & _ENCRYPTED else "was not encrypted"
            raise WrongKey(f"it {theirs}, and vpsd has {f'the key {self.key_id}' if self._key else 'no key'}")
        if self._key is not None:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            cipher = AESGCM(derive_key(self._key, b"contents " + ref.backup.encode()))
            nonce, body = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
            try:
                body = cipher.decrypt(nonce, body, self._path(ref, name).encode())
            except (InvalidTag, ValueError):  # the latter if it is too short
                raise Damaged("it cannot be decrypted") from None
        if flags & _COMPRESSED:
            body = _decompress(body, limit_bytes)
        if self.digest(ref.server, body) != digest.hex():
            raise Damaged("its content does not match its digest")
        return digest.hex(), body


def _decompress(body: bytes, limit_bytes: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(body, limit_bytes + 1)  # one more, so that the end is reached
    except zlib.error:
        raise Damaged("it cannot be decompressed") from None
    if not decompressor.eof or decompressor.unused_data:
        raise Damaged("it cannot be decompressed")
    return content
