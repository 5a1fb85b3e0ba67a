"""All rows of a database as lines of JSON, which both kinds of database give and take alike.

    {"schema": "0008"}
    {"table": "accounts", "columns": ["id", …], "last": 17}    in the order in which they refer to each other
    [1, …]                                                      its rows, by their keys
    {"end": {"accounts": {"rows": 1, "digest": "…"}, …}}

`last` is the last key that was given out: no key is ever given twice, not even a deleted row's. A digest is the sum of
its rows' hashes, so that it depends on no order: that of texts is the database's own.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, LargeBinary, MetaData, Table, insert, select, text

from vpsd.core.tables import RaiseIdentity
from vpsd.errors import Misconfigured
from vpsd.migrations import schema, shape

Report = Callable[[float, str], None]

_BATCH = 500
_MODULUS = 1 << 256
_SUMS = {"server_counts", "account_sums"}  # triggers make them anew as the other tables are filled


class Damaged(Misconfigured):
    """Lines that are no rows of a vpsd."""


class Sum(msgspec.Struct):
    """How many rows a table has, and what they hash to."""

    rows: int = 0
    digest: str = "0"

    def add(self, line: bytes) -> None:
        self.rows += 1
        row = int.from_bytes(hashlib.sha256(line).digest())
        self.digest = f"{(int(self.digest, 16) + row) % _MODULUS:x}"


def dump(connection: Connection, report: Report = lambda _fraction, _text: None) -> Iterator[bytes]:
    """The lines, each without its end; raises `Misconfigured` where there is no database of a known vpsd."""
    found = shape.describe(connection)
    present = schema.version(connection, found)
    if present is None:
        raise Misconfigured("there is no vpsd in this database yet")
    released = shape.released()
    if present not in released:
        raise Misconfigured(f"the database has schema {present}, which this vpsd does not know: use a later version")
    schema.compare(present, released[present], shape.ours(found))
    yield msgspec.json.encode({"schema": present})
    sums: dict[str, Sum] = {}
    tables = _tables(connection, released[present])
    for number, table in enumerate(tables):
        report(number / len(tables), table.name)
        columns, total = list(table.columns), sums.setdefault(str(table.name), Sum())
        last = _last_key(connection, table) if _has_identity(table, released[present]) else None
        yield msgspec.json.encode({"table": str(table.name), "columns": [str(c.name) for c in columns], "last": last})
        query = select(*columns).order_by(*table.primary_key).execution_options(yield_per=_BATCH)
        with connection.execute(query) as rows:
            for row in rows:
                line = msgspec.json.encode(tuple(row))
                total.add(line)
                yield line
    yield msgspec.json.encode({"end": sums})


def load(connection: Connection, lines: Iterable[bytes], report: Report = lambda _fraction, _text: None) -> None:
    """Make the schema that the lines were of in an empty database, fill it, and compare.

    The lines are of a schema that this vpsd knows. Raises `Misconfigured` where something is in the database, `Damaged`
    where it does not come to the same.
    """
    from alembic import command

    if schema.version(connection, shape.describe(connection)) is not None:
        raise Misconfigured("there is a vpsd in that database already; nothing was changed. Give it an empty database")
    rest = iter(lines)
    present = msgspec.json.decode(next(rest))["schema"]
    command.upgrade(schema.alembic_config(connection), present)
    tables = {table.name: table for table in _tables(connection, shape.released()[present])}
    filling, last, done, wanted = _Filling(connection), {}, 0, None
    for line in rest:
        if line.startswith(b"["):
            filling.add(line)
            continue
        filling.flush()
        head = msgspec.json.decode(line)
        if "end" in head:
            wanted = line
            break
        report(done / len(tables), head["table"])
        done += 1
        filling = _Filling(connection, tables[head["table"]], head["columns"])
        last[head["table"]] = head["last"]
    for name, key in last.items():
        if key is not None:
            connection.execute(RaiseIdentity(tables[name]), {"last": key})
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise Damaged("rows refer to rows that are not there")
    *_, came_to = dump(connection)
    if wanted != came_to:
        raise Damaged("what was written does not come to the same as what was read; nothing was changed")


class _Filling:
    """A table that rows are written to, many at once."""

    def __init__(self, connection: Connection, table: Table | None = None, columns: Iterable[str] = ()) -> None:
        self._connection, self._table = connection, table
        self._names = list(columns)
        self._binary = [
            number
            for number, name in enumerate(self._names)
            if table is not None and isinstance(table.columns[name].type, LargeBinary)
        ]
        self._rows: list[dict[str, Any]] = []

    def add(self, line: bytes) -> None:
        values = msgspec.json.decode(line)
        for number in self._binary:
            if values[number] is not None:
                values[number] = base64.b64decode(values[number])
        self._rows.append(dict(zip(self._names, values, strict=True)))
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        if self._rows and self._table is not None:
            self._connection.execute(insert(self._table), self._rows)
        self._rows = []


def _tables(connection: Connection, lines: shape.Shape) -> list[Table]:
    """As they are in the database, whatever its version; those that others refer to first."""
    known = MetaData()
    known.reflect(connection, only=sorted(shape.tables(lines) - _SUMS))
    return known.sorted_tables


def _has_identity(table: Table, lines: shape.Shape) -> bool:
    return any(line.startswith(f"{table.name}: column id identity") for line in lines)


def _last_key(connection: Connection, table: Table) -> int | None:
    query = "SELECT seq FROM sqlite_sequence WHERE name = :name"
    if connection.dialect.name != "sqlite":
        query = "SELECT pg_sequence_last_value(pg_get_serial_sequence(:name, 'id')::regclass)"
    last: int | None = connection.execute(text(query), {"name": table.name}).scalar()
    return last
