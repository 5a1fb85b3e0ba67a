"""Columns that every table writes the same way. Times are integers: milliseconds since 1970 in UTC."""

from typing import Any

from sqlalchemy import BigInteger, Column, Identity, Integer


def identity() -> Column[Any]:
    """An integer key that is never given twice, not even after its row is gone."""
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
