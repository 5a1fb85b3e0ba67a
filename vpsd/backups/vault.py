"""Seals, names and verifies what lies on a target, and takes backups off it without breaking others.

    vpsd-<instance>/servers/<server uuid>/<backup uuid>/<digest>    a chunk that this backup was the first to have
    vpsd-<instance>/servers/<server uuid>/<backup uuid>/manifest    written last: without it a backup is not whole
    vpsd-<instance>/servers/<server uuid>/<backup uuid>/deleted     its manifest, while it is taken off

A manifest describes the whole disk: what did not change since an older backup is named where that one put it. So
every backup is a full one, and a chunk lives as long as a manifest names it, wherever it lies.

An object is a header (magic, flags, id of the key, digest of the content) and the content, compressed where that
helps, encrypted where there is a key. A digest is a SHA-256; with a key an HMAC, so that names tell nothing. A key
for each backup, and for each server's names, is derived from the operator's (HKDF, RFC 5869); what is encrypted is
bound to its place.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from vpsd.backups.targets import Missing, Target
from vpsd.backups.work import in_order, in_thread
from vpsd.errors import Misconfigured, Unusable

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
KEY_BYTES = 32

_FORMAT = 1  # of manifests
_MANIFEST_BYTES = 1 << 30  # of a disk of some ten TB; more is no manifest of ours
_MANIFEST = "manifest"
_DELETED = "deleted"
_DIGEST = re.compile("[0-9a-f]{64}")

_HEADER = struct.Struct(">4sB4s32s")
_MAGIC = b"VPB1"
_COMPRESSED = 1
_SEALED = 2
_NO_KEY = bytes(4)
_NONCE_BYTES = 12


class Damaged(Unusable):
    """What lies on the target is not what was put there; the text names the backup and the chunk."""


class WrongKey(Unusable):
    """The backup was sealed with another key than vpsd has now, or only one of the two has any."""


class Place(msgspec.Struct, frozen=True):
    """Names a backup: the uuids of its server and its own."""

    server: str
    backup: str


Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f-]{36}\Z")]  # also keeps a forged manifest from leading elsewhere


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A backup, whole: every chunk of the disk, by number."""

    version: int = _FORMAT
    server: Uuid
    backup: Uuid
    created_at_ms: int
    size_bytes: Annotated[int, Meta(ge=0)]  # of the disk
    chunk_bytes: Annotated[int, Meta(ge=1, le=64 * CHUNK_BYTES)]  # the last chunk is filled up with zeros
    facts: dict[str, str]  # the caller's own
    owners: list[Uuid]  # the backups whose chunks are named
    chunks: list[tuple[int, Digest] | None]  # an owner's index and a digest; None: nothing but zeros

    @property
    def place(self) -> Place:
        """Whose manifest this is."""
        return Place(self.server, self.backup)

    def named(self) -> set[tuple[str, str]]:
        """The chunks that the backup needs, by owner and digest."""
        return {(self.owners[chunk[0]], chunk[1]) for chunk in self.chunks if chunk is not None}


class Verified(msgspec.Struct, frozen=True):
    """What was read and found to be right."""

    chunks: int  # each once, however often the disk has it
    size_bytes: int  # of their content


class _Version(msgspec.Struct):
    version: int


class Vault:
    """The backups of one vpsd on a target."""

    def __init__(self, target: Target, instance: str, key: bytes | None, chunk_bytes: int = CHUNK_BYTES) -> None:
        """`instance` is the database's own id: several vpsd may share a target. Without a key nothing is sealed."""
        self._target = target
        self._folder = f"vpsd-{instance}/servers"
        self._key = key
        self.chunk_bytes = chunk_bytes
        self._key_id = _NO_KEY if key is None else _derived(key, b"key id")[:4]

    @property
    def target_name(self) -> str:
        """What people call the target."""
        return self._target.name

    @property
    def key_id(self) -> str | None:
        """Eight hex digits that tell keys apart and nothing about them; None without a key."""
        return None if self._key is None else self._key_id.hex()

    def digest(self, server: str, content: bytes) -> str:
        """The name of a chunk of that server, in hex digits."""
        if self._key is None:
            return hashlib.sha256(content).hexdigest()
        return hmac.digest(_derived(self._key, b"names " + server.encode()), content, "sha256").hex()

    async def own_chunks(self, place: Place) -> set[str]:
        """The digests of the chunks that lie at that place, whether the backup is whole or not."""
        names = {key.rpartition("/")[2] for key in await self._target.keys(self._path(place, ""))}
        return {name for name in names if _DIGEST.fullmatch(name)}

    async def put_chunk(self, place: Place, digest: str, content: bytes) -> int:
        """Have a chunk at that place; gives the size of its object in bytes."""
        return await self._put(place, digest, digest, content)

    async def delete_chunks(self, place: Place, digests: Sequence[str]) -> None:
        """Take chunks away that no manifest names."""
        await self._target.delete([self._path(place, digest) for digest in digests])

    async def read_chunk(self, manifest: Manifest, number: int) -> bytes:
        """The bytes of a chunk of the disk, `manifest.chunk_bytes` of them. Raises `Damaged`."""
        chunk = manifest.chunks[number]
        if chunk is None:
            return bytes(manifest.chunk_bytes)
        owner, digest = Place(manifest.server, manifest.owners[chunk[0]]), chunk[1]
        what = f"backup {manifest.backup}: chunk {number} ({self._path(owner, digest)} on {self._target.name})"
        try:
            data = await self._target.get(self._path(owner, digest))
        except Missing:
            raise Damaged(f"{what} is missing") from None
        try:
            found, content = await in_thread(self._opened, owner, digest, data, manifest.chunk_bytes)
        except WrongKey as error:  # the manifest had the right one
            raise Damaged(f"{what} is damaged: {error}") from error
        except Damaged as error:
            raise Damaged(f"{what} is damaged: {error}") from error
        if found != digest or len(content) != manifest.chunk_bytes:
            raise Damaged(f"{what} is damaged: it is another chunk")
        return content

    async def put_manifest(self, manifest: Manifest) -> None:
        """Make a backup whole: everything that it names has to be there."""
        await self._put_manifest(manifest, _MANIFEST)

    async def read_manifest(self, place: Place) -> Manifest:
        """The manifest of a backup; raises `Missing` where it is not whole, `WrongKey`, `Damaged`."""
        return await self._read_manifest(place, _MANIFEST)

    async def verify(self, place: Place) -> Verified:
        """Read everything that the backup needs; raises `Damaged` that lists what is wrong."""
        manifest = await self.read_manifest(place)
        numbers: dict[tuple[int, str], int] = {}
        for number, chunk in enumerate(manifest.chunks):
            if chunk is not None:
                numbers.setdefault(chunk, number)

        async def wrong(number: int) -> str | None:
            try:
                await self.read_chunk(manifest, number)
            except Damaged as error:
                return str(error)
            return None

        async with aclosing(in_order(numbers.values(), wrong)) as results:
            found = [text async for text in results if text is not None]
        if found:
            more = f" (and {len(found) - 20} more)" if len(found) > 20 else ""
            raise Damaged("\n".join(found[:20]) + more)
        return Verified(len(numbers), len(numbers) * manifest.chunk_bytes)

    async def discard(self, place: Place, others: Sequence[Place]) -> None:
        """Take a backup off the target, whole or not, with the chunks that only it names.

        `others` are all other backups of the server that have a manifest; raises, and deletes nothing, where one of
        those cannot be read. No backup of the server may be under way. May be repeated, and goes on where it stopped.
        """
        kept: set[tuple[str, str]] = set()
        for other in others:
            kept |= (await self.read_manifest(other)).named()
        own = {(place.backup, digest) for digest in await self.own_chunks(place)}
        doomed = own | await self._condemned(place)
        chunks = [self._path(Place(place.server, owner), digest) for owner, digest in sorted(doomed - kept)]
        # It stops looking whole before anything that it needs is gone; and what it names is known until all of it is.
        await self._target.delete([self._path(place, _MANIFEST)])
        await self._target.delete(chunks)
        await self._target.delete([self._path(place, _DELETED)])

    async def _condemned(self, place: Place) -> set[tuple[str, str]]:
        """What a backup names that is about to lose its manifest, noted beside it; nothing if it never had one."""
        try:
            try:
                manifest = await self._read_manifest(place, _MANIFEST)
            except Missing:
                return (await self._read_manifest(place, _DELETED)).named()
        except Missing:
            return set()
        except Damaged as error:
            log.warning("%s; chunks of backups deleted before it, that only it named, stay on the target", error)
            return set()
        await self._put_manifest(manifest, _DELETED)
        return manifest.named()

    async def _put_manifest(self, manifest: Manifest, name: str) -> None:
        content = msgspec.json.encode(manifest)
        await self._put(manifest.place, name, self.digest(manifest.server, content), content)

    async def _read_manifest(self, place: Place, name: str) -> Manifest:
        what = f"backup {place.backup} on {self._target.name}"
        try:
            data = await self._target.get(self._path(place, name))
        except Missing:
            raise Missing(f"{what} is not whole: it has no manifest") from None
        try:
            return await in_thread(self._opened_manifest, place, name, data)
        except Damaged as error:
            raise Damaged(f"{what}: its manifest is damaged: {error}") from error
        except WrongKey as error:
            raise WrongKey(f"{what}: {error}") from error

    def _opened_manifest(self, place: Place, name: str, data: bytes) -> Manifest:
        _, content = self._opened(place, name, data, _MANIFEST_BYTES)
        try:
            version = msgspec.json.decode(content, type=_Version).version
            if version != _FORMAT:
                raise Unusable(f"backup {place.backup}: it was written by another version of vpsd (format {version})")
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Damaged(str(error)) from error
        if manifest.place != place:
            raise Damaged("it is another backup's")
        owners = range(len(manifest.owners))
        if len(manifest.chunks) != -(-manifest.size_bytes // manifest.chunk_bytes) or not all(
            chunk[0] in owners for chunk in manifest.chunks if chunk is not None
        ):
            raise Damaged("it does not fit together")
        return manifest

    async def _put(self, place: Place, name: str, digest: str, content: bytes) -> int:
        data = await in_thread(self._closed, place, name, digest, content)
        await self._target.put(self._path(place, name), data)
        return len(data)

    def _path(self, place: Place, name: str) -> str:
        return f"{self._folder}/{place.server}/{place.backup}/{name}"

    def _closed(self, place: Place, name: str, digest: str, content: bytes) -> bytes:
        flags = 0
        body = zlib.compress(content, 1)
        if len(body) < len(content):
            flags |= _COMPRESSED
        else:
            body = content
        if self._key is not None:
            flags |= _SEALED
        header = _HEADER.pack(_MAGIC, flags, self._key_id, bytes.fromhex(digest))
        if self._key is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # slow to import, and not everybody needs it

            nonce = os.urandom(_NONCE_BYTES)
            cipher = AESGCM(_derived(self._key, b"contents " + place.backup.encode()))
            body = nonce + cipher.encrypt(nonce, body, self._path(place, name).encode())
        return header + body

    def _opened(self, place: Place, name: str, data: bytes, limit_bytes: int) -> tuple[str, bytes]:
        """The digest and the content of an object, which fit each other; raises `Damaged`, `WrongKey`."""
        if len(data) < _HEADER.size:
            raise Damaged("it is cut off")
        header, body = data[: _HEADER.size], data[_HEADER.size :]
        magic, flags, key_id, digest = _HEADER.unpack(header)
        if magic != _MAGIC or flags & ~(_COMPRESSED | _SEALED):
            raise Damaged("it does not begin like something of vpsd's")
        if bool(flags & _SEALED) != (self._key is not None) or key_id != self._key_id:
            theirs = f"was sealed with the key {key_id.hex()}" if flags & _SEALED else "was not sealed"
            raise WrongKey(f"it {theirs}, and vpsd has {f'the key {self.key_id}' if self._key else 'no key'}")
        if self._key is not None:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            cipher = AESGCM(_derived(self._key, b"contents " + place.backup.encode()))
            nonce, body = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
            try:
                body = cipher.decrypt(nonce, body, self._path(place, name).encode())
            except (InvalidTag, ValueError):  # the latter for what is too short
                raise Damaged("its seal is broken") from None
        if flags & _COMPRESSED:
            body = _unpacked(body, limit_bytes)
        if self.digest(place.server, body) != digest.hex():
            raise Damaged("its content does not have its digest")
        return digest.hex(), body


def new_key() -> str:
    """A key to put into a key file: 64 hex digits."""
    return secrets.token_hex(KEY_BYTES)


def read_key(path: Path) -> bytes:
    """The key of a key file; raises `Misconfigured` where it cannot be used or others than its owner may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1024).strip()
    except OSError as error:
        raise Misconfigured(f"VPSD_BACKUP_KEY_FILE={path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Misconfigured(f"VPSD_BACKUP_KEY_FILE={path}: others than its owner may use it; chmod 600 {path}")
    if not re.fullmatch(rb"[0-9A-Fa-f]{64}", text):
        raise Misconfigured(f"VPSD_BACKUP_KEY_FILE={path}: it has to hold 64 hex digits and nothing else")
    return bytes.fromhex(text.decode())


def _derived(key: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256  # slow to import, and not everybody needs it
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"vpsd backups " + purpose).derive(key)


def _unpacked(body: bytes, limit_bytes: int) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(body, limit_bytes + 1)  # one more, or the end would not be looked at
    except zlib.error:
        raise Damaged("it cannot be unpacked") from None
    if not unpacking.eof or unpacking.unused_data:
        raise Damaged("it cannot be unpacked")
    return content
