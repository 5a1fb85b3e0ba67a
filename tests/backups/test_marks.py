"""A target is known by its mark: what is not there is not empty, and what has moved is the same."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, insert, update

from tests.cloud import Cloud, WatchedDirectory
from vpsd.audit import Audit
from vpsd.backups import marks
from vpsd.backups.marks import BackupTarget
from vpsd.backups.models import backup_targets, backups
from vpsd.backups.repository import Repository
from vpsd.backups.s3 import S3
from vpsd.backups.targets import MARK, TargetNotThere
from vpsd.core.db import Statement
from vpsd.errors import Invalid, NotFound, Unavailable, Unusable

DAY = 86_400


def _use(cloud: Cloud, folder: Path) -> None:
    """Have vpsd configured for another folder."""
    cloud.target = WatchedDirectory(folder)
    cloud.runtime = msgspec.structs.replace(cloud.runtime, repository=Repository(cloud.target, cloud.instance, None))
    cloud.http = cloud._http()


def _unmount(cloud: Cloud) -> Path:
    """Have an empty folder in the target's place; where the target is then."""
    away = cloud.target.folder.with_name("away")
    cloud.target.folder.rename(away)
    cloud.target.folder.mkdir()
    return away


def _mount(cloud: Cloud, away: Path) -> None:
    shutil.rmtree(cloud.target.folder)
    away.rename(cloud.target.folder)


async def _targets(cloud: Cloud) -> list[BackupTarget]:
    async with cloud.reading() as ctx:
        return await marks.list_targets(ctx)


async def _identify(cloud: Cloud) -> str | None:
    return await marks.identify(cloud.runtime, cloud.runtime.repository)


async def _try_backup(cloud: Cloud, server: int) -> Any:
    made = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    await cloud.work()
    return (await cloud.get(f"/api/v1/backups/{made['id']}/")).json()


async def _restore(cloud: Cloud, backup: Any, server: int) -> Any:
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    await cloud.work()
    return (await cloud.get(f"/api/v1/servers/{server}/")).json()


async def _health(cloud: Cloud) -> tuple[int, str, str]:
    answer = await cloud.get("/health", who=None)
    return answer.status_code, answer.json()["status"], answer.json()["backups"]["status"]


async def _forget_marks(cloud: Cloud) -> None:
    """Have the database and the target as a vpsd left them that knew targets by their paths."""
    async with cloud.writing() as ctx:
        await ctx.tx.run(Statement(delete(backup_targets)))
        await ctx.tx.run(Statement(update(backups).values(target=cloud.runtime.repository.location)))
    (cloud.target.folder / MARK).unlink()


async def test_a_target_is_marked_when_it_is_first_used_and_not_before(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.backup_scheduler().schedule()
    assert await _identify(cloud) is None
    assert await _health(cloud) == (200, "ok", "unused")
    assert not cloud.target.folder.exists()
    await cloud.have_copy(server)
    (target,) = await _targets(cloud)
    assert await cloud.runtime.repository.read_mark() == target.mark == await _identify(cloud)
    assert (target.name, target.locations) == ("backups", [f"directory {cloud.target.folder}"])
    assert await _health(cloud) == (200, "ok", "ok")


async def test_a_folder_that_is_not_mounted_is_not_an_empty_target(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    away = _unmount(cloud)
    failed = await _try_backup(cloud, server)
    assert failed["status"] == "failed"
    assert "not there" in failed["error"]
    assert str(cloud.target.folder) not in failed["error"]
    assert await _health(cloud) == (200, "degraded", "missing")
    assert [(one.kind, "is it mounted?" in one.text) for one in await Audit(cloud.runtime).run()] == [("target", True)]
    assert "not there" in (await _restore(cloud, backup, server))["error"]
    assert list(cloud.target.folder.iterdir()) == []
    _mount(cloud, away)
    await cloud.backup_scheduler().schedule()
    assert await _health(cloud) == (200, "ok", "ok")
    assert await Audit(cloud.runtime).run() == []
    assert (await _restore(cloud, backup, server))["status"] == "active"
    assert len(await _targets(cloud)) == 1


async def test_a_customer_does_not_read_where_backups_are_kept(cloud: Cloud) -> None:
    server = await cloud.have_server()

    def refuse(_: str) -> None:
        raise Unusable(f"{cloud.target.name}: no access to {cloud.target.folder}/vpsd-1/servers: Permission denied")

    cloud.target.before_call = refuse
    error = (await _try_backup(cloud, server))["error"]
    assert error == Unusable.public
    assert str(cloud.target.folder) in ((await cloud.causes(server))[-1] or "")


async def test_a_folder_that_is_gone_altogether_is_not_made_anew(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    shutil.rmtree(cloud.target.folder)
    assert (await _try_backup(cloud, server))["status"] == "failed"
    assert not cloud.target.folder.exists()


async def test_nothing_is_swept_while_the_target_is_away(cloud: Cloud) -> None:
    server = await cloud.have_server()
    deleted, kept = await cloud.have_copy(server), await cloud.have_copy(server)
    before = cloud.target.objects()
    assert (await cloud.ask("DELETE", f"/api/v1/backups/{deleted['id']}/")).status_code == 204
    away = _unmount(cloud)
    await cloud.backup_scheduler().schedule()
    assert list(cloud.target.folder.iterdir()) == []
    _mount(cloud, away)
    assert cloud.target.objects() == before
    await cloud.backup_scheduler().schedule()
    assert not any(deleted["uuid"] in path and path.endswith("manifest") for path in cloud.target.objects())
    assert (await _restore(cloud, kept, server))["status"] == "active"


async def test_a_target_that_goes_away_while_it_is_swept_is_swept_again(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    assert (await cloud.ask("DELETE", f"/api/v1/backups/{backup['id']}/")).status_code == 204
    away: list[Path] = []

    def unmount(call: str) -> None:
        if call == "keys":
            away.append(_unmount(cloud))

    cloud.target.before_call = unmount
    await cloud.backup_scheduler().collect_garbage()
    cloud.target.before_call = None
    _mount(cloud, away[0])
    assert cloud.target.objects()
    await cloud.backup_scheduler().collect_garbage()
    assert cloud.target.objects() == []


async def test_old_backups_do_not_run_out_while_no_new_ones_can_be_made(cloud: Cloud) -> None:
    server = await cloud.have_server()
    assert (await cloud.ask("PATCH", f"/api/v1/servers/{server}/", json={"backups_enabled": True})).status_code == 200
    cloud.clock.advance(DAY)
    await cloud.backup_scheduler().schedule()
    await cloud.work()
    (made,) = (await cloud.get("/api/v1/backups/")).json()["results"]
    away = _unmount(cloud)
    cloud.clock.advance(40 * DAY)
    await cloud.backup_scheduler().schedule()
    assert (await cloud.get(f"/api/v1/backups/{made['id']}/")).status_code == 200
    _mount(cloud, away)
    await cloud.backup_scheduler().schedule()
    assert (await cloud.get(f"/api/v1/backups/{made['id']}/")).status_code == 404


@pytest.mark.parametrize("moment", [1, 2])  # a chunk, the manifest
async def test_a_backup_whose_target_goes_away_under_it_is_not_completed(cloud: Cloud, moment: int) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    cloud.hypervisor.writes(await cloud.disk(server), 0, b"new" * 1000)
    puts: list[str] = []
    away: list[Path] = []

    def unmount(call: str) -> None:
        puts.extend([call] if call == "put" else [])
        if len(puts) == moment and not away:
            away.append(_unmount(cloud))

    cloud.target.before_call = unmount
    failed = await _try_backup(cloud, server)
    cloud.target.before_call = None
    assert failed["status"] == "failed"
    _mount(cloud, away[0])
    assert (await _try_backup(cloud, server))["status"] == "completed"


async def test_what_goes_away_while_it_is_restored_is_not_called_damaged(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.writes(await cloud.disk(server), 0, b"new" * 1000)
    backup = await cloud.have_copy(server)
    gets: list[str] = []

    def unmount(call: str) -> None:
        gets.append(call)
        if len(gets) == 3:  # the mark, the manifest, a chunk
            _unmount(cloud)

    cloud.target.before_call = unmount
    detail = await _restore(cloud, backup, server)
    cloud.target.before_call = None
    assert "The backups' store is not there now" in detail["error"]
    assert "missing" not in detail["error"]


async def test_a_target_that_was_moved_is_the_same(cloud: Cloud, tmp_path: Path) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    there = cloud.target.folder
    there.rename(tmp_path / "moved")
    _use(cloud, tmp_path / "moved")
    assert (await _restore(cloud, backup, server))["status"] == "active"
    (target,) = await _targets(cloud)
    assert target.locations == [f"directory {tmp_path}/moved", f"directory {there}"]
    _use(cloud, there)  # where it was is no place for a new one either
    assert (await _try_backup(cloud, server))["status"] == "failed"
    assert not there.exists()


async def test_a_new_place_is_a_new_target_and_what_is_on_the_old_one_stays(cloud: Cloud, tmp_path: Path) -> None:
    server = await cloud.have_server()
    old = await cloud.have_copy(server)
    there, objects = cloud.target.folder, cloud.target.objects()
    _use(cloud, tmp_path / "new" / "backups")
    new = await _try_backup(cloud, server)
    assert (new["status"], new["incremental"]) == ("completed", False)
    assert [target.name for target in await _targets(cloud)] == ["backups", "backups-2"]
    assert "operator can help" in (await _restore(cloud, old, server))["error"]
    assert (await cloud.ask("DELETE", f"/api/v1/backups/{old['id']}/")).status_code == 204
    await cloud.backup_scheduler().schedule()
    assert await _health(cloud) == (200, "ok", "ok")
    _use(cloud, there)
    assert cloud.target.objects() == objects
    await cloud.backup_scheduler().schedule()
    assert cloud.target.objects() == []


async def test_backups_of_an_earlier_vpsd_are_known_by_their_files(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    await _forget_marks(cloud)
    await cloud.backup_scheduler().schedule()
    (target,) = await _targets(cloud)
    assert (await _restore(cloud, backup, server))["status"] == "active"
    assert (await _try_backup(cloud, server))["incremental"] is not None
    async with cloud.reading() as ctx:
        assert await marks.count_backups(ctx, target) == 2


async def test_backups_of_an_earlier_vpsd_that_are_not_there_are_not_given_up(cloud: Cloud, tmp_path: Path) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    await _forget_marks(cloud)
    away = _unmount(cloud)
    assert (await _try_backup(cloud, server))["status"] == "failed"
    assert await _targets(cloud) == []
    _use(cloud, away)  # it has moved before it had a mark
    assert (await _restore(cloud, backup, server))["status"] == "active"
    assert len(await _targets(cloud)) == 1


async def test_two_at_once_mark_a_target_once(cloud: Cloud) -> None:
    repository = cloud.runtime.repository
    found = await asyncio.gather(
        *(marks.identify(cloud.runtime, repository, first_use=True) for _ in range(4)), return_exceptions=True
    )
    got = {one for one in found if isinstance(one, str)}
    assert all(isinstance(one, str | Unavailable) for one in found)  # who finds it being written tries again
    (target,) = await _targets(cloud)
    assert got == {target.mark}


async def test_a_target_that_is_marked_while_one_looks_for_its_mark_is_not_taken_for_another(cloud: Cloud) -> None:
    class Late(Repository):
        async def read_mark(self) -> str | None:
            mark = await super().read_mark()
            await marks.identify(cloud.runtime, cloud.runtime.repository, first_use=True)
            return mark

    found = await marks.identify(cloud.runtime, Late(cloud.target, "c0ffee00", None), first_use=True)
    (target,) = await _targets(cloud)
    assert found == target.mark


async def test_another_vpsds_target_is_shared_and_has_one_mark(cloud: Cloud) -> None:
    theirs = Repository(cloud.target, "ffffffff", None)
    mark = await theirs.put_mark("11111111-1111-4111-8111-111111111111")
    server = await cloud.have_server()
    assert (await _try_backup(cloud, server))["status"] == "completed"
    assert [target.mark for target in await _targets(cloud)] == [mark]


async def test_another_target_in_its_place_is_not_taken_for_it(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    _unmount(cloud)
    await cloud.runtime.repository.put_mark("11111111-1111-4111-8111-111111111111")
    assert (await _try_backup(cloud, server))["status"] == "failed"
    with pytest.raises(TargetNotThere, match="bears the mark of another target"):
        await _identify(cloud)
    await marks.adopt(cloud.runtime, cloud.runtime.repository)  # it is marked, so it is no empty folder
    assert (await _try_backup(cloud, server))["status"] == "completed"


async def test_a_target_that_lost_its_mark_gets_it_back_when_the_operator_says_so(cloud: Cloud) -> None:
    server = await cloud.have_server()
    backup = await cloud.have_copy(server)
    mark = await _identify(cloud)
    (cloud.target.folder / MARK).unlink()
    assert (await _try_backup(cloud, server))["status"] == "failed"
    assert await marks.adopt(cloud.runtime, cloud.runtime.repository) == mark
    assert (await _restore(cloud, backup, server))["status"] == "active"


async def test_an_empty_folder_is_a_new_target_only_when_the_operator_says_so(cloud: Cloud) -> None:
    server = await cloud.have_server()
    old = await cloud.have_copy(server)
    _unmount(cloud)
    with pytest.raises(Unusable, match="--new"):
        await marks.adopt(cloud.runtime, cloud.runtime.repository)
    assert list(cloud.target.folder.iterdir()) == []
    await marks.adopt(cloud.runtime, cloud.runtime.repository, new=True)
    assert (await _try_backup(cloud, server))["status"] == "completed"
    assert len(await _targets(cloud)) == 2
    assert (await cloud.get(f"/api/v1/backups/{old['id']}/")).json()["status"] == "completed"


async def test_a_target_that_does_not_answer_is_not_one_without_a_mark(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)

    def away(_: str) -> None:
        raise Unavailable("The target does not answer.")

    cloud.target.before_call = away
    await cloud.backup_scheduler().schedule()
    assert await _health(cloud) == (200, "degraded", "unavailable")
    cloud.target.before_call = None
    assert len(await _targets(cloud)) == 1


async def test_a_bucket_that_one_may_not_read_is_not_empty(cloud: Cloud, bucket: tuple[str, str]) -> None:
    repository = Repository(S3("no-such-bucket", "", bucket[1], "us-east-1"), cloud.instance, None)
    with pytest.raises(Unusable) as refused:
        await marks.identify(cloud.runtime, repository, first_use=True)
    assert not isinstance(refused.value, TargetNotThere)
    assert repository.status.status == "unavailable"
    assert await _targets(cloud) == []


async def test_a_mark_that_is_none_is_not_replaced(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    (cloud.target.folder / MARK).write_text("{")
    assert (await _try_backup(cloud, server))["status"] == "failed"
    assert (cloud.target.folder / MARK).read_text() == "{"


async def test_targets_are_renamed_and_no_two_have_one_name(cloud: Cloud) -> None:
    values = [
        {"mark": str(number), "name": f"t{number}", "location": "x", "created_at_ms": number, "seen_at_ms": number}
        for number in (1, 2)
    ]
    async with cloud.writing() as ctx:
        await ctx.tx.many(Statement(insert(backup_targets), list(values[0])), values)
    async with cloud.writing() as ctx:
        await marks.rename(ctx, "t1", "offsite")
        await marks.rename(ctx, "2", "t2")
        with pytest.raises(Invalid, match="Another target"):
            await marks.rename(ctx, "2", "offsite")
        with pytest.raises(Invalid, match="63 letters"):
            await marks.rename(ctx, "2", "-x")
        with pytest.raises(NotFound):
            await marks.rename(ctx, "t1", "other")
    assert [target.name for target in await _targets(cloud)] == ["offsite", "t2"]
