"""Migrations: to the newest schema, never over one that vpsd does not know."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from vpsd import schema
from vpsd.errors import Misconfigured
from vpsd.migrations import HEAD


def _dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def test_the_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        return list(compare_metadata(MigrationContext.configure(connection), schema.all_tables()))

    assert asyncio.run(schema.run(database_url, differences)) == []


def test_head_is_the_last_migration(database_url: str) -> None:
    def head(connection: Connection) -> str | None:
        from alembic.script import ScriptDirectory

        return ScriptDirectory.from_config(schema.alembic_config(connection)).get_current_head()

    assert asyncio.run(schema.run(database_url, head)) == HEAD


def test_a_database_at_head_is_left_alone(database_url: str) -> None:
    assert asyncio.run(schema.prepare(database_url)) is None


def test_a_later_vpsds_database_is_refused_and_unchanged(database_url: str) -> None:
    def become_later(connection: Connection) -> None:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    def version(connection: Connection) -> Any:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    asyncio.run(schema.run(database_url, become_later))
    with pytest.raises(Misconfigured, match="9999"):
        asyncio.run(schema.prepare(database_url))
    assert asyncio.run(schema.run(database_url, version)) == "9999"


def test_another_programs_database_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (id INTEGER)")
    before = _dump(path)
    with pytest.raises(Misconfigured, match="recipes"):
        asyncio.run(schema.prepare(f"sqlite:///{path}"))
    assert _dump(path) == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    path.write_text("these are notes, not a database" * 100)
    with pytest.raises(Misconfigured, match=r"notes\.sqlite"):
        asyncio.run(schema.prepare(f"sqlite:///{path}"))
    assert path.read_text().startswith("these are notes")


def test_a_migration_that_fails_halfway_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "vpsd.sqlite"

    def stumble(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise KeyError("power cut")

    with pytest.raises(KeyError):
        asyncio.run(schema.run(f"sqlite:///{path}", stumble))
    assert not any("half" in line for line in _dump(path))
    assert asyncio.run(schema.prepare(f"sqlite:///{path}")) == "nothing"


async def test_two_processes_that_migrate_at_once_do_it_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'vpsd.sqlite'}"
    assert sorted(map(str, await asyncio.gather(*(schema.prepare(url) for _ in range(3))))) == [
        "None",
        "None",
        "nothing",
    ]
