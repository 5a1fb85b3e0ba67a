"""What a target has lost or changed: it is marked, nothing new needs it, and what can be is stored anew."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import TINY, Cloud
from vpsd.audit import Audit
from vpsd.backups import damage, queries
from vpsd.backups.queries import StoredBackup
from vpsd.backups.repository import Damaged, Repository, WrongKey
from vpsd.backups.targets import MARK, Missing, TargetNotThere

MB = 1 << 20


async def _write(cloud: Cloud, server: int, number: int, text: str) -> None:
    """Into one chunk of the disk."""
    cloud.hypervisor.writes(await cloud.disk(server), number * MB + 5, text.encode().ljust(20))


async def _chain(cloud: Cloud) -> tuple[int, list[dict[str, Any]]]:
    """A server and three backups of it; its chunk 2 is as in the first, and each has another chunk 7."""
    server = await cloud.have_server()
    await _write(cloud, server, 2, "from the beginning")
    made = []
    for number in range(3):
        await _write(cloud, server, 7, f"version {number}")
        made.append(await cloud.have_copy(server, "snapshot" if number == 1 else "backup"))
    assert [one["incremental"] for one in made] == [False, True, True]
    return server, made


async def _stored(cloud: Cloud, backup_id: int) -> StoredBackup:
    async with cloud.reading() as ctx:
        return next(one for one in await queries.stored(ctx) if one.id == backup_id)


async def _chunk(cloud: Cloud, backup: dict[str, Any], number: int) -> Path:
    """The file with a chunk of a backup's disk."""
    manifest = await cloud.runtime.repository.read_manifest((await _stored(cloud, backup["id"])).ref)
    chunk = manifest.chunks[number]
    assert chunk is not None
    (found,) = cloud.target.folder.rglob(f"{manifest.owners[chunk[0]]}/{chunk[1]}")
    return found


def _spoil(path: Path) -> bytes:
    """Change a byte at its end; what was there."""
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    return good


async def _verify(cloud: Cloud, backup: dict[str, Any], repository: Repository | None = None) -> bool:
    try:
        stored = await _stored(cloud, backup["id"])
        await damage.verify(cloud.runtime, repository or cloud.runtime.repository, stored)
    except (Damaged, Missing):
        return False
    return True


async def _shown(cloud: Cloud) -> list[str]:
    """The status of each backup and snapshot, oldest first."""
    found = [
        one for what in ("backups", "snapshots") for one in (await cloud.get(f"/api/v1/{what}/")).json()["results"]
    ]
    return [one["status"] for one in sorted(found, key=lambda one: one["id"])]


async def _events(cloud: Cloud, word: str) -> set[tuple[str, int]]:
    found = (await cloud.get("/api/v1/account/events/")).json()["results"]
    return {(one["action"], one["target"]["id"]) for one in found if one["action"].endswith(f".{word}")}


async def test_a_damaged_chunk_marks_all_that_need_it_and_they_are_refused(cloud: Cloud) -> None:
    _, made = await _chain(cloud)
    alone = _spoil(await _chunk(cloud, made[1], 7))
    assert not await _verify(cloud, made[1])
    assert await _shown(cloud) == ["completed", "damaged", "completed"]
    (await _chunk(cloud, made[1], 7)).write_bytes(alone)
    assert await _verify(cloud, made[1])
    assert await _shown(cloud) == ["completed"] * 3
    good = _spoil(await _chunk(cloud, made[0], 2))
    assert await _shown(cloud) == ["completed"] * 3
    assert not await _verify(cloud, made[2])
    assert await _shown(cloud) == ["damaged"] * 3
    assert await _events(cloud, "damaged") == {("backup.damaged", 1), ("snapshot.damaged", 2), ("backup.damaged", 3)}
    shown = (await cloud.get(f"/api/v1/backups/{made[2]['id']}/")).json()
    assert (shown["error"], shown["size_mb"]) == (damage.LOST, made[2]["size_mb"])
    for what, one in zip(("backup", "snapshot", "backup"), made, strict=True):
        refused = await cloud.post(f"/api/v1/{what}s/{one['id']}/restore/")
        assert (refused.status_code, refused.json()["code"]) == (400, "wrong_status")
        assert f"The {what} {one['id']} is damaged" in refused.json()["detail"]
        order = {"name": "new", "plan_id": 4, "location": "us-west", f"{what}_id": one["id"]}
        refused = await cloud.post("/api/v1/servers/", order)
        assert (refused.status_code, "is damaged" in refused.text) == (400, True)
    findings = await Audit(cloud.runtime).run()
    assert [(one.kind, one.name) for one in findings] == [("backup", "1"), ("backup", "2"), ("backup", "3")]
    (await _chunk(cloud, made[0], 2)).write_bytes(good)
    assert await _verify(cloud, made[1])
    assert await _shown(cloud) == ["completed"] * 3
    assert ("backup.mended", 1) in await _events(cloud, "mended")
    assert await Audit(cloud.runtime).run() == []


async def test_the_next_backup_stores_it_anew_and_the_others_are_whole_again(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    path = await _chunk(cloud, made[0], 2)
    good = _spoil(path)
    await _verify(cloud, made[0])
    fourth = await cloud.have_copy(server)
    assert not fourth["incremental"]  # everything was read again
    assert fourth["sent_mb"] < made[0]["sent_mb"]  # and little sent
    assert path.read_bytes()[:40] == good[:40]
    assert await _verify(cloud, fourth)
    assert await _shown(cloud) == ["completed"] * 4
    assert all([await _verify(cloud, one) for one in made])
    assert (await cloud.have_copy(server))["incremental"]


async def test_what_the_disk_does_not_have_any_more_stays_damaged_and_the_next_backup_is_whole(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    _spoil(await _chunk(cloud, made[0], 2))
    await _verify(cloud, made[0])
    await _write(cloud, server, 2, "by now another")
    fourth = await cloud.have_copy(server)
    assert await _verify(cloud, fourth)
    assert not await _verify(cloud, made[0])
    assert await _shown(cloud) == ["damaged"] * 3 + ["completed"]
    assert (await cloud.post(f"/api/v1/backups/{fourth['id']}/restore/")).status_code == 200


async def test_a_chunk_that_is_missing_is_noticed_by_the_next_backup_itself(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    path = await _chunk(cloud, made[0], 2)
    path.unlink()
    fourth = await cloud.have_copy(server)
    assert (fourth["incremental"], path.exists()) == (False, True)
    assert await _events(cloud, "damaged") == {("backup.damaged", 1), ("snapshot.damaged", 2), ("backup.damaged", 3)}
    assert await _shown(cloud) == ["completed"] * 4
    assert all([await _verify(cloud, one) for one in (*made, fourth)])


async def test_a_restore_and_a_create_that_meet_damage_mark_it(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    _spoil(await _chunk(cloud, made[0], 2))
    order = {**TINY, "name": "new", "backup_id": made[0]["id"]}
    del order["os_id"]
    new = (await cloud.post("/api/v1/servers/", order)).json()["id"]
    restore = await cloud.post(f"/api/v1/backups/{made[2]['id']}/restore/")
    assert restore.status_code == 200
    await cloud.work()
    assert await _shown(cloud) == ["damaged"] * 3
    for one, backup in ((server, made[2]), (new, made[0])):
        error = (await cloud.get(f"/api/v1/servers/{one}/")).json()["error"]
        assert error.startswith(f"The backup {backup['id']} is damaged: ")
        assert backup["uuid"] not in error
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_a_backup_that_needs_what_is_damaged_fails_once_and_the_next_one_is_whole(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    _spoil(await _chunk(cloud, made[0], 2))
    await _write(cloud, server, 2, "another beginning of the chunk")  # the rest of it is as in the first
    failed = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()
    await cloud.work()
    shown = (await cloud.get(f"/api/v1/backups/{failed['id']}/")).json()
    assert (shown["status"], shown["error"]) == (
        "failed",
        "A backup before this one is damaged; the next one copies everything again.",
    )
    assert (await _shown(cloud))[:3] == ["damaged"] * 3
    assert await _verify(cloud, await cloud.have_copy(server))


async def test_damage_that_is_found_while_a_backup_is_stored_fails_what_inherits_it(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    await _write(cloud, server, 7, "version 3")
    running = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()

    async def find(call: str) -> None:
        if call == "put":  # what was known to be damaged was read before
            cloud.target.before_call = None
            _spoil(await _chunk(cloud, made[0], 2))
            assert not await _verify(cloud, made[0])

    cloud.target.before_call = find
    await cloud.work()
    shown = (await cloud.get(f"/api/v1/backups/{running['id']}/")).json()
    assert (shown["status"], shown["error"]) == (
        "failed",
        "A backup before this one is damaged; the next one copies everything again.",
    )
    assert await _verify(cloud, await cloud.have_copy(server))
    assert all([await _verify(cloud, one) for one in made])


@pytest.mark.parametrize("moment", ["put", "keep_checkpoint"])
async def test_damage_that_does_not_concern_a_backup_that_is_stored_is_not_its_own(cloud: Cloud, moment: str) -> None:
    server, made = await _chain(cloud)
    await _write(cloud, server, 7, "version 3")
    running = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()

    async def find(call: str) -> None:
        if call == moment:
            cloud.target.before_call = cloud.hypervisor.before_call = None
            _spoil(await _chunk(cloud, made[0], 7))
            await _verify(cloud, made[0])
            seen.extend(await _shown(cloud))

    seen: list[str] = []
    cloud.target.before_call = cloud.hypervisor.before_call = find
    await cloud.work()
    assert seen == ["damaged", "completed", "completed", "in_progress"]
    shown = (await cloud.get(f"/api/v1/backups/{running['id']}/")).json()
    assert (shown["status"], shown["incremental"]) == ("completed", True)
    assert await _shown(cloud) == ["damaged", "completed", "completed", "completed"]


async def test_damage_that_is_found_between_the_last_chunk_and_the_end_marks_the_backup(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    await _write(cloud, server, 7, "version 3")
    running = (await cloud.post(f"/api/v1/servers/{server}/backup/")).json()

    async def find(call: str) -> None:
        if call == "keep_checkpoint":
            cloud.hypervisor.before_call = None
            _spoil(await _chunk(cloud, made[0], 2))
            assert not await _verify(cloud, made[0])

    cloud.hypervisor.before_call = find
    await cloud.work()
    assert await _shown(cloud) == ["damaged"] * 4
    shown = (await cloud.get(f"/api/v1/backups/{running['id']}/")).json()
    assert (shown["error"], shown["completed_at"] is not None) == (damage.LOST, True)
    assert (await cloud.operations(server))[-1]["status"] == "succeeded"


async def test_a_lost_manifest_marks_its_backup_alone(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    (manifest,) = cloud.target.folder.rglob(f"{made[0]['uuid']}/manifest")
    kept = manifest.read_bytes()
    for harm in (manifest.unlink, lambda: _spoil(manifest)):
        harm()
        assert not await _verify(cloud, made[0])
        assert await _shown(cloud) == ["damaged", "completed", "completed"]
        manifest.write_bytes(kept)
        assert await _verify(cloud, made[0])
        assert await _shown(cloud) == ["completed"] * 3
    (last,) = cloud.target.folder.rglob(f"{made[2]['uuid']}/manifest")
    last.unlink()
    assert await _verify(cloud, await cloud.have_copy(server))  # it meets that by itself
    assert await _shown(cloud) == ["completed", "completed", "damaged", "completed"]


async def test_what_is_not_there_or_has_another_key_is_not_damaged(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    other = Repository(cloud.target, cloud.instance, b"k" * 32)
    with pytest.raises(WrongKey):
        await _verify(cloud, made[0], other)
    folder = cloud.target.folder
    away = folder.with_name("away")
    for reads in (0, 1):  # before the manifest is read, and after it

        def unmount(call: str) -> None:
            if cloud.target.calls.count("get") > reads and not away.exists():  # noqa: B023
                folder.rename(away)
                folder.mkdir()

        cloud.target.calls.clear()
        cloud.target.before_call = unmount
        with pytest.raises(TargetNotThere):
            await _verify(cloud, made[0])
        folder.rmdir()
        away.rename(folder)
        async with cloud.reading() as ctx:
            assert not await damage.chunks(ctx, server)
    assert (folder / MARK).exists()
    assert await _shown(cloud) == ["completed"] * 3


async def test_what_is_deleted_leaves_the_rest_of_a_damaged_one(cloud: Cloud) -> None:
    _, made = await _chain(cloud)
    lost = await _chunk(cloud, made[2], 7)
    good = _spoil(lost)
    await _verify(cloud, made[2])
    assert await _shown(cloud) == ["completed", "completed", "damaged"]
    for what, one in (("backups", made[0]), ("snapshots", made[1])):
        assert (await cloud.ask("DELETE", f"/api/v1/{what}/{one['id']}/")).status_code == 204
    await cloud.backup_scheduler().schedule()
    lost.write_bytes(good)
    assert await _verify(cloud, made[2])  # it found it as good as it was
    assert await _shown(cloud) == ["completed"]


async def test_whoever_finds_the_same_at_once_is_in_nobodys_way(cloud: Cloud) -> None:
    server, made = await _chain(cloud)
    for digest in ("1" * 64, "2" * 64):  # by the second time there is a connection for each
        found = frozenset([(made[0]["uuid"], digest)])
        args = (cloud.runtime, cloud.runtime.repository, server, (await _stored(cloud, 1)).target)
        await asyncio.gather(*(damage.record(*args, damaged=found) for _ in range(6)))
    async with cloud.reading() as ctx:
        assert len(await damage.chunks(ctx, server)) == 2
    assert await _shown(cloud) == ["completed"] * 3  # none of them has such a chunk
