"""Migrations: to the newest schema, never over one that vpsd does not know."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from tests.migrations.old import dump, fill
from vpsd.errors import Misconfigured
from vpsd.migrations import HEAD, rows, schema, shape
from vpsd.migrations.__main__ import HASHES, hashes, shapes

ROOT = Path(__file__).parents[2]


def _dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def _state(connection: Connection) -> Any:
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version, shape.describe(connection), dump(connection)


def _run(url: str, *statements: str) -> None:
    def work(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    asyncio.run(schema.run(url, work))


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


def test_a_landed_migration_is_never_edited() -> None:
    listed = [line.split("  ") for line in HASHES.read_text(encoding="utf-8").splitlines()]
    assert [[digest, name] for name, digest in hashes().items()] == listed, "see vpsd/migrations/__init__.py"


def test_what_each_migration_makes_is_written_down(empty_url: str) -> None:
    assert asyncio.run(schema.run(empty_url, shapes)) == shape.SHAPES.read_text(encoding="utf-8"), "make migrations"


def _in_a_fresh_process(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.split()


def test_no_rooms_tables_are_left_out() -> None:
    found = _in_a_fresh_process("from vpsd.migrations import schema; print(*schema.all_tables().tables)")
    assert set(found) == shape.tables(shape.released()[HEAD])


def test_a_start_at_head_does_without_alembic(sqlite_template: Path) -> None:
    url = f"sqlite:///{sqlite_template}"
    found = _in_a_fresh_process(
        f"import asyncio, sys; from vpsd.migrations import schema; asyncio.run(schema.prepare({url!r})); "
        "print(*sys.modules)"
    )
    assert "sqlalchemy" in found
    assert "alembic" not in found


def test_a_database_at_head_is_left_alone(database_url: str) -> None:
    assert asyncio.run(schema.prepare(database_url)) is None


LATER = "UPDATE alembic_version SET version_num = '9999'"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER TABLE servers RENAME COLUMN hostname TO h", "lacks: servers: column hostname"),
        ("CREATE UNIQUE INDEX uq_servers_name ON servers (name)", "besides: servers: unique index uq_servers_name"),
    ],
)
def test_a_later_vpsds_database_that_lacks_or_refuses_something_is_refused_and_unchanged(
    database_url: str, statement: str, said: str
) -> None:
    _run(database_url, statement, LATER)
    before = asyncio.run(schema.run(database_url, _state))
    with pytest.raises(Misconfigured, match=f"schema 9999.*{said}.*Nothing was changed"):
        asyncio.run(schema.prepare(database_url))
    assert asyncio.run(schema.run(database_url, _state)) == before


def test_a_later_vpsds_database_that_only_has_more_is_worked_with_and_kept(database_url: str) -> None:
    _run(
        database_url,
        "CREATE TABLE firewalls (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
        "INSERT INTO firewalls (id, name) VALUES (1, 'web')",
        "ALTER TABLE servers ADD COLUMN firewall_id INTEGER",
        "DROP INDEX ix_operations_moves_host",
        LATER,
    )
    before = asyncio.run(schema.run(database_url, _state))
    assert asyncio.run(schema.prepare(database_url)) is None
    assert asyncio.run(schema.run(database_url, _state)) == before
    with pytest.raises(Misconfigured, match="use a later version"):  # a state file of its own would lack what is new
        asyncio.run(schema.run(database_url, lambda connection: list(rows.dump(connection))))


TAMPERED = [
    ("0005", "CREATE TABLE backup_targets (id INTEGER)", "besides: table backup_targets"),
    ("0002", "DROP TABLE traffic", "lacks: table traffic"),
    (HEAD, "ALTER TABLE servers ADD COLUMN colour TEXT", "besides: servers: column colour text"),
    (
        HEAD,
        "ALTER TABLE servers RENAME COLUMN hostname TO h",
        r"lacks: servers: column hostname varchar\(253\), not null",
    ),
    ("0002", "ALTER TABLE usage DROP COLUMN cpu_seconds", "lacks: usage: column cpu_seconds float"),
    ("0001", "CREATE INDEX ix_plans_name ON plans (name)", "besides: plans: index ix_plans_name"),
    (HEAD, "DROP INDEX uq_operations_open_server", "lacks: operations: unique index uq_operations_open_server"),
    (HEAD, "DROP INDEX uq_rentals_going_on", "lacks: rentals: unique index uq_rentals_going_on"),
    (
        "0003",
        "DROP INDEX ix_traffic_unsettled; CREATE INDEX ix_traffic_unsettled ON traffic (month)",
        r"lacks: traffic: index ix_traffic_unsettled \(month\) where settled_at_ms is null",
    ),
]


@pytest.mark.parametrize(("revision", "statements", "said"), TAMPERED)
def test_a_schema_that_differs_from_its_revision_is_refused_and_unchanged(
    empty_url: str, revision: str, statements: str, said: str
) -> None:
    def tamper(connection: Connection) -> None:
        from alembic import command

        command.upgrade(schema.alembic_config(connection), min(revision, "0004"))
        fill(connection)
        command.upgrade(schema.alembic_config(connection), revision)
        for statement in statements.split("; "):
            connection.execute(text(statement))

    asyncio.run(schema.run(empty_url, tamper))
    before = asyncio.run(schema.run(empty_url, _state))
    with pytest.raises(Misconfigured, match=f"schema {revision}, and differs.*{said}.*Nothing was changed"):
        asyncio.run(schema.prepare(empty_url))
    assert asyncio.run(schema.run(empty_url, _state)) == before


OTHERS = {
    "sqlite": (
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)",
        "CREATE TABLE _litestream_lock (id INTEGER)",
    ),
    "postgresql": (
        "CREATE TABLE spatial_ref_sys (srid INTEGER PRIMARY KEY, srtext VARCHAR(2048) CHECK (srid > 0))",
        "CREATE INDEX by_text ON spatial_ref_sys (srtext)",
        "CREATE VIEW geography_columns AS SELECT srid FROM spatial_ref_sys",
        "CREATE SEQUENCE counted",
    ),
}
BESIDE = "CREATE TABLE notes (id INTEGER REFERENCES servers (id))"


def test_tables_of_other_programs_may_stand_beside_and_stay(empty_url: str) -> None:
    others = OTHERS["sqlite" if empty_url.startswith("sqlite") else "postgresql"]
    _run(empty_url, *others)
    assert asyncio.run(schema.prepare(empty_url)) == "nothing"
    _run(empty_url, BESIDE, "INSERT INTO notes VALUES (NULL)")
    assert asyncio.run(schema.prepare(empty_url)) is None
    found = asyncio.run(schema.run(empty_url, shape.describe))
    assert "notes" in shape.tables(found)
    assert shape.tables(shape.ours(found)) == shape.tables(shape.released()[HEAD])


def test_the_fifth_schema_comes_to_the_present_one_with_its_rows(empty_url: str) -> None:
    waiting = (
        "INSERT INTO operations (uuid, server_id, command, status, waits_for, progress, attempts, fence, run_at_ms, "
    )
    waiting += "created_at_ms) VALUES ('o-{0}', 1, 'stop', 'queued', {1}, 0, 0, 0, 1, 1)"
    changed = "INSERT INTO events (account_id, at_ms, actor, action, status_before, status_after) VALUES "
    changed += "(1, 1, 'vpsd', 'server.status', 'active', 'stopped')"
    child = "INSERT INTO tokens (id, uuid, account_id, name, lookup, hash, permissions, created_at_ms) VALUES "
    child += "(77, 't-77', 1, 'child', 'x', 'x', '*:*', 1)"
    made = "INSERT INTO events (account_id, at_ms, actor, action, target, target_id, token_id) VALUES "
    made += "(1, 1, 'token', 'token.create', 'token', 77, 1)"
    tags = '["web", "env:prod", "a:"]'

    def make(connection: Connection) -> Any:
        from alembic import command

        config = schema.alembic_config(connection)
        command.upgrade(config, "0004")
        fill(connection)
        command.upgrade(config, "0005")
        for statement in (waiting.format(2, "NULL"), waiting.format(3, 2), changed, child, made):
            connection.execute(text(statement))
        connection.execute(sa.update(sa.table("servers", *map(sa.column, ("id", "tags")))).values(tags=tags))
        return dump(connection)

    def add_long_name(connection: Connection) -> None:
        connection.execute(text(f"UPDATE servers SET name = '{'n' * 253}' WHERE id = 1"))

    before = asyncio.run(schema.run(empty_url, make))
    assert asyncio.run(schema.prepare(empty_url)) == "0005"
    after = asyncio.run(schema.run(empty_url, dump))
    assert {server.pop("tags") for server in before["servers"]} == {tags}
    for table, old_rows in before.items():
        assert [{name: new[name] for name in old} for old, new in zip(old_rows, after[table], strict=True)] == old_rows
    assert [(tag["account_id"], tag["position"], tag["key"], tag["value"]) for tag in after["server_tags"]] == [
        (server["account_id"], *tag)
        for server in before["servers"]
        for tag in ((0, "web", ""), (1, "env", "prod"), (2, "a:", ""))
    ]
    makers = {token["id"]: (token["created_by"], token["parent_id"]) for token in after["tokens"]}
    assert (makers[1], makers[77]) == (("operator", None), ("token", 1))
    assert {server["freeze_for_backups"] for server in after["servers"]} == {True}
    asyncio.run(schema.run(empty_url, add_long_name))


def test_rows_that_may_be_changed_though_they_are_append_only_are_noticed(database_url: str) -> None:
    drop = "DROP TRIGGER ledger_refuse_update"
    if not database_url.startswith("sqlite"):
        drop = "ALTER TABLE ledger DISABLE TRIGGER ledger_refuse"
    asyncio.run(schema.run(database_url, lambda connection: connection.execute(text(drop)) and None))
    with pytest.raises(Misconfigured, match=r"lacks: .*ledger: refuses update"):
        asyncio.run(schema.prepare(database_url))


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
