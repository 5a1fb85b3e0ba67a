"""Keeps the state of the simulated host in a journal, which several processes share.

    {"vpsd-simulator": 1, "snapshot_bytes": 123}    a header: the version, and the size of the journal when it was new
    [["disk", "vpsd-…", {…}], ["write", …]]         the changes of one transaction; `z` and base64 of zlib if it is long

A process takes a lock (`flock` of a file next to the journal), replays what others have appended, and appends its own
transaction in a single write. Readers replay without a lock if nothing is new. A journal that has grown is replaced by
a shorter one with the same state, which the other processes notice by its inode.

Each transaction is synced before its call returns, as a real host's changes are: a power cut loses only what nobody was
told of. A line that it tore is taken away by the next transaction.
"""

import contextlib
import fcntl
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from vpsd.core.files import sync
from vpsd.core.units import MIB
from vpsd.errors import Misconfigured, Unavailable
from vpsd.hypervisor.simulator.state import AnyChange, HostState, PutCheckpoint

VERSION = 1

_COMPRESS_BYTES = 4096  # longer transactions are compressed: most blocks of disks are zeros
_COMPACT_BYTES = MIB  # a shorter journal is not worth replacing
_COMPACT_FACTOR = 4  # nor is one that has not grown that much since it was new


class _Header(msgspec.Struct):
    version: int = msgspec.field(name="vpsd-simulator")
    snapshot_bytes: int = 0


_decoder = msgspec.json.Decoder(list[AnyChange])
_encoder = msgspec.json.Encoder()


class MemoryStore:
    """A state without a file."""

    def __init__(self) -> None:
        self._state = HostState()

    def current(self) -> HostState:
        """The state; not to be modified."""
        return self._state

    @contextlib.contextmanager
    def change(self) -> Iterator["StateEdit"]:
        """Read and modify the state."""
        yield StateEdit(self._state)

    def close(self) -> None:
        """Release nothing."""


class StateEdit:
    """Changes that are written together; each is visible in `state` at once."""

    def __init__(self, state: HostState) -> None:
        self.state = state
        self.changes: list[AnyChange] = []

    def apply(self, *changes: AnyChange) -> None:
        """Make changes."""
        for change in changes:
            change.apply(self.state)
            self.changes.append(change)

    def delete_checkpoints(self, name: str, keep: str | None) -> None:
        """Delete the checkpoints of a guest's disk but one."""
        present = sorted(self.state.checkpoints.get(name, {}))
        self.apply(*(PutCheckpoint(name, checkpoint, None) for checkpoint in present if checkpoint != keep))


class JournalStore:
    """A state in a journal; several objects and processes may use the same one at the same time."""

    def __init__(self, path: Path, create: Callable[[], HostState] = HostState) -> None:
        """`create` returns the initial state if there is no journal yet.

        Raises `Misconfigured` if the journal cannot be used or is of a later version of vpsd.
        """
        self._path = path
        self._state = HostState()
        self._file = -1
        self._inode = 0
        self._offset = 0
        self._snapshot_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # O_CLOEXEC: a daemon that inherited the file would also hold the lock.
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with self._locked(fcntl.LOCK_EX):
                if not path.exists():
                    self._replace(create())
                self._replay()
        except OSError as error:
            raise Misconfigured(f"The simulator's state {path} cannot be used: {error.strerror}") from error

    def current(self) -> HostState:
        """The state, with what others have changed; not to be modified."""
        with self._translated_errors():
            found = self._path.stat()
            if (found.st_ino, found.st_size) != (self._inode, self._offset):
                with self._locked(fcntl.LOCK_SH):
                    self._replay()
        return self._state

    @contextlib.contextmanager
    def change(self) -> Iterator[StateEdit]:
        """Read and modify the state while nobody else does; must not be held across an `await`."""
        with self._translated_errors(), self._locked(fcntl.LOCK_EX):
            self._replay()
            transaction = StateEdit(self._state)
            try:
                yield transaction
            finally:  # also what was changed before a failure
                if transaction.changes:
                    self._append(transaction.changes)

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._lock):
            os.close(file)

    @contextlib.contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        fcntl.flock(self._lock, mode)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(f"The simulator's state {self._path} cannot be used: {error.strerror}") from error

    def _replay(self) -> None:
        """Apply what was appended; from the start if the journal was replaced."""
        if self._path.stat().st_ino != self._inode:  # never reused: the open file keeps the old one
            self._open()
        size = os.fstat(self._file).st_size
        if size > self._offset:
            data = os.pread(self._file, size - self._offset, self._offset)
            for line in data.split(b"\n")[:-1]:  # without the last one, which is empty, or torn by a killed process
                self._apply(line)
                self._offset += len(line) + 1

    def _open(self) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            header = self._read_header(file)
        except BaseException:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._inode = file, os.fstat(file).st_ino
        self._state, self._offset = HostState(), header[1]
        self._snapshot_bytes = header[0].snapshot_bytes

    def _read_header(self, file: int) -> tuple[_Header, int]:
        line, newline, _ = os.pread(file, 256, 0).partition(b"\n")
        try:
            header = msgspec.json.decode(line, type=_Header)
        except msgspec.MsgspecError:
            raise Misconfigured(f"{self._path} is not a simulator's state. Move it away to start with none.") from None
        if header.version > VERSION:
            raise Misconfigured(
                f"{self._path} was written by a later version of vpsd (format {header.version}, this one reads "
                f"{VERSION}). Run that version, or set VPSD_DATA_DIR to another folder."
            )
        return header, len(line) + len(newline)

    def _apply(self, line: bytes) -> None:
        try:
            content = zlib.decompress(b64decode(line[1:])) if line.startswith(b"z") else line
            changes = _decoder.decode(content)
        except (msgspec.MsgspecError, ValueError, zlib.error) as error:
            raise Misconfigured(f"{self._path} is damaged at byte {self._offset}: {error}") from error
        for change in changes:
            change.apply(self._state)

    def _append(self, changes: list[AnyChange]) -> None:
        line = _encoded(changes)
        try:
            os.ftruncate(self._file, self._offset)  # takes away a torn line
            if os.write(self._file, line) != len(line):
                raise OSError(0, "no space left")
            os.fdatasync(self._file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._offset)
            self._inode = 0  # what is in memory did not happen: replay everything
            raise
        self._offset += len(line)
        if self._offset > max(_COMPACT_BYTES, _COMPACT_FACTOR * self._snapshot_bytes):
            with contextlib.suppress(OSError):  # it goes on growing
                self._replace(self._state)
                self._replay()

    def _replace(self, state: HostState) -> None:
        """Write a new journal with that state, and put it in the place of the old one."""
        lines = [_encoded([change]) for change in state.snapshot()]
        header = msgspec.json.encode(_Header(VERSION, sum(len(line) for line in lines))) + b"\n"
        new = self._path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.writelines([header, *lines])
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)
        sync(self._path.parent)


def _encoded(changes: Iterable[AnyChange]) -> bytes:
    line = _encoder.encode(list(changes))
    if len(line) > _COMPRESS_BYTES:
        line = b"z" + b64encode(zlib.compress(line, 1))
    return line + b"\n"
