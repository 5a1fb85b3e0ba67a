"""This machine's own host is a row like any other, and never taken for another machine's."""

import pytest

from tests.cloud import Cloud
from vpsd.errors import Misconfigured
from vpsd.hosts import service as hosts


async def names(cloud: Cloud) -> list[str]:
    async with cloud.reading() as ctx:
        return [host.name for host in await hosts.list_hosts(ctx)]


async def test_it_is_added_once(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await hosts.ensure_local(ctx, "renamed", "simulator", "this-one")
    assert await names(cloud) == ["simulator"]


async def test_one_that_the_operator_has_removed_stays_away(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await hosts.change_host(ctx, cloud.runtime.host_id, removed_at_ms=ctx.now_ms)
        await hosts.ensure_local(ctx, "simulator", "simulator", "this-one")
    assert await names(cloud) == []


async def test_another_machine_is_not_taken_for_it(cloud: Cloud) -> None:
    with pytest.raises(Misconfigured, match="vpsd host set simulator --uri"):
        async with cloud.writing() as ctx:
            await hosts.ensure_local(ctx, "other", "simulator", "another-one")
    async with cloud.writing() as ctx:  # nobody else can have the database: the folder was moved, or put back
        await hosts.ensure_local(ctx, "other", "simulator", "another-one", is_sole_user=True)
        await hosts.ensure_local(ctx, "other", "simulator", "another-one")


async def test_a_worker_beside_other_hosts_adds_none(cloud: Cloud) -> None:
    async with cloud.writing() as ctx:
        await hosts.add_host(ctx, "second", "simulator", uri="simulator://second")
        await hosts.change_host(ctx, cloud.runtime.host_id, uri="simulator://first")
        await hosts.ensure_local(ctx, "here", "simulator", "this-one", only_if_first=True)
        assert await hosts.local(ctx) is None
        await hosts.ensure_local(ctx, "second", "simulator", "this-one")
    assert await names(cloud) == ["simulator", "second", "second-local"]
