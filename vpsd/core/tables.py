"""Columns and expressions that tables share. Times are integers: milliseconds since 1970 in UTC."""

from typing import Any

from sqlalchemy import BigInteger, Cast, Column, ColumnElement, Identity, Integer, String, Table, cast, func, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.functions import GenericFunction


def identity() -> Column[Any]:
    """An integer key that is never reused, not even after its row is deleted."""
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)


class RaiseIdentity(Executable, ClauseElement):
    """Have the next keys of a table with an `identity` be above `last`; it touches no row where they are."""

    inherit_cache = True

    def __init__(self, table: Table) -> None:
        self.table = table.name


@compiles(RaiseIdentity, "sqlite")
def _raise_counter(element: RaiseIdentity, compiler: SQLCompiler, **options: Any) -> str:
    of_table = f"FROM sqlite_sequence WHERE name = '{element.table}'"  # no row before the table had its first
    raised = (
        f"INSERT OR REPLACE INTO sqlite_sequence (rowid, name, seq) SELECT (SELECT rowid {of_table}), "
        f"'{element.table}', :last WHERE NOT EXISTS (SELECT 1 {of_table} AND seq >= :last)"
    )
    return compiler.process(text(raised), **options)


@compiles(RaiseIdentity, "postgresql")
def _raise_sequence(element: RaiseIdentity, compiler: SQLCompiler, **options: Any) -> str:
    sequence = f"pg_get_serial_sequence('{element.table}', 'id')"
    present = f"coalesce(pg_sequence_last_value({sequence}::regclass), 0)"
    return compiler.process(text(f"SELECT setval({sequence}, :last) WHERE {present} < :last"), **options)


def total(values: ColumnElement[Any]) -> Cast[int]:
    """The sum of integers, 0 where there are none; PostgreSQL by itself would answer with a decimal."""
    return cast(func.coalesce(func.sum(values), 0), BigInteger)


class alphabetical(GenericFunction[str]):  # noqa: N801  # reads like the functions of SQL
    """A text to order by: `a` and `A` are alike, and the order is the same in every database and locale.

    In Python: `alphabetical_key`.
    """

    type = String()
    inherit_cache = True


@compiles(alphabetical)
def _by_bytes(element: alphabetical, compiler: SQLCompiler, **options: Any) -> str:
    return f"lower({compiler.process(element.clauses, **options)})"


@compiles(alphabetical, "postgresql")
def _by_bytes_whatever_the_locale(element: alphabetical, compiler: SQLCompiler, **options: Any) -> str:
    return f'lower({compiler.process(element.clauses, **options)} COLLATE "C")'


class json_lists(GenericFunction[str]):  # noqa: N801  # reads like the functions of SQL
    """The rows of a group as JSON: a list, in no order, of a list of these columns for each."""

    type = String()
    inherit_cache = True


@compiles(json_lists)
def _as_json_lists(element: json_lists, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **options)}))"


@compiles(json_lists, "postgresql")
def _as_json_text(element: json_lists, compiler: SQLCompiler, **options: Any) -> str:
    return f"coalesce(json_agg(json_build_array({compiler.process(element.clauses, **options)}))::text, '[]')"


def alphabetical_key(text: str) -> str:
    """What `alphabetical` makes of a text."""
    return text.encode().lower().decode()  # bytes: only a to z have a lower case here, as in the databases
