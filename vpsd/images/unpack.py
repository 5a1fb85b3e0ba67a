"""Unpacks what publishers pack: .xz, .gz and .zst, with limits."""

import asyncio
import contextlib
import gzip
import lzma
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from vpsd.core.units import MIB
from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import Progress
from vpsd.images.programs import WITH_US, require
from vpsd.images.space import require_space

_TIMEOUT_SECONDS = 3600
_BLOCK_BYTES = MIB
_ZEROS = bytes(_BLOCK_BYTES)
_WINDOW_LOG = 27  # 128 MiB, what zstd unpacks unasked
_XZ_MEMORY_BYTES = 256 * MIB  # xz -9 needs 65 MiB; a file can ask for 4 GiB


class _TooMuch(Exception):
    """A limit is exceeded; the text completes a sentence."""


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


async def unpack(packed: Path, name: str, kind: str, target: Path, progress: Progress, *, limit_bytes: int) -> None:
    """Unpack a file of this kind (`looks.packing`); zeros become holes.

    Raises `Unusable`, with a sentence about `name`, for one that is damaged, ends too early, or is larger than
    `limit_bytes` when unpacked, or asks for too much memory; `Unavailable` while there is no space.
    """
    if kind == "zst":
        require("zstd")
    stop, loop = threading.Event(), asyncio.get_running_loop()

    def report(fraction: float, text: str) -> None:
        loop.call_soon_threadsafe(progress, fraction, text)

    try:
        await asyncio.to_thread(_unpack, packed, kind, target, report, limit_bytes, stop)
    except _TooMuch as error:
        raise Unusable(f"{name} {error}") from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable(f"{name} cannot be unpacked, it is damaged or incomplete: {error}") from error
    finally:
        stop.set()


def _unpack(packed: Path, kind: str, target: Path, report: Progress, limit_bytes: int, stop: threading.Event) -> None:
    until, size = time.monotonic() + _TIMEOUT_SECONDS, 0
    with packed.open("rb") as raw, target.open("wb") as output, _opened(raw, kind) as source:
        while block := source.read(_BLOCK_BYTES):
            size += len(block)
            if size > limit_bytes:
                raise _TooMuch(f"is larger than {limit_bytes // MIB} MiB when it is unpacked.")
            if time.monotonic() > until:
                raise _TooMuch(f"took longer than {_TIMEOUT_SECONDS} seconds to unpack.")
            if stop.is_set():
                return
            require_space(target.parent, len(block), "What is unpacked")
            if block == _ZEROS[: len(block)]:
                output.seek(size)
            else:
                output.write(block)
            report(raw.tell() / packed.stat().st_size, f"unpacked {size // MIB} MiB")
        output.truncate(size)


@contextlib.contextmanager
def _opened(raw: BinaryIO, kind: str) -> Iterator[_Source]:
    if kind == "zst":  # Python before 3.14 has none of its own
        with _zstd(raw) as output:
            yield output
        return
    if kind == "xz":
        yield _Xz(raw)
        return
    with gzip.GzipFile(fileobj=raw) as source:
        yield source


class _Xz:
    """An .xz file, unpacked with a limit of memory, which Python's own reader of files does not have."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._stream = self._next_stream()

    def _next_stream(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def read(self, size: int, /) -> bytes:
        while True:
            more = b""
            if self._stream.eof:  # streams may follow each other, with zeros between them
                more = self._stream.unused_data.lstrip(b"\0")
                while not more:
                    read = self._raw.read(_BLOCK_BYTES)
                    if not read:
                        return b""
                    more = read.lstrip(b"\0")
                self._stream = self._next_stream()
            elif self._stream.needs_input:
                more = self._raw.read(_BLOCK_BYTES)
                if not more:
                    raise EOFError("it ends too early")
            block = self._stream.decompress(more, size)
            if block:
                return block


@contextlib.contextmanager
def _zstd(raw: BinaryIO) -> Iterator[_Source]:
    command = (*WITH_US, "zstd", "--decompress", "--stdout", "--quiet", f"--long={_WINDOW_LOG}")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=raw, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
            said = process.stderr.read().decode(errors="replace").strip()
            if process.wait():
                raise EOFError(said)
        finally:
            process.kill()
