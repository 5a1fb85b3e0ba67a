"""Columns and expressions that tables share. Times are integers: milliseconds since 1970 in UTC."""

from typing import Any

from sqlalchemy import BigInteger, Cast, Column, ColumnElement, Identity, Integer, cast, func


def identity() -> Column[Any]:
    """An integer key that is never reused, not even after its row is deleted."""
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)


def total(values: ColumnElement[Any]) -> Cast[int]:
    """The sum of integers, 0 where there are none; PostgreSQL by itself would answer with a decimal."""
    return cast(func.coalesce(func.sum(values), 0), BigInteger)
