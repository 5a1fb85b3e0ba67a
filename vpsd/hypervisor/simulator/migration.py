"""Reads the state of simulators of vpsd before the journal, which kept it in an SQLite file."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from vpsd.errors import Misconfigured
from vpsd.hypervisor.simulator.state import (
    AnyChange,
    Disk,
    Export,
    GuestState,
    HostState,
    PutBase,
    PutBlock,
    PutCheckpoint,
    PutDisk,
    PutExport,
    PutExportBlock,
    PutGuest,
    PutSeed,
)


def read_sqlite(path: Path) -> HostState:
    """The state in that file, which is left as it is; an empty one if there is no file. Raises `Misconfigured`."""
    state = HostState()
    if path.exists():
        try:
            with closing(sqlite3.connect(path)) as database:
                for change in _changes(database):
                    change.apply(state)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise Misconfigured(f"The simulator's state {path} cannot be read: {error}") from error
    return state


def _changes(database: sqlite3.Connection) -> Iterator[AnyChange]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def rows(table: str, columns: str) -> Iterable[Any]:
        if table not in tables:
            return []  # the first versions had no exports
        return database.execute(f"SELECT {columns} FROM {table}")  # noqa: S608

    yield from (PutBase(key, True) for (key,) in rows("bases", "key"))
    yield from (PutDisk(name, Disk(base, size)) for name, base, size in rows("disks", "name, base, size_bytes"))
    yield from (PutSeed(name, content) for name, content in rows("seeds", "name, content"))
    for name, text in rows("guests", "name, state"):
        yield PutGuest(name, msgspec.json.decode(text, type=GuestState))
    for name, size, done_at_ms in rows("copies", "name, size_bytes, done_at_ms"):
        yield PutExport(name, Export(size, done_at_ms))
    for name, checkpoint, written in rows("marks", "name, mark, written"):
        yield PutCheckpoint(name, checkpoint, written)
    for disk, number, content, written in rows("blocks", "disk, number, content, written"):
        yield PutBlock(disk, number, content, written)
    for name, number, content in rows("copied", "name, number, content"):
        yield PutExportBlock(name, number, content)
