"""Migrations: to the newest schema, never over one that vpsd does not know."""

import asyncio
import sqlite3
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import Connection, text

from tests.api.tables import rows
from tests.cloud import Cloud
from vpsd.billing.verify import verify
from vpsd.core import db
from vpsd.core.ids import token_hash
from vpsd.errors import Misconfigured
from vpsd.images.simulated import SimulatedImages
from vpsd.main import make_vault
from vpsd.migrations import HEAD, schema
from vpsd.servers.jobs import World
from vpsd.settings import Settings


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


# A database as it was before vpsd knew money: what to keep when it is migrated.

OLD_TOKEN = "vps_of-the-time-before"
OLD_MS = 1_748_649_600_000  # the 31st of May 2025
DELETED_MS = OLD_MS + 5 * 3_600_000
_BEFORE_MONEY = f"""
INSERT INTO installation (id, instance) VALUES (1, '0badcafe');
INSERT INTO accounts (uuid, name, created_at_ms) VALUES ('a-1', 'default', {OLD_MS}), ('a-2', 'guest', {OLD_MS});
INSERT INTO tokens (uuid, account_id, name, hash, created_at_ms, revoked_at_ms) VALUES
    ('t-1', 1, 'first', '{token_hash(OLD_TOKEN)}', {OLD_MS}, NULL),
    ('t-2', 2, 'gone', '{token_hash("vps_revoked")}', {OLD_MS}, {OLD_MS});
INSERT INTO plans (id, name, slug, vcpus, memory_mb, storage_gb, bandwidth_gb, description, available) VALUES
    (4, 'Nano VPS', 'nano', 1, 256, 2, 256, '', TRUE);
INSERT INTO operating_systems (id, name, slug, source, available) VALUES (1, 'Tiny Linux', 'tiny', 'tiny', TRUE);
INSERT INTO locations (id, code, name, country_name, country_code, available) VALUES
    (1, 'us-west', 'US West', 'United States', 'US', TRUE);
INSERT INTO servers (uuid, account_id, name, hostname, status, plan_id, os_id, location, backups_enabled,
    created_at_ms, updated_at_ms, provisioned_at_ms, deleted_at_ms, gone_at_ms) VALUES
    ('s-1', 1, 'runs', 'runs', 'active', 4, 1, 'us-west', FALSE, {OLD_MS}, {OLD_MS}, {OLD_MS}, NULL, NULL),
    ('s-2', 2, 'rests', 'rests', 'stopped', 4, 1, 'us-west', FALSE, {OLD_MS}, {OLD_MS}, {OLD_MS}, NULL, NULL),
    ('s-3', 1, 'never-worked', 'x', 'error', 4, 1, 'us-west', FALSE, {OLD_MS}, {OLD_MS}, NULL, NULL, NULL),
    ('s-4', 1, 'deleted', 'x', 'deleting', 4, 1, 'us-west', FALSE, {OLD_MS}, {OLD_MS}, {OLD_MS}, {DELETED_MS}, 1),
    ('s-5', 1, 'half-made', 'x', 'deleting', 4, 1, 'us-west', FALSE, {OLD_MS}, {OLD_MS}, NULL, {DELETED_MS}, 1);
INSERT INTO traffic (server_id, month, received_bytes, sent_bytes) VALUES
    (1, '2025-05', 1000000, 2000000), (1, '2025-06', 1000000, 2000000), (4, '2025-05', 1000000, 2000000)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database at schema 0001, with servers in it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.sqlite'}"
        asyncio.run(schema.run(url, _be_old))
        yield url
        return
    server: str = request.getfixturevalue("postgres")
    name = f"old_{zlib.crc32(request.node.nodeid.encode()):x}"
    asyncio.run(_administer(server, f'CREATE DATABASE "{name}"'))
    asyncio.run(schema.run(server.format(name), _be_old))
    yield server.format(name)
    asyncio.run(_administer(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.format("postgres"))
    await connection.execute(statement)
    await connection.close()


def _be_old(connection: Connection) -> None:
    from alembic import command

    command.upgrade(schema.alembic_config(connection), "0001")
    for statement in _BEFORE_MONEY.split(";"):
        connection.execute(text(statement))


async def _upgraded(url: str) -> Cloud:
    """vpsd on the old database, as the next start finds it."""
    assert await schema.prepare(url) == "0001"
    settings = Settings(hypervisor="simulator", rate_limit=0, address_rate_limit=0, login_failures=0)
    cloud = Cloud(await db.connect(url), settings)
    cloud.world = World(
        cloud.database,
        cloud.hypervisor,
        SimulatedImages(),
        make_vault(settings, "0badcafe"),
        cloud.clock,
        settings,
        "0badcafe",
    )
    cloud.http = httpx.AsyncClient(transport=httpx.ASGITransport(cloud.app()), base_url="http://vpsd.test")
    cloud.tokens = {"default": OLD_TOKEN}
    cloud.clock.advance(time.time() - cloud.clock.now_ms() / 1000)  # a migration goes by the machine's time
    return cloud


async def test_an_old_token_still_opens_its_account_and_may_do_everything(old_url: str) -> None:
    cloud = await _upgraded(old_url)
    me = (await cloud.get("/api/v1/account/me/", who="default")).json()
    assert (me["account"]["company_name"], me["token"]["permissions"]) == ("default", ["*:*"])
    listed = (await cloud.get("/api/v1/servers/", who="default")).json()["results"]
    assert [server["name"] for server in listed] == ["runs", "never-worked"]
    assert {(tuple(server["tags"]), server["protected"], server["delete_at"]) for server in listed} == {
        ((), False, None)
    }
    cloud.tokens["revoked"] = "vps_revoked"
    assert (await cloud.get("/api/v1/servers/", who="revoked")).status_code == 401
    await cloud.close()


async def test_an_upgrade_charges_nobody_and_suspends_nobody(old_url: str) -> None:
    cloud = await _upgraded(old_url)
    before = {server["id"]: server["status"] for server in await rows(cloud.database, "servers")}
    accounts = await rows(cloud.database, "accounts")
    limits = ("credit_limit_micros", "max_servers", "max_vcpus", "max_memory_mb", "max_storage_gb", "exhausted_at_ms")
    assert all(account[name] is None for account in accounts for name in limits)
    rentals = sorted(await rows(cloud.database, "rentals"), key=lambda rental: rental["server_id"])
    assert [
        (rental["server_id"], rental["account_id"], rental["price_monthly_micros"], rental["to_ms"])
        for rental in rentals
    ] == [(1, 1, 0, None), (2, 2, 0, None), (3, 1, 0, None)]  # what is deleted is nobody's any more
    assert [rental["confirmed_at_ms"] is None for rental in rentals] == [False, False, True]
    for _ in range(3):
        cloud.clock.advance(100 * 3600)  # longer than any grace
        await cloud.biller().bill()
    assert {server["id"]: server["status"] for server in await rows(cloud.database, "servers")} == before
    assert sum(row["amount_micros"] for row in await rows(cloud.database, "ledger")) == 0
    assert await rows(cloud.database, "operations") == []
    assert await _differences(cloud) == []
    await cloud.close()


async def _differences(cloud: Cloud) -> list[tuple[str, int, list[str]]]:
    """What `vpsd billing verify` would find."""
    async with cloud.database.snapshot() as tx:
        found = await verify(tx)
    assert [verdict.account for verdict in found] == ["default", "guest"]
    return [(v.account, v.difference_micros, v.problems) for v in found if v.difference_micros or v.problems]


async def test_transfer_of_the_time_before_prices_is_not_missed_by_the_books(old_url: str) -> None:
    def move_a_lot(connection: Connection) -> None:
        connection.execute(text("UPDATE traffic SET sent_bytes = 1000000000000000 WHERE month = '2025-05'"))

    await schema.run(old_url, move_a_lot)
    cloud = await _upgraded(old_url)
    await cloud.biller().bill()
    assert not [charge for charge in await rows(cloud.database, "charges") if charge["amount_micros"]]
    assert await _differences(cloud) == []
    await cloud.close()


async def test_an_upgraded_account_goes_on_making_and_deleting_servers(old_url: str) -> None:
    cloud = await _upgraded(old_url)
    made = await cloud.create("new", "default")
    assert made == 6
    await cloud.work()
    for server_id in (1, made):
        answer = await cloud.ask("DELETE", f"/api/v1/servers/{server_id}/", who="default")
        assert answer.status_code == 204
    start = await cloud.post("/api/v1/servers/3/start/", who="default")
    assert start.status_code == 200
    await cloud.settle()
    assert await cloud.status(3) == "active"
    cloud.clock.advance(7200)
    await cloud.biller().bill()
    assert await _differences(cloud) == []
    await cloud.close()


def test_rows_of_what_happened_can_neither_be_changed_nor_deleted_after_an_upgrade(old_url: str) -> None:
    asyncio.run(schema.prepare(old_url))

    def fill(connection: Connection) -> None:
        connection.execute(
            text(
                "INSERT INTO ledger (uuid, account_id, kind, amount_micros, description, created_at_ms) "
                "VALUES ('l-1', 1, 'credit', 5, 'x', 1)"
            )
        )
        connection.execute(text("INSERT INTO events (account_id, at_ms, actor, action) VALUES (1, 1, 'vpsd', 'x')"))
        connection.execute(
            text(
                "INSERT INTO charges (ledger_id, server_id, plan_id, kind, from_ms, to_ms, quantity, rate_micros, "
                "amount_micros) VALUES (1, 1, 4, 'server', 1, 2, 1, 1, 1)"
            )
        )

    asyncio.run(schema.run(old_url, fill))
    for table in ("ledger", "events", "charges"):
        for statement in (f"UPDATE {table} SET id = id + 1", f"DELETE FROM {table}"):
            with pytest.raises(Misconfigured, match=f"{table} is append-only"):
                asyncio.run(schema.run(old_url, partial(_execute, statement)))


def _execute(statement: str, connection: Connection) -> None:
    connection.execute(text(statement))
