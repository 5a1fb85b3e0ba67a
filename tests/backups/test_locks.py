"""Whose rows can be held: permission is part of the query that locks."""

import asyncio

import pytest
from msgspec import UNSET

from tests.cloud import Cloud
from vpsd.backups import commands, queries
from vpsd.backups.queries import BACKUPS
from vpsd.core.faults import Faults
from vpsd.errors import NotFound


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_stranger_who_tries_holds_nobodys_backup(cloud: Cloud) -> None:
    backup_id = (await cloud.have_copy(await cloud.have_server()))["id"]
    async with cloud.writing("charlie") as stranger:
        faults = Faults()
        assert await queries.choose_source(stranger, UNSET, backup_id, UNSET, faults) is None
        assert faults.has("backup_id")
        for attempt in (commands.restore, commands.delete):
            with pytest.raises(NotFound):
                await attempt(stranger, BACKUPS, backup_id)
        async with asyncio.timeout(10), cloud.writing("alice") as owner:
            assert (await queries.lock(owner, BACKUPS, backup_id)).id == backup_id


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_backup_is_not_held_under_the_name_of_a_snapshot(cloud: Cloud) -> None:
    backup_id = (await cloud.have_copy(await cloud.have_server()))["id"]
    async with cloud.writing("alice") as mistaken:
        assert await queries.choose_source(mistaken, UNSET, UNSET, backup_id, Faults()) is None
        async with asyncio.timeout(10), cloud.writing("alice") as right:
            assert (await queries.lock(right, BACKUPS, backup_id)).id == backup_id
