"""What is cleaned up behind an operation that failed: by whoever can, as soon as it can be, and the reason stays."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from tests.cloud import Cloud
from tests.killed import Killed
from tests.worker.told import assert_arrived, told
from vpsd.audit import Audit
from vpsd.core.db import Database, Statement, Tx
from vpsd.errors import DatabaseUnavailable, Unavailable, Unusable
from vpsd.flows.job import Job, LeaseClock
from vpsd.hosts import service as hosts
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import Progress
from vpsd.lifecycle import Command
from vpsd.operations import service as operations
from vpsd.operations.models import operations as operations_table
from vpsd.operations.service import CLEAN_UP_SECONDS, LEASE_SECONDS

BEFORE = "The server has the disk that it had before."
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class FailsOnce:
    """A database that does not take one change."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.fails_next = False
        self.failed = asyncio.Event()

    def write(self, wait_seconds: float, **options: bool) -> AbstractAsyncContextManager[Tx]:
        if self.fails_next:
            self.fails_next = False
            self.failed.set()
            raise DatabaseUnavailable("unavailable", "it restarts")
        return self._database.write(wait_seconds, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def fail_once(cloud: Cloud) -> FailsOnce:
    """Have vpsd on a database that does not take one change, when it is told to."""
    database = FailsOnce(cloud.database)
    cloud.runtime = msgspec.structs.replace(cloud.runtime, database=database)
    return database


async def last(cloud: Cloud, server: int) -> dict[str, Any]:
    return (await cloud.operations(server))[-1]


async def rebuild_without_a_host(cloud: Cloud) -> int:
    """A server whose rebuild is given up: its disk is gone, the row does not say so, and the host is away."""
    server = await told(cloud, Command.REBUILD)

    def go_away(call: str) -> None:
        if call == "remove":
            cloud.hypervisor.broken = True
            raise Unavailable("libvirtd does not answer.")

    cloud.hypervisor.after_call = go_away
    await cloud.work()
    cloud.hypervisor.after_call = None
    cloud.clock.advance(2 * 3600)
    await cloud.work()
    return server


async def test_what_the_host_keeps_from_being_cleaned_up_is_cleaned_up_when_it_is_back(cloud: Cloud) -> None:
    server = await rebuild_without_a_host(cloud)
    for _ in range(3):
        shown = await last(cloud, server)
        assert (await cloud.status(server), shown["status"], shown["step"]) == ("rebuilding", "queued", "clean_up")
        assert shown["error"] == shown["detail"] == f"Given up after 1 attempts: {Unavailable.public}"
        cloud.clock.advance(60)
        assert await cloud.work() == 1
    cloud.hypervisor.broken = False
    cloud.clock.advance(60)
    await cloud.work()
    assert await cloud.status(server) == "error"
    assert (await last(cloud, server))["error"].endswith("Its old disk is gone; a start makes the new one.")
    assert ((await cloud.causes(server))[-1] or "").startswith("Given up after 1 attempts: libvirtd does not")
    await start(cloud, server)
    await assert_arrived(cloud, server, Command.REBUILD, "started")


async def start(cloud: Cloud, server: int) -> None:
    assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200
    await cloud.settle()


async def test_where_nothing_can_be_cleaned_up_it_ends_and_a_start_finds_what_a_rebuild_has_removed(
    cloud: Cloud,
) -> None:
    server = await rebuild_without_a_host(cloud)
    began = cloud.clock.now_ms()
    while await cloud.status(server) == "rebuilding":
        assert cloud.clock.now_ms() - began <= CLEAN_UP_SECONDS * 1000
        cloud.clock.advance(10)
        await cloud.work()
    assert await cloud.status(server) == "error"
    assert (await last(cloud, server))["error"] == f"Given up after 1 attempts: {Unavailable.public}"
    cloud.hypervisor.broken = False
    await start(cloud, server)
    await assert_arrived(cloud, server, Command.REBUILD, "started")


async def test_a_disk_that_no_rebuild_has_removed_is_not_made_anew(cloud: Cloud) -> None:
    server = await rebuild_without_a_host(cloud)
    cloud.hypervisor.broken = False
    cloud.clock.advance(60)
    await cloud.work()
    await start(cloud, server)
    for action in ("stop", "start"):
        if action == "start":
            await cloud.hypervisor.held_by(Owner((await cloud.row(server)).uuid, "somebody")).delete_disk(
                await cloud.disk(server)
            )
        await cloud.post(f"/api/v1/servers/{server}/{action}/")
        await cloud.work()
    assert await cloud.status(server) == "error"
    assert (await last(cloud, server))["error"] == "The server's disk is gone from the host."


async def test_the_reason_stays_whatever_is_waited_for_while_it_is_cleaned_up(cloud: Cloud) -> None:
    server = await told(cloud, Command.RESTORE)

    def refuse_and_die(call: str) -> None:
        if call == "write_disk":
            raise Unusable("/srv/pool: no space", "The pool is full.")
        if call == "delete_disk":
            raise Killed

    cloud.hypervisor.before_call = refuse_and_die
    with pytest.raises(Killed):
        await cloud.work("first")
    cloud.hypervisor.before_call, cloud.hypervisor.broken = None, True
    cloud.clock.advance(LEASE_SECONDS + 1)
    assert await cloud.work() == 1
    assert (await last(cloud, server))["detail"] == "The pool is full."
    cloud.hypervisor.broken = False
    cloud.clock.advance(60)
    assert await cloud.work() == 1
    assert (await last(cloud, server))["error"] == f"The pool is full. {BEFORE}"
    assert (await cloud.causes(server))[-1] == f"/srv/pool: no space. {BEFORE}"


async def test_a_database_that_is_away_keeps_nothing_from_being_cleaned_up(cloud: Cloud) -> None:
    server = await told(cloud, Command.REBUILD)
    database = fail_once(cloud)

    def give_up_and_fail(call: str) -> None:
        if call == "remove":
            cloud.hypervisor.after_call = fail_behind_the_look
            raise Unusable.plain("It was removed in half.")

    def fail_behind_the_look(call: str) -> None:
        database.fails_next = call == "volumes"

    cloud.hypervisor.after_call = give_up_and_fail
    with pytest.raises(DatabaseUnavailable):
        await cloud.work("first")
    cloud.hypervisor.after_call = None
    assert database.failed.is_set()
    assert (await last(cloud, server))["step"] == "clean_up"
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.work()
    assert await cloud.status(server) == "error"
    assert (await cloud.row(server)).provisioned_at_ms is None


async def test_who_takes_up_a_cleaning_up_marks_the_guest_as_its_own(cloud: Cloud) -> None:
    server = await told(cloud, Command.RESTORE)
    host = cloud.hypervisor.held_by(Owner((await cloud.row(server)).uuid, "late"))

    async def lose_the_mark(call: str) -> None:
        if call == "is_up":
            cloud.hypervisor.before_call = None
            await host.take(cloud.guest(server))
            raise Unusable.plain("It does not boot.")

    cloud.hypervisor.before_call = lose_the_mark
    assert await cloud.work("first") == 1  # cannot power the guest off, so its disk stays
    assert (await last(cloud, server))["step"] == "clean_up"
    assert await cloud.status(server) == "restoring"
    cloud.clock.advance(LEASE_SECONDS + 1)
    await cloud.work()
    assert (await last(cloud, server))["error"] == f"It does not boot. {BEFORE}"
    assert (await cloud.hypervisor.volumes()).disks == {await cloud.disk(server)}


@SQLITE
async def test_progress_that_cannot_be_written_ends_no_slow_work(cloud: Cloud) -> None:
    server = await cloud.create()
    database = fail_once(cloud)
    async with cloud.writing() as ctx:
        operation = await operations.claim(ctx, "first")
        host = await hosts.row(ctx, cloud.runtime.host_id)
    assert operation is not None
    job = Job(cloud.runtime, host, operation, await cloud.row(server), LeaseClock(lambda: 0.0, 0.0))

    async def work(progress: Progress) -> str:
        database.fails_next = True
        progress(0.5, "half of it")
        await database.failed.wait()
        return "done"

    assert await job.watched(work) == "done"


@SQLITE
async def test_progress_that_cannot_be_written_ends_no_copy_of_a_disk(cloud: Cloud) -> None:
    server = await told(cloud, Command.BACKUP)
    database = fail_once(cloud)
    cloud.hypervisor.export_seconds = 5

    def look_later(call: str) -> None:
        if call == "export_progress" and not database.failed.is_set():
            cloud.clock.advance(1)
            database.fails_next = True

    cloud.hypervisor.before_call = look_later
    await cloud.work()
    assert database.failed.is_set()
    shown = await last(cloud, server)
    assert (shown["status"], shown["attempts"]) == ("succeeded", 1)


def as_an_older_vpsd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name disks as older versions did: the first like the guest, and one from a restore after the operation's id."""
    older = property(lambda job: job.operation.id if job.operation.command == Command.RESTORE else 0)
    monkeypatch.setattr(Job, "new_generation", older)


async def restored_by_an_older_vpsd(cloud: Cloud) -> int:
    """A restore that an older vpsd has begun: the disk is written, and not taken yet."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_an_older_vpsd(monkeypatch)
        server = await cloud.have_server()
        cloud.hypervisor.writes(await cloud.disk(server), 50, b"before")
        backup = await cloud.have_copy(server)
        cloud.hypervisor.writes(await cloud.disk(server), 50, b"behind")
        assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200

        def die(call: str) -> None:
            if call == "request_shutdown":
                raise Killed

        cloud.hypervisor.before_call = die
        with pytest.raises(Killed):
            await cloud.work("older")
    cloud.hypervisor.before_call = None
    name, restore = cloud.guest(server), await last(cloud, server)
    assert (await cloud.hypervisor.volumes()).disks == {name, f"{name}.{restore['id']}"}
    cloud.clock.advance(LEASE_SECONDS + 1)
    return server


async def test_a_restore_that_an_older_vpsd_has_begun_takes_the_disk_that_is_written(cloud: Cloud) -> None:
    server = await restored_by_an_older_vpsd(cloud)
    await cloud.settle()
    assert cloud.hypervisor.content(await cloud.disk(server), 50, 6) == b"before"
    await assert_arrived(cloud, server, Command.RESTORE, "after the upgrade")


async def test_what_an_older_vpsd_has_written_in_part_is_not_taken(cloud: Cloud) -> None:
    server = await restored_by_an_older_vpsd(cloud)
    restore = await last(cloud, server)
    cloud.hypervisor.writes(f"{cloud.guest(server)}.{restore['id']}", 50, b"partly")
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(update(operations_table), ("step",)), step="write_restored_disk")
    await cloud.settle()
    assert cloud.hypervisor.content(await cloud.disk(server), 50, 6) == b"before"
    await assert_arrived(cloud, server, Command.RESTORE, "after the upgrade")


async def test_a_restore_that_an_older_vpsd_has_begun_leaves_nothing_when_it_fails(cloud: Cloud) -> None:
    server = await restored_by_an_older_vpsd(cloud)
    cloud.clock.advance(2 * 86_400)
    await cloud.work()
    assert (await last(cloud, server))["status"] == "failed"
    assert (await cloud.hypervisor.volumes()).disks == {await cloud.disk(server)}
    assert cloud.hypervisor.content(await cloud.disk(server), 50, 6) == b"behind"
    await cloud.settle()
    assert await Audit(cloud.runtime).run() == []
