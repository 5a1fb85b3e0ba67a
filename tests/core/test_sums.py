"""What is known of an account without counting is what counting comes to."""

import asyncio

from sqlalchemy import func, select, text

from tests.cloud import Cloud
from vpsd.accounts.models import accounts
from vpsd.audit import Audit
from vpsd.billing.models import account_sums
from vpsd.billing.verify import verify
from vpsd.core.db import Statement
from vpsd.core.sums import SUMS, Sums
from vpsd.servers import queries as servers
from vpsd.servers.models import server_counts

_FIRST = "id = (SELECT min(id) FROM account_sums)"


async def _rows(cloud: Cloud, sums: Sums) -> int:
    async with cloud.runtime.read() as ctx:
        return await ctx.tx.first(Statement(select(func.count()).select_from(sums.table), into=int)) or 0


async def _run(cloud: Cloud, statement: str) -> None:
    async with cloud.runtime.write() as ctx:
        await ctx.tx.run(Statement(text(statement)))


async def _count(cloud: Cloud, filters: str = "", who: str = "alice") -> int:
    answer = await cloud.get(f"/api/v1/servers/?page_size=1{filters}", who=who)
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["count"]
    return count


async def test_lists_know_how_many_there_are_by_status_and_location(cloud: Cloud) -> None:
    first, second = await cloud.have_server("first"), await cloud.have_server("second", location="us-east")
    await cloud.have_server("theirs", who="charlie")
    assert (await cloud.post(f"/api/v1/servers/{first}/stop/")).status_code == 200
    assert await _count(cloud, "&status=stopping") == 1
    await cloud.work()

    assert await _count(cloud) == 2
    assert [await _count(cloud, f"&status={status}") for status in ("active", "stopped", "stopping")] == [1, 1, 0]
    assert await _count(cloud, "&status=active,stopped") == 2
    assert [await _count(cloud, f"&location={code}") for code in ("us-west", "us-east")] == [1, 1]
    assert await _count(cloud, "&location=us-east&status=active") == 1
    assert await _count(cloud, "&location=us-east&status=stopped") == 0
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{second}/")).status_code == 204
    assert await _count(cloud, "&location=us-east") == 0
    assert await _count(cloud, who="charlie") == 1


async def test_many_rows_become_few_and_say_the_same(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for _ in range(40):
        await _run(cloud, f"UPDATE servers SET status = 'stopped' WHERE id = {server}")
        await _run(cloud, f"UPDATE servers SET status = 'active' WHERE id = {server}")
    await cloud.have_balance(7_000_000)
    before = (await cloud.get("/api/v1/account/balance/")).json()
    assert await _rows(cloud, server_counts) > 160
    keeper = cloud.sum_keeper()
    await keeper.compact()

    assert await _rows(cloud, server_counts) == 1
    assert await _count(cloud, "&status=active") == 1
    assert (await cloud.get("/api/v1/account/balance/")).json() == before
    rows = [await _rows(cloud, sums) for sums in SUMS]
    await keeper.compact()
    assert [await _rows(cloud, sums) for sums in SUMS] == rows


async def test_whatever_happens_at_once_the_sums_are_right_and_nobody_is_in_anothers_way(cloud: Cloud) -> None:
    """On PostgreSQL a lock that is taken in another order, or an addition that is lost, would show here."""
    await cloud.have_balance(10**12)
    made = [await cloud.have_server(f"s{number}") for number in range(6)]
    await cloud.biller().bill()
    cloud.clock.advance(3600)
    keepers = [cloud.sum_keeper(), cloud.sum_keeper()]

    async def move(server: int, number: int) -> None:
        for status in ("stopped", "active") * 5 if number % 2 else ("error", "stopped", "active") * 3:
            await _run(cloud, f"UPDATE servers SET status = '{status}' WHERE id = {server}")

    async def compact(sums: Sums, account_id: int) -> None:
        async with cloud.runtime.write() as ctx:
            await sums.compact(ctx, account_id)

    async with cloud.runtime.read() as ctx:
        known = await ctx.tx.all(Statement(select(accounts.c.id), into=int))
    await asyncio.gather(
        *(move(server, number) for number, server in enumerate(made)),
        *(cloud.create(f"new{number}") for number in range(4)),
        *(compact(sums, account) for account in known for sums in SUMS for _ in range(4)),
        *(keeper.compact() for keeper in keepers),
        cloud.biller().bill(),
        cloud.ask("DELETE", f"/api/v1/servers/{made[-1]}/"),
    )
    assert await cloud.wrong_sums() == []
    assert await _count(cloud) == 9


async def test_wrong_sums_are_found_and_set_right(cloud: Cloud) -> None:
    await cloud.have_server()
    await _run(cloud, "UPDATE server_counts SET servers = 5 WHERE servers = 1 AND status = 'active'")
    await _run(cloud, f"UPDATE account_sums SET balance_micros = balance_micros + 3 WHERE {_FIRST}")
    found = {one.text.partition(": ")[2] for one in await Audit(cloud.runtime).run() if one.kind == "account"}
    assert found == {"active, us-west, servers -4", "balance_micros -3"}
    fixed = await Audit(cloud.runtime, fix=True).run()
    assert [one.fixed for one in fixed] == ["counted anew"] * 2
    assert await Audit(cloud.runtime).run() == []
    assert await _count(cloud) == 1


async def test_the_books_are_compared_with_what_the_balance_is_read_from(cloud: Cloud) -> None:
    await cloud.have_balance(5_000_000)
    await _run(cloud, f"UPDATE account_sums SET balance_micros = balance_micros - 1 WHERE {_FIRST}")
    async with cloud.runtime.snapshot() as ctx:
        checks = await verify(ctx, servers.lives)
    assert [problem for check in checks for problem in check.problems] == [
        "its sums are wrong (vpsd check --fix): balance_micros +1 is missing"
    ]
    await Audit(cloud.runtime, fix=True).run()


async def test_every_sum_is_kept_by_the_database_itself(cloud: Cloud) -> None:
    server = await cloud.have_server()
    for statement in (
        f"UPDATE servers SET location = 'us-east' WHERE id = {server}",
        f"UPDATE servers SET deleted_at_ms = 1 WHERE id = {server}",
        f"UPDATE servers SET deleted_at_ms = NULL WHERE id = {server}",
        f"UPDATE rentals SET price_monthly_micros = 5, plan_id = 2 WHERE server_id = {server}",
        f"UPDATE rentals SET to_ms = 1 WHERE server_id = {server}",
        f"UPDATE rentals SET to_ms = NULL WHERE server_id = {server}",
        f"DELETE FROM rentals WHERE server_id = {server}",
    ):
        await _run(cloud, statement)
        assert await cloud.wrong_sums() == [], statement
    assert account_sums in SUMS
