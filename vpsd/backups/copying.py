"""Stores a copy of a disk as a backup, and gives a backup's bytes back."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from itertools import groupby
from operator import itemgetter

import msgspec

from vpsd.backups.vault import Manifest, Place, Vault
from vpsd.backups.work import in_order, in_thread
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import Copied, Progress, Run

Read = Callable[[int, int], Awaitable[bytes]]
"""Called with an offset and a length in bytes; gives that many bytes of the copy."""

_Ref = tuple[str, str]  # the owner of a chunk and its digest


class Stored(msgspec.Struct, frozen=True):
    """What a backup holds, and what it took."""

    chunks: int  # that are not all zeros
    data_bytes: int  # of the disk, in those
    new_bytes: int  # of these, in chunks that the backup before does not have at the same place
    sent_bytes: int  # that this call put on the target, packed and sealed


class _Piece(msgspec.Struct, frozen=True):
    """A chunk that a copy says something about: its runs, in order and cut to it, by their offset in the chunk."""

    number: int
    runs: tuple[Run, ...]
    whole: bool  # they leave nothing of it out


async def store(
    vault: Vault,
    place: Place,
    copied: Copied,
    read: Read,
    parent: Place | None,
    facts: Mapping[str, str],
    created_at_ms: int,
    progress: Progress,
) -> Stored:
    """Have a finished copy of a disk on the target, whole: what it does not hold is as in the parent, else zeros.

    Goes on where it stopped: what lies there already is not sent again. Raises `TargetFull`, and of the parent
    `Missing`, `WrongKey` or `Damaged`; until it returns the backup is not whole, and `discard` takes its parts away.
    """
    before = None if parent is None else await vault.read_manifest(parent)
    if before is not None and (
        before.server != place.server
        or before.chunk_bytes != vault.chunk_bytes
        or before.size_bytes > copied.size_bytes
    ):
        raise Unusable(f"backup {before.backup} cannot be built upon: another server, other chunks, or a larger disk")
    count = -(-copied.size_bytes // vault.chunk_bytes)
    refs = _refs(before, count)
    pieces: list[_Piece] = []
    for piece in _pieces(copied, vault.chunk_bytes):
        if all(run.zero for run in piece.runs) and (piece.whole or refs[piece.number] is None):
            refs[piece.number] = None  # most of a new disk, and nobody needs to look at it
        else:
            pieces.append(piece)
    storing = _Storing(vault, place, read, before, refs, await vault.own_chunks(place))
    lying = set(storing.there)
    async with aclosing(in_order(pieces, storing.piece)) as results:
        done = 0
        async for number, ref in results:
            refs[number] = ref
            done += 1
            progress(done / len(pieces), "storing the backup")
    await vault.put_manifest(_manifest(vault, place, copied.size_bytes, refs, facts, created_at_ms))
    # What an earlier try sent of another copy of the disk; after the manifest, for that try may have had one.
    await vault.delete_chunks(place, sorted(lying - {ref[1] for ref in refs if ref and ref[0] == place.backup}))
    sizes = [min(vault.chunk_bytes, copied.size_bytes - n * vault.chunk_bytes) if refs[n] else 0 for n in range(count)]
    own = [size for size, ref in zip(sizes, refs, strict=True) if ref and ref[0] == place.backup]
    return Stored(count - refs.count(None), sum(sizes), sum(own), storing.sent_bytes)


def everything(copied: Copied) -> Copied:
    """A copy of a whole disk, with the zeros that it leaves out: so it can be compared with a backup before it."""
    runs: list[Run] = []
    end = 0
    for run in (*copied.runs, Run(copied.size_bytes, 0)):
        if run.offset > end:
            runs.append(Run(end, run.offset - end, zero=True))
        if run.length:
            runs.append(run)
        end = run.offset + run.length
    return Copied(copied.size_bytes, tuple(runs))


def chunk_numbers(manifest: Manifest) -> list[int]:
    """The numbers of the chunks that are not all zeros, in order."""
    return [number for number, chunk in enumerate(manifest.chunks) if chunk is not None]


async def contents(vault: Vault, manifest: Manifest, progress: Progress) -> AsyncGenerator[bytes, None]:
    """The bytes of those chunks, verified, a few read ahead; the last is cut to the disk's end. Raises `Damaged`.

    Close it (`contextlib.aclosing`) to be sure that nothing is read on.
    """

    async def chunk(number: int) -> bytes:
        return await vault.read_chunk(manifest, number)

    numbers = chunk_numbers(manifest)
    async with aclosing(in_order(numbers, chunk)) as results:
        done = 0
        async for content in results:
            yield content[: manifest.size_bytes - numbers[done] * manifest.chunk_bytes]
            done += 1
            progress(done / len(numbers), "writing the disk")


class _Storing:
    """The chunks of one `store`."""

    def __init__(
        self,
        vault: Vault,
        place: Place,
        read: Read,
        before: Manifest | None,
        refs: list[_Ref | None],
        there: set[str],
    ) -> None:
        self._vault = vault
        self._place = place
        self._read = read
        self._before = before
        self._refs = refs
        self.there = there
        self.sent_bytes = 0

    async def piece(self, piece: _Piece) -> tuple[int, _Ref | None]:
        """Have a chunk on the target; gives its number and where it is."""
        content = await self._merged(piece)
        digest = await in_thread(self._named, content)
        old = self._refs[piece.number]
        if digest is None or (old is not None and old[1] == digest):
            return piece.number, None if digest is None else old
        if digest not in self.there:
            self.there.add(digest)  # before it is: a chunk like it need not be sent beside it, and a failure ends all
            sent = await self._vault.put_chunk(self._place, digest, content)
            self.sent_bytes += sent
        return piece.number, (self._place.backup, digest)

    async def _merged(self, piece: _Piece) -> bytes:
        """What the chunk holds now."""
        merged = bytearray(self._vault.chunk_bytes)
        if self._before is not None and self._refs[piece.number] is not None and not piece.whole:
            merged[:] = await self._vault.read_chunk(self._before, piece.number)
        for run in piece.runs:
            if run.zero:
                merged[run.offset : run.offset + run.length] = bytes(run.length)
        data = [run for run in piece.runs if not run.zero]
        if data:
            first, end = data[0].offset, data[-1].offset + data[-1].length
            got = await self._read(piece.number * self._vault.chunk_bytes + first, end - first)
            if len(got) != end - first:
                raise Unavailable(f"the copy of the disk gave {len(got)} bytes instead of {end - first}")
            for run in data:  # and not all that was read: what lies between them is as before
                merged[run.offset : run.offset + run.length] = got[run.offset - first :][: run.length]
        return bytes(merged)

    def _named(self, content: bytes) -> str | None:
        if content == bytes(len(content)):
            return None
        return self._vault.digest(self._place.server, content)


def _refs(before: Manifest | None, count: int) -> list[_Ref | None]:
    """Where the chunks of a disk are that did not change; one that grew has only zeros there."""
    if before is None:
        return [None] * count
    old = [None if chunk is None else (before.owners[chunk[0]], chunk[1]) for chunk in before.chunks]
    return old + [None] * (count - len(old))


def _pieces(copied: Copied, chunk_bytes: int) -> Iterator[_Piece]:
    cut: Iterator[tuple[int, Run]] = (
        (offset // chunk_bytes, Run(offset % chunk_bytes, end - offset, run.zero))
        for run in copied.runs
        for offset, end in _cuts(run.offset, min(run.offset + run.length, copied.size_bytes), chunk_bytes)
    )
    for number, group in groupby(cut, key=itemgetter(0)):
        runs = tuple(run for _, run in group)
        there = min(chunk_bytes, copied.size_bytes - number * chunk_bytes)
        yield _Piece(number, runs, whole=sum(run.length for run in runs) == there)


def _cuts(start: int, end: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    while start < end:
        border = min((start // chunk_bytes + 1) * chunk_bytes, end)
        yield start, border
        start = border


def _manifest(
    vault: Vault, place: Place, size_bytes: int, refs: list[_Ref | None], facts: Mapping[str, str], created_at_ms: int
) -> Manifest:
    owners = list(dict.fromkeys(ref[0] for ref in refs if ref is not None))
    index = {owner: number for number, owner in enumerate(owners)}
    return Manifest(
        server=place.server,
        backup=place.backup,
        created_at_ms=created_at_ms,
        size_bytes=size_bytes,
        chunk_bytes=vault.chunk_bytes,
        facts=dict(facts),
        owners=owners,
        chunks=[None if ref is None else (index[ref[0]], ref[1]) for ref in refs],
    )
