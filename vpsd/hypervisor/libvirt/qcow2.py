"""The qcow2 format, as far as vpsd has to know it: a host's libvirt gives and takes bytes of files, not of disks.

Read: where a file that QEMU wrote (nothing compressed in it) keeps what; what it stands on is not looked at. Write:
everything but the data of a new file. Source: docs/interop/qcow2.txt of QEMU.
"""

import bisect
import struct
from collections.abc import Callable, Iterator, Sequence

import msgspec

from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import Run

MAGIC = b"QFI\xfb"
CLUSTER_BYTES = 1 << 16  # of the files that vpsd writes

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # to and with header_length, version 3
_HEADER_BYTES = 104
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_COPIED = 1 << 63
_ZERO = 1
_REFCOUNT_ORDER = 4  # 16 bits each
_COUNTS = CLUSTER_BYTES * 8 >> _REFCOUNT_ORDER  # refcounts in a block
_ENTRIES = CLUSTER_BYTES // 8  # offsets in a table of one cluster

Read = Callable[[int, int], bytes]


class Extent(msgspec.Struct, frozen=True):
    """A stretch of the disk, and where the file has it; None: it is all zeros."""

    offset: int
    length: int
    at: int | None


class Map(msgspec.Struct, frozen=True):
    """What a file holds, in the disk's order."""

    size_bytes: int
    extents: tuple[Extent, ...]

    def runs(self) -> tuple[Run, ...]:
        """The same, without the places."""
        runs: list[Run] = []
        for one in self.extents:
            last, zero = runs[-1] if runs else None, one.at is None
            if last is not None and last.offset + last.length == one.offset and last.zero == zero:
                runs[-1] = Run(last.offset, last.length + one.length, zero)
            else:
                runs.append(Run(one.offset, one.length, zero))
        return tuple(runs)

    def read(self, read: Read, offset: int, length: int) -> bytes:
        """Bytes of the disk; what the file does not hold is zeros."""
        content = bytearray(max(0, min(length, self.size_bytes - offset)))
        end = offset + len(content)
        index = max(0, bisect.bisect_right(self.extents, offset, key=lambda one: one.offset) - 1)
        for one in self.extents[index:]:
            if one.offset >= end:
                break
            first, last = max(one.offset, offset), min(one.offset + one.length, end)
            if one.at is not None and first < last:
                content[first - offset : last - offset] = read(one.at + first - one.offset, last - first)
        return bytes(content)


def read_map(read: Read) -> Map:
    """What a file holds; raises `Unusable` for one that is no qcow2 or that vpsd cannot read."""
    header = read(0, _HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:4] != MAGIC:
        raise Unusable("The copy is no qcow2 file.")
    _, version, _, _, cluster_bits, size, encrypted, l1_size, l1_at, *rest = _HEADER.unpack(header)
    incompatible = rest[4] if version >= 3 else 0
    if encrypted or incompatible:
        raise Unusable("The copy is a qcow2 file of a kind that vpsd does not read.")
    tables = _table(read(l1_at, l1_size * 8))
    return Map(size, tuple(_merged(_clusters(read, tables, cluster_bits, size))))


def _table(content: bytes) -> Sequence[int]:
    return struct.unpack(f">{len(content) // 8}Q", content)


def _clusters(read: Read, tables: Sequence[int], cluster_bits: int, size: int) -> Iterator[Extent]:
    cluster = 1 << cluster_bits
    covers = cluster // 8 * cluster
    for number, entry in enumerate(tables):
        if not entry & _OFFSET:
            continue
        for index, found in enumerate(_table(read(entry & _OFFSET, cluster))):
            if found & _COMPRESSED:
                raise Unusable("The copy is a compressed qcow2 file, which vpsd does not read.")
            offset = number * covers + index * cluster
            if offset < size and found & (_OFFSET | _ZERO):
                yield Extent(offset, min(cluster, size - offset), None if found & _ZERO else found & _OFFSET)


def _merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    last: Extent | None = None
    for one in extents:
        if last is not None and last.offset + last.length == one.offset and _goes_on(last, one):
            last = Extent(last.offset, last.length + one.length, last.at)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def _goes_on(last: Extent, one: Extent) -> bool:
    if last.at is None or one.at is None:
        return last.at is one.at
    return last.at + last.length == one.at


class Plan(msgspec.Struct, frozen=True):
    """A file to be: all but its first cluster and its data, which follow in order, each chunk padded to clusters."""

    header: bytes  # the first cluster; what has none is no disk
    tables: bytes  # what comes after it, up to the data
    file_bytes: int


def plan_file(size_bytes: int, chunk_bytes: int, chunks: Sequence[int]) -> Plan:
    """How a file looks that holds those chunks of a disk; `chunk_bytes` is a multiple of the cluster."""
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
    return Plan(header.ljust(CLUSTER_BYTES, b"\0"), bytes(tables), total * CLUSTER_BYTES)


def _refcount_clusters(others: int) -> tuple[int, int]:
    """How many refcount blocks and clusters of their table it takes to count all clusters, themselves included."""
    blocks = table = 0
    while True:
        needed = -(-(others + blocks + table) // _COUNTS)
        if needed == blocks:
            return blocks, table
        blocks, table = needed, -(-needed // _ENTRIES)


def padded(content: bytes) -> bytes:
    """A chunk as it lies in the file."""
    return content + bytes(-len(content) % CLUSTER_BYTES)
