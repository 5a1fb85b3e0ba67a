"""Columns and expressions that tables share. Times are integers: milliseconds since 1970 in UTC."""

from typing import Any

from sqlalchemy import BigInteger, Cast, Column, ColumnElement, Identity, Integer, String, cast, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


def identity() -> Column[Any]:
    """An integer key that is never reused, not even after its row is deleted."""
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)


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
