"""Stores the export of a disk as a backup, and reads the content of a backup."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from itertools import groupby
from operator import itemgetter

import msgspec

from vpsd.backups.concurrency import map_ordered, run_in_thread
from vpsd.backups.repository import BackupRef, ChunkRef, Damaged, Manifest, Repository
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import BlockMap, Extent, Progress

Read = Callable[[int, int], Awaitable[bytes]]
"""Called with an offset and a length in bytes; returns that many bytes of the export."""

_CHUNKS_PER_LOOK = 64  # so much may end up beside a target that is unmounted meanwhile, and no more


class StoreResult(msgspec.Struct, frozen=True):
    """What a backup holds, and what was sent for it."""

    chunks: int  # that are not all zeros
    data_bytes: int  # of the disk, in those
    sent_bytes: int  # that this call put on the target, compressed and encrypted
    stored_anew: frozenset[ChunkRef] = frozenset()  # of those that were damaged


class _ChunkUpdate(msgspec.Struct, frozen=True):
    """A chunk that the export covers, at least in part: its extents in order, with offsets relative to the chunk."""

    number: int
    extents: tuple[Extent, ...]
    complete: bool  # they cover the whole chunk


async def store(
    repository: Repository,
    backup: BackupRef,
    block_map: BlockMap,
    read: Read,
    parent: BackupRef | None,
    facts: Mapping[str, str],
    created_at_ms: int,
    progress: Progress,
    mark: str | None = None,
    damaged: frozenset[ChunkRef] = frozenset(),
) -> StoreResult:
    """Store a complete export of a disk: what is in none of its extents is as in the parent, or zeros.

    Resumes where an earlier attempt stopped: chunks on the target are not sent again. Raises `TargetFull`, and for the
    parent `Missing`, `WrongKey` or `Damaged`; until it returns the backup is incomplete, and `discard` deletes it.
    `mark` is the target's: it is looked for now and then, and when all is said to be there (`TargetNotThere`).
    `damaged` chunks of the parent are stored anew where they are, as far as the export covers them and they are still
    on the disk; `Damaged` where it does not cover one that is needed.
    """
    before = None if parent is None else await repository.read_manifest(parent)
    if before is not None and (
        before.server != backup.server
        or before.chunk_bytes != repository.chunk_bytes
        or before.size_bytes > block_map.size_bytes
    ):
        raise Unusable(
            f"backup {before.backup} cannot be the parent: it has another server, another chunk size, or a larger disk"
        )
    count = -(-block_map.size_bytes // repository.chunk_bytes)
    refs = _chunk_refs(before, count)
    updates: list[_ChunkUpdate] = []
    for update in _chunk_updates(block_map, repository.chunk_bytes):
        if all(extent.zero for extent in update.extents) and (update.complete or refs[update.number] is None):
            refs[update.number] = None  # most of a new disk, so do not read it
        else:
            updates.append(update)
    uploader = _ChunkUploader(repository, backup, read, before, refs, await repository.own_chunks(backup), damaged)
    stored_before = set(uploader.stored)
    async with aclosing(map_ordered(updates, uploader.upload)) as results:
        done = 0
        async for number, ref in results:
            refs[number] = ref
            done += 1
            if mark is not None and done % _CHUNKS_PER_LOOK == 0:
                await repository.check_mark(mark)
            progress(done / len(updates), "storing the backup")
    if lost := {ref for ref in refs if ref in damaged} - uploader.stored_anew:
        raise Damaged("a backup before this one is damaged, in what was not copied again", lost)
    if mark is not None:
        await repository.check_mark(mark)
    await repository.put_manifest(_manifest(repository, backup, block_map.size_bytes, refs, facts, created_at_ms))
    if mark is not None:  # else what was just written may be under the place where the target was mounted
        await repository.check_mark(mark)
    own = {ref[1] for ref in refs if ref and ref[0] == backup.backup}
    # Left by an earlier attempt with another export; after the manifest, since that attempt may have written one.
    await repository.delete_chunks(backup, sorted(stored_before - own))
    numbers = [number for number, ref in enumerate(refs) if ref]
    sizes = (min(repository.chunk_bytes, block_map.size_bytes - n * repository.chunk_bytes) for n in numbers)
    return StoreResult(len(numbers), sum(sizes), uploader.sent_bytes, frozenset(uploader.stored_anew))


def fill_gaps(block_map: BlockMap) -> BlockMap:
    """The map of a full export, with the gaps as explicit zeros, so that it can be stored on top of a parent."""
    extents: list[Extent] = []
    end = 0
    for extent in (*block_map.extents, Extent(block_map.size_bytes, 0)):
        if extent.offset > end:
            extents.append(Extent(end, extent.offset - end, zero=True))
        if extent.length:
            extents.append(extent)
        end = extent.offset + extent.length
    return BlockMap(block_map.size_bytes, tuple(extents))


def chunk_numbers(manifest: Manifest) -> list[int]:
    """The numbers of the chunks that are not all zeros, in order."""
    return [number for number, chunk in enumerate(manifest.chunks) if chunk is not None]


async def stream_contents(
    repository: Repository, manifest: Manifest, progress: Progress
) -> AsyncGenerator[bytes, None]:
    """Yield the verified bytes of those chunks, reading a few ahead; the last is cut to the size of the disk.

    Raises `Damaged`. Close it (`contextlib.aclosing`) to make sure that reading stops.
    """

    async def read(number: int) -> bytes:
        return await repository.read_chunk(manifest, number)

    numbers = chunk_numbers(manifest)
    async with aclosing(map_ordered(numbers, read)) as results:
        done = 0
        async for content in results:
            yield content[: manifest.size_bytes - numbers[done] * manifest.chunk_bytes]
            done += 1
            progress(done / len(numbers), "writing the disk")


class _ChunkUploader:
    """Uploads the chunks of one `store`."""

    def __init__(
        self,
        repository: Repository,
        backup: BackupRef,
        read: Read,
        before: Manifest | None,
        refs: list[ChunkRef | None],
        stored: set[str],
        damaged: frozenset[ChunkRef],
    ) -> None:
        self._repository = repository
        self._backup = backup
        self._read = read
        self._before = before
        self._refs = refs
        self.stored = stored
        self._damaged = damaged
        self.stored_anew: set[ChunkRef] = set()
        self.sent_bytes = 0

    async def upload(self, update: _ChunkUpdate) -> tuple[int, ChunkRef | None]:
        """Have a chunk on the target; returns its number and where it is."""
        content = await self._merge(update)
        digest = await run_in_thread(self._digest, content)
        old = self._refs[update.number]
        if digest is None:
            return update.number, None
        if old is not None and old[1] == digest:
            if old in self._damaged and old not in self.stored_anew:  # so the backups that share it are whole again
                self.stored_anew.add(old)
                owner = BackupRef(self._backup.server, old[0])
                self.sent_bytes += await self._repository.put_chunk(owner, digest, content)
            return update.number, old
        if digest not in self.stored:
            self.stored.add(digest)  # in advance, so that an equal chunk is not sent too; a failure ends everything
            sent = await self._repository.put_chunk(self._backup, digest, content)
            self.sent_bytes += sent
        return update.number, (self._backup.backup, digest)

    async def _merge(self, update: _ChunkUpdate) -> bytes:
        """The new content of the chunk."""
        merged = bytearray(self._repository.chunk_bytes)
        if self._before is not None and self._refs[update.number] is not None and not update.complete:
            merged[:] = await self._repository.read_chunk(self._before, update.number)
        for extent in update.extents:
            if extent.zero:
                merged[extent.offset : extent.offset + extent.length] = bytes(extent.length)
        data = [extent for extent in update.extents if not extent.zero]
        if data:
            first, end = data[0].offset, data[-1].offset + data[-1].length
            got = await self._read(update.number * self._repository.chunk_bytes + first, end - first)
            if len(got) != end - first:
                raise Unavailable(f"the export of the disk returned {len(got)} bytes instead of {end - first}")
            for extent in data:  # not everything that was read: between the extents the chunk is as before
                part = got[extent.offset - first :][: extent.length]
                merged[extent.offset : extent.offset + extent.length] = part
        return bytes(merged)

    def _digest(self, content: bytes) -> str | None:
        if content == bytes(len(content)):
            return None
        return self._repository.digest(self._backup.server, content)


def _chunk_refs(before: Manifest | None, count: int) -> list[ChunkRef | None]:
    """Where the chunks of the parent are; a disk that grew has only zeros after them."""
    if before is None:
        return [None] * count
    old = [None if chunk is None else (before.owners[chunk[0]], chunk[1]) for chunk in before.chunks]
    return old + [None] * (count - len(old))


def _chunk_updates(block_map: BlockMap, chunk_bytes: int) -> Iterator[_ChunkUpdate]:
    parts: Iterator[tuple[int, Extent]] = (
        (offset // chunk_bytes, Extent(offset % chunk_bytes, end - offset, extent.zero))
        for extent in block_map.extents
        for offset, end in _split(extent.offset, min(extent.offset + extent.length, block_map.size_bytes), chunk_bytes)
    )
    for number, group in groupby(parts, key=itemgetter(0)):
        extents = tuple(extent for _, extent in group)
        size_bytes = min(chunk_bytes, block_map.size_bytes - number * chunk_bytes)
        yield _ChunkUpdate(number, extents, complete=sum(extent.length for extent in extents) == size_bytes)


def _split(start: int, end: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Split a range at the boundaries of chunks."""
    while start < end:
        boundary = min((start // chunk_bytes + 1) * chunk_bytes, end)
        yield start, boundary
        start = boundary


def _manifest(
    repository: Repository,
    backup: BackupRef,
    size_bytes: int,
    refs: list[ChunkRef | None],
    facts: Mapping[str, str],
    created_at_ms: int,
) -> Manifest:
    owners = list(dict.fromkeys(ref[0] for ref in refs if ref is not None))
    index = {owner: number for number, owner in enumerate(owners)}
    return Manifest(
        server=backup.server,
        backup=backup.backup,
        created_at_ms=created_at_ms,
        size_bytes=size_bytes,
        chunk_bytes=repository.chunk_bytes,
        facts=dict(facts),
        owners=owners,
        chunks=[None if ref is None else (index[ref[0]], ref[1]) for ref in refs],
    )
