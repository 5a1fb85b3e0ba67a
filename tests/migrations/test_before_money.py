"""A database of the time before vpsd knew money: what to keep when it is migrated."""

import asyncio
import time
from functools import partial

import pytest
from sqlalchemy import Connection, text

from tests.api.tables import rows
from tests.cloud import Cloud
from tests.migrations.old import differences, fill, opened
from vpsd.errors import Misconfigured
from vpsd.migrations import schema
from vpsd.worker.host_keeper import place_servers


@pytest.fixture
def old_url(empty_url: str) -> str:
    """A database at schema 0001, with servers in it."""
    asyncio.run(schema.run(empty_url, _be_old))
    return empty_url


def _be_old(connection: Connection) -> None:
    from alembic import command

    command.upgrade(schema.alembic_config(connection), "0001")
    fill(connection)


async def _upgraded(url: str) -> Cloud:
    """vpsd on the old database, as the next start finds it."""
    assert await schema.prepare(url) == "0001"
    return await opened(url, round(time.time() * 1000))  # a migration goes by the machine's time


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
    assert [row["uuid"] for row in await rows(cloud.database, "operations")] == ["o-1"]
    assert await differences(cloud) == []
    await cloud.close()


async def test_transfer_of_the_time_before_prices_is_not_missed_by_the_books(old_url: str) -> None:
    def move_a_lot(connection: Connection) -> None:
        connection.execute(text("UPDATE traffic SET sent_bytes = 1000000000000000 WHERE month = '2025-05'"))

    await schema.run(old_url, move_a_lot)
    cloud = await _upgraded(old_url)
    await cloud.biller().bill()
    assert not [charge for charge in await rows(cloud.database, "charges") if charge["amount_micros"]]
    assert await differences(cloud) == []
    await cloud.close()


async def test_an_upgraded_account_goes_on_making_and_deleting_servers(old_url: str) -> None:
    cloud = await _upgraded(old_url)
    made = await cloud.create("new", "default")
    assert made == 6
    await place_servers(cloud.runtime)  # as the first worker does
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
    assert await differences(cloud) == []
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
