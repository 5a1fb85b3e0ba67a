"""Several hosts are locked by their ids: so an evacuation and a renewal of leases never wait for each other."""

import asyncio

import asyncpg
import pytest

from tests.billing.books import have_connections
from tests.cloud import Cloud
from tests.servers.test_locks import until_waiting
from vpsd.backups.evacuation import evacuate
from vpsd.hosts import leases
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostState


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("is_leaving_lower", [True, False])
async def test_an_evacuation_and_a_renewal_of_leases_do_not_wait_for_each_other(
    cloud: Cloud, database_url: str, is_leaving_lower: bool
) -> None:
    lower = cloud.runtime.host_id
    async with cloud.writing() as ctx:
        higher = (await hosts.add_host(ctx, "second", "simulator", uri="simulator://second")).id
        leaving, to = (lower, higher) if is_leaving_lower else (higher, lower)
        await hosts.change_host(ctx, to, state=HostState.DISABLED)
    server = await cloud.create()
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, leaving, state=HostState.FENCED)
        await leases.end_all(ctx)
        await leases.keep(ctx, "keeper")
        await hosts.change_host(ctx, to, state=HostState.ENABLED)
        host = await hosts.row(ctx, leaving)
    # Without an order rows are found where they lie: what was changed last, behind the others.
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, to if is_leaving_lower else lower, error=None)
    await have_connections(cloud)

    async def renew() -> set[int]:
        async with cloud.writing() as ctx:
            return {kept.id for kept in await leases.keep(ctx, "keeper")}

    async def move() -> str | None:
        async with cloud.writing() as ctx:
            return (await evacuate(ctx, server, host)).to

    other, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with other.transaction():  # both have to wait, and the renewal has the first place
        await other.execute("SELECT id FROM hosts WHERE id = $1 FOR NO KEY UPDATE", leaving)
        renewed = asyncio.create_task(renew())
        await until_waiting(watcher, 1)
        moved = asyncio.create_task(move())
        await until_waiting(watcher, 2)
    assert await renewed == {lower, higher}
    assert await moved == ("second" if is_leaving_lower else "simulator")
    await other.close()
    await watcher.close()
