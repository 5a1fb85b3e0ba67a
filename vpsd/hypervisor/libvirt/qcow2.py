"""The qcow2 format, as far as vpsd needs it: libvirt transfers the bytes of files, not of disks.

Reading: where an uncompressed file written by QEMU stores what, ignoring its backing file. Writing: everything but the
data of a new file. Reference: docs/interop/qcow2.txt of QEMU.
"""

import bisect
import struct
from collections.abc import Callable, Iterator, Sequence

import msgspec

from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import Extent

MAGIC = b"QFI\xfb"
CLUSTER_BYTES = 1 << 16  # of the files that vpsd writes

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # up to header_length, version 3
_HEADER_BYTES = 104
_BACKING_LENGTH_AT = 16
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_COPIED = 1 << 63
_ZERO = 1
_REFCOUNT_ORDER = 4  # 16 bits each
_COUNTS = CLUSTER_BYTES * 8 >> _REFCOUNT_ORDER  # refcounts in a block
_ENTRIES = CLUSTER_BYTES // 8  # offsets in a table of one cluster

Read = Callable[[int, int], bytes]


class MapEntry(msgspec.Struct, frozen=True):
    """A contiguous range of the disk and its offset in the file; None: the range contains only zeros."""

    offset: int
    length: int
    file_offset: int | None


class ClusterMap(msgspec.Struct, frozen=True):
    """Where a file stores what, in the order of the disk."""

    size_bytes: int
    entries: tuple[MapEntry, ...]

    def extents(self) -> tuple[Extent, ...]:
        """The ranges of the disk, regardless of where they are in the file."""
        extents: list[Extent] = []
        for entry in self.entries:
            last, zero = extents[-1] if extents else None, entry.file_offset is None
            if last is not None and last.offset + last.length == entry.offset and last.zero == zero:
                extents[-1] = Extent(last.offset, last.length + entry.length, zero)
            else:
                extents.append(Extent(entry.offset, entry.length, zero))
        return tuple(extents)

    def read(self, read: Read, offset: int, length: int) -> bytes:
        """Read bytes of the disk; what the file does not store reads as zeros."""
        content = bytearray(max(0, min(length, self.size_bytes - offset)))
        end = offset + len(content)
        index = max(0, bisect.bisect_right(self.entries, offset, key=lambda entry: entry.offset) - 1)
        for entry in self.entries[index:]:
            if entry.offset >= end:
                break
            first, last = max(entry.offset, offset), min(entry.offset + entry.length, end)
            if entry.file_offset is not None and first < last:
                data = read(entry.file_offset + first - entry.offset, last - first)
                content[first - offset : last - offset] = data
        return bytes(content)


def read_map(read: Read) -> ClusterMap:
    """Read the tables of a file; raises `Unusable` if it is not a qcow2 file or of an unsupported kind."""
    header = read(0, _HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:4] != MAGIC:
        raise Unusable("The export is not a qcow2 file.")
    _, version, _, _, cluster_bits, size, encrypted, l1_size, l1_at, *rest = _HEADER.unpack(header)
    incompatible = rest[4] if version >= 3 else 0
    if encrypted or incompatible:
        raise Unusable("The export is a qcow2 file with features that vpsd does not support.")
    tables = _table(read(l1_at, l1_size * 8))
    return ClusterMap(size, tuple(_merged(_clusters(read, tables, cluster_bits, size))))


def _table(content: bytes) -> Sequence[int]:
    return struct.unpack(f">{len(content) // 8}Q", content)


def _clusters(read: Read, tables: Sequence[int], cluster_bits: int, size: int) -> Iterator[MapEntry]:
    cluster = 1 << cluster_bits
    covers = cluster // 8 * cluster
    for number, entry in enumerate(tables):
        if not entry & _OFFSET:
            continue
        for index, found in enumerate(_table(read(entry & _OFFSET, cluster))):
            if found & _COMPRESSED:
                raise Unusable("The export is a compressed qcow2 file, which vpsd does not support.")
            offset = number * covers + index * cluster
            if offset < size and found & (_OFFSET | _ZERO):
                yield MapEntry(offset, min(cluster, size - offset), None if found & _ZERO else found & _OFFSET)


def _merged(entries: Iterator[MapEntry]) -> Iterator[MapEntry]:
    last: MapEntry | None = None
    for entry in entries:
        if last is not None and last.offset + last.length == entry.offset and _continues(last, entry):
            last = MapEntry(last.offset, last.length + entry.length, last.file_offset)
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


def _continues(last: MapEntry, entry: MapEntry) -> bool:
    if last.file_offset is None or entry.file_offset is None:
        return last.file_offset is entry.file_offset
    return last.file_offset + last.length == entry.file_offset


def with_relative_backing(start: bytes) -> bytes | None:
    """The start of a file, given its first cluster, with the name of its backing file without the path.

    None where there is nothing to change: no backing file, or no path in front of its name.
    """
    if len(start) < _HEADER_BYTES or start[:4] != MAGIC:
        return None
    _, _, at, length, *_ = _HEADER.unpack(start[:_HEADER_BYTES])
    name = start[at : at + length]
    last = name.rpartition(b"/")[2]
    if not at or len(name) < length or not last or last == name:
        return None
    head = bytearray(start[: at + length])
    head[at:] = last.ljust(length, b"\0")
    struct.pack_into(">I", head, _BACKING_LENGTH_AT, len(last))
    return bytes(head)


class FileLayout(msgspec.Struct, frozen=True):
    """The layout of a new file. The data follows the tables in order, each chunk padded to whole clusters."""

    header: bytes  # the first cluster; a file without it is not a disk
    tables: bytes  # from there to the data
    file_bytes: int


def plan_file(size_bytes: int, chunk_bytes: int, chunks: Sequence[int]) -> FileLayout:
    """Plan a file with those chunks of a disk; `chunk_bytes` is a multiple of the cluster size."""
    each = chunk_bytes // CLUSTER_BYTES
    disk_clusters = -(-size_bytes // CLUSTER_BYTES)
    held = [cluster for chunk in chunks for cluster in range(chunk * each, min((chunk + 1) * each, disk_clusters))]
    l1_size = max(1, -(-disk_clusters // _ENTRIES))
    l1_clusters = -(-l1_size // _ENTRIES)
    l2_numbers = sorted({cluster // _ENTRIES for cluster in held})
    others = 1 + l1_clusters + len(l2_numbers) + len(held)
    blocks, table = _refcount_clusters(others)
    total = others + blocks + table
    table_at, blocks_at = 1, 1 + table
    l1_at = blocks_at + blocks
    l2_at = {number: l1_at + l1_clusters + index for index, number in enumerate(l2_numbers)}
    data_at = l1_at + l1_clusters + len(l2_numbers)
    header = _HEADER.pack(
        *(MAGIC, 3, 0, 0, CLUSTER_BYTES.bit_length() - 1, size_bytes, 0, l1_size, l1_at * CLUSTER_BYTES),
        *(table_at * CLUSTER_BYTES, table, 0, 0, 0, 0, 0, _REFCOUNT_ORDER, _HEADER_BYTES),
    )
    tables = bytearray((data_at - 1) * CLUSTER_BYTES)

    def put(cluster: int, index: int, value: int) -> None:
        struct.pack_into(">Q", tables, (cluster - 1) * CLUSTER_BYTES + index * 8, value)

    for index in range(blocks):
        put(table_at, index, (blocks_at + index) * CLUSTER_BYTES)
    counts = (blocks_at - 1) * CLUSTER_BYTES
    tables[counts : counts + 2 * total] = b"\x00\x01" * total
    for number, at in l2_at.items():
        put(l1_at, number, at * CLUSTER_BYTES | _COPIED)
    for index, cluster in enumerate(held):
        put(l2_at[cluster // _ENTRIES], cluster % _ENTRIES, (data_at + index) * CLUSTER_BYTES | _COPIED)
    return FileLayout(header.ljust(CLUSTER_BYTES, b"\0"), bytes(tables), total * CLUSTER_BYTES)


def _refcount_clusters(others: int) -> tuple[int, int]:
    """The number of refcount blocks and refcount table clusters for all clusters, including themselves."""
    blocks = table = 0
    while True:
        needed = -(-(others + blocks + table) // _COUNTS)
        if needed == blocks:
            return blocks, table
        blocks, table = needed, -(-needed // _ENTRIES)


def padded(content: bytes) -> bytes:
    """A chunk padded to whole clusters, as it is stored."""
    return content + bytes(-len(content) % CLUSTER_BYTES)
