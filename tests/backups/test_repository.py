"""The repository encrypts, names and verifies backups, and deletes them without breaking others."""

import itertools
import zlib
from pathlib import Path

import msgspec
import pytest

from tests.backups.recording_target import (
    CHUNK,
    KEY,
    SERVER,
    Disk,
    RecordingTarget,
    backup_ref,
    chain,
    keep,
    restored,
)
from tests.killed import Killed
from vpsd.backups import repository as repositories
from vpsd.backups import targets
from vpsd.backups.keys import new_key, read_key
from vpsd.backups.repository import BackupRef, Damaged, Manifest, Repository, WrongKey
from vpsd.backups.targets import Directory, Missing
from vpsd.errors import Misconfigured, Unusable

FOLDER = f"vpsd-0a1b2c3d/servers/{SERVER}"


@pytest.fixture
def target() -> RecordingTarget:
    return RecordingTarget()


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def repository(request: pytest.FixtureRequest, target: RecordingTarget) -> Repository:
    return Repository(target, "0a1b2c3d", request.param, CHUNK)


def _chunk_keys(target: RecordingTarget) -> list[str]:
    return sorted(key for key in target.objects if not key.endswith("/manifest"))


async def test_objects_lie_by_instance_server_and_backup(repository: Repository, target: RecordingTarget) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"a" * CHUNK)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    digest = repository.digest(SERVER, b"a" * CHUNK)
    assert set(target.objects) == {
        f"{FOLDER}/{backup_ref(0).backup}/{digest}",
        f"{FOLDER}/{backup_ref(0).backup}/manifest",
    }
    assert repository.location == "target"


async def test_two_vpsd_share_a_target_and_do_not_see_each_other(target: RecordingTarget) -> None:
    one, two = Repository(target, "0a1b2c3d", None, CHUNK), Repository(target, "ffffffff", None, CHUNK)
    held = await chain(one, 2)
    with pytest.raises(Missing):
        await two.read_manifest(backup_ref(0))
    await two.discard(backup_ref(0), [])
    assert await restored(one, backup_ref(1)) == held[1]


async def test_with_a_key_nothing_of_the_disk_can_be_read_off_the_target(target: RecordingTarget) -> None:
    plain, encrypted = RecordingTarget(), Repository(target, "0a1b2c3d", KEY, CHUNK)
    disk = Disk(CHUNK * 4)
    for number in range(4):
        disk.write(CHUNK * number, b"secret text %d " % number)
    copy = disk.copy(whole=True)
    await keep(encrypted, backup_ref(0), copy)
    await keep(Repository(plain, "0a1b2c3d", None, CHUNK), backup_ref(0), copy)
    assert not set(_chunk_keys(target)) & set(_chunk_keys(plain))  # names would tell who has a known file
    for data in target.objects.values():
        for known in (b"secret", b"debian", zlib.compress(b"secret text")[2:8], backup_ref(0).backup.encode()):
            assert known not in data
    assert encrypted.digest(SERVER, b"a") != encrypted.digest(
        backup_ref(7).backup, b"a"
    )  # nor who has the same as another


async def test_what_is_encrypted_twice_looks_different_each_time(target: RecordingTarget) -> None:
    repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
    seen: set[bytes] = set()
    for _ in range(3):
        await repository.put_chunk(backup_ref(0), "0" * 64, b"a" * CHUNK)
        seen.update(target.objects.values())
    assert len(seen) == 3


async def test_what_can_be_packed_is_and_what_cannot_does_not_grow(
    repository: Repository, target: RecordingTarget
) -> None:
    assert await repository.put_chunk(backup_ref(0), "0" * 64, b"a" * 10_000) < 200
    assert await repository.put_chunk(backup_ref(0), "0" * 64, bytes(range(256))) <= 256 + 41 + 12 + 16


async def _flawed(repository: Repository, number: int) -> str:
    """What reading and verifying say of a damaged backup."""
    with pytest.raises(Damaged) as by_reading:
        await restored(repository, backup_ref(number))
    with pytest.raises(Damaged) as by_verifying:
        await repository.verify(backup_ref(number))
    assert str(by_reading.value) in str(by_verifying.value)
    return str(by_reading.value)


_IDLE_BITS = 7  # at most: those that fill the last byte of what zlib packed. They are nobody's content


async def test_every_bit_of_a_chunks_object_counts(repository: Repository, target: RecordingTarget) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"some text that is not too long")
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    (key,) = _chunk_keys(target)
    whole = target.objects[key]
    idle = 0
    for position in range(len(whole) * 8):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        target.objects[key] = bytes(data)
        try:
            assert await restored(repository, backup_ref(0)) == bytes(disk.content)
            idle += 1
            continue
        except Damaged:
            text = await _flawed(repository, 0)
        assert f"backup {backup_ref(0).backup}: chunk 0 ({key} on target) is damaged" in text
    assert idle <= (0 if repository.key_id else _IDLE_BITS)
    for length in range(len(whole)):
        target.objects[key] = whole[:length]
        await _flawed(repository, 0)
    target.objects[key] = whole + b"\0"
    await _flawed(repository, 0)
    target.objects[key] = whole
    assert (await repository.verify(backup_ref(0))).chunks == 1


async def test_a_manifest_whose_bytes_changed_is_not_believed(repository: Repository, target: RecordingTarget) -> None:
    await keep(repository, backup_ref(0), Disk(CHUNK * 3).copy(whole=True))
    key = f"{FOLDER}/{backup_ref(0).backup}/manifest"
    whole, manifest = target.objects[key], await repository.read_manifest(backup_ref(0))
    idle = 0
    for position in range(len(whole) * 8):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        target.objects[key] = bytes(data)
        try:
            assert await repository.read_manifest(backup_ref(0)) == manifest
            idle += 1
            continue
        except (Damaged, WrongKey):
            pass
        with pytest.raises((Damaged, WrongKey), match=backup_ref(0).backup):
            await repository.verify(backup_ref(0))
    assert idle <= (0 if repository.key_id else _IDLE_BITS)


async def test_chunks_that_are_missing_or_changed_places_are_found_and_all_of_them_named(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK * 4)
    for number in range(4):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    found = await repository.verify(backup_ref(0))
    assert (found.chunks, found.size_bytes) == (4, CHUNK * 4)
    one, two, three, _ = _chunk_keys(target)
    target.objects[one], target.objects[two] = target.objects[two], target.objects[one]
    del target.objects[three]
    with pytest.raises(Damaged) as caught:
        await repository.verify(backup_ref(0))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for key, what in ((one, "is damaged"), (two, "is damaged"), (three, "is missing")):
        assert [line for line in lines if key in line and what in line]


async def test_a_chunk_of_another_backup_in_its_place_is_found_although_its_name_is_right(
    target: RecordingTarget,
) -> None:
    repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
    disk = Disk(CHUNK)
    disk.write(0, b"a")
    for number in (0, 1):
        await keep(repository, backup_ref(number), disk.copy(whole=True))
    one, two = _chunk_keys(target)
    target.objects[one] = target.objects[two]  # encrypted for another backup_ref
    assert "it cannot be decrypted" in await _flawed(repository, 0)


async def test_the_note_of_what_is_being_deleted_is_no_manifest_by_another_name(target: RecordingTarget) -> None:
    repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
    await chain(repository, 1)
    target.steps_left, target.dies = 5, "after"
    with pytest.raises(Killed):
        await repository.discard(backup_ref(0), [])
    target.steps_left = None
    folder = f"{FOLDER}/{backup_ref(0).backup}"
    target.objects[f"{folder}/manifest"] = target.objects.pop(f"{folder}/deleted")
    with pytest.raises(Damaged, match="it cannot be decrypted"):
        await repository.read_manifest(backup_ref(0))


async def test_a_manifest_of_another_backup_in_its_place_is_not_believed(
    repository: Repository, target: RecordingTarget
) -> None:
    await chain(repository, 2)
    target.objects[f"{FOLDER}/{backup_ref(0).backup}/manifest"] = target.objects[
        f"{FOLDER}/{backup_ref(1).backup}/manifest"
    ]
    with pytest.raises(Damaged, match=backup_ref(0).backup):
        await repository.read_manifest(backup_ref(0))


async def test_what_unpacks_to_more_than_a_chunk_is_not_unpacked(target: RecordingTarget) -> None:
    repository = Repository(target, "0a1b2c3d", None, CHUNK)
    disk = Disk(CHUNK)
    disk.write(0, b"a")
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    (key,) = _chunk_keys(target)
    target.objects[key] = target.objects[key][:41] + zlib.compress(bytes(100_000_000))
    assert "cannot be decompressed" in await _flawed(repository, 0)


async def test_a_manifest_unpacks_within_a_limit_and_none_beyond_it_is_written(
    repository: Repository, target: RecordingTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chain(repository, 1)
    manifest = await repository.read_manifest(backup_ref(0))
    monkeypatch.setattr(repositories, "_MANIFEST_BYTES", 100)
    with pytest.raises(Damaged, match="its manifest is damaged: it cannot be decompressed"):
        await repository.read_manifest(backup_ref(0))
    with pytest.raises(Unusable, match="too large for a backup"):
        await repository.put_manifest(manifest)


async def test_an_object_that_is_larger_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(Directory(tmp_path), "0a1b2c3d", None, CHUNK)
    await chain(repository, 1)
    largest = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    chunk = next(path for path in tmp_path.rglob("*") if len(path.name) == 64)
    monkeypatch.setattr(targets, "LARGEST_OBJECT_BYTES", largest)
    with chunk.open("ab") as file:
        file.truncate(largest + 1)
    assert "more than any that vpsd stores" in await _flawed(repository, 0)
    monkeypatch.setattr(targets, "LARGEST_OBJECT_BYTES", 1)
    with pytest.raises(Damaged, match=r"its manifest is damaged: .* more than any that vpsd stores"):
        await repository.read_manifest(backup_ref(0))


@pytest.mark.parametrize(
    ("theirs", "mine", "text"),
    [
        (KEY, None, "was encrypted with the key [0-9a-f]{8}, and vpsd has no key"),
        (None, KEY, "was not encrypted, and vpsd has the key [0-9a-f]{8}"),
        (KEY, KEY[::-1], "was encrypted with the key [0-9a-f]{8}, and vpsd has the key [0-9a-f]{8}"),
    ],
)
async def test_a_backup_of_another_key_is_told_as_that(
    target: RecordingTarget, theirs: bytes | None, mine: bytes | None, text: str
) -> None:
    held = await chain(Repository(target, "0a1b2c3d", theirs, CHUNK), 2)
    repository = Repository(target, "0a1b2c3d", mine, CHUNK)
    lying = dict(target.objects)
    for doing in (
        repository.read_manifest(backup_ref(0)),
        repository.verify(backup_ref(0)),
        repository.discard(backup_ref(0), []),
        repository.discard(backup_ref(2), [backup_ref(0)]),
        keep(repository, backup_ref(2), Disk(CHUNK).copy(whole=False), backup_ref(1)),
    ):
        with pytest.raises(WrongKey, match=text):
            await doing
    assert target.objects == lying
    assert await restored(Repository(target, "0a1b2c3d", theirs, CHUNK), backup_ref(1)) == held[1]


def test_a_keys_id_tells_keys_apart_and_none_from_any() -> None:
    one, two = Repository(RecordingTarget(), "a", KEY), Repository(RecordingTarget(), "b", KEY[::-1])
    assert one.key_id is not None
    assert len(one.key_id) == 8
    assert one.key_id != two.key_id
    assert one.key_id not in KEY.hex()
    assert Repository(RecordingTarget(), "c", KEY).key_id == one.key_id
    assert Repository(RecordingTarget(), "a", None).key_id is None


async def _forged(repository: Repository, change: dict[str, object]) -> None:
    manifest = Manifest(
        server=SERVER,
        backup=backup_ref(0).backup,
        created_at_ms=0,
        size_bytes=CHUNK,
        chunk_bytes=CHUNK,
        facts={},
        owners=[],
        chunks=[None],
    )
    content = {**msgspec.to_builtins(manifest), **change}
    text = msgspec.json.encode(content)
    await repository._put(backup_ref(0), "manifest", repository.digest(SERVER, text), text)


@pytest.mark.parametrize(
    "change",
    [
        {"owners": ["../../../../somewhere"], "chunks": [[0, "0" * 64]]},
        {"owners": ["0" * 36 + "\n"], "chunks": [[0, "0" * 64]]},
        {"owners": [backup_ref(0).backup], "chunks": [[0, "../" + "0" * 61]]},
        {"owners": [backup_ref(0).backup], "chunks": [[1, "0" * 64]]},
        {"owners": [backup_ref(0).backup], "chunks": [[-1, "0" * 64]]},
        {"chunks": []},
        {"chunks": [None, None]},
        {"chunk_bytes": 0},
        {"size_bytes": -1},
        {"server": backup_ref(0).backup},
        {"version": "1"},
    ],
)
async def test_a_manifest_that_leads_elsewhere_or_does_not_fit_is_damaged(
    repository: Repository, change: dict[str, object]
) -> None:
    await _forged(repository, change)
    with pytest.raises(Damaged, match=backup_ref(0).backup):
        await repository.read_manifest(backup_ref(0))


async def test_a_chunk_of_another_size_than_the_manifest_says_is_damaged(repository: Repository) -> None:
    digest = repository.digest(SERVER, b"a" * CHUNK)
    await repository.put_chunk(backup_ref(0), digest, b"a" * CHUNK)
    named = {"owners": [backup_ref(0).backup], "chunks": [[0, digest]]}
    await _forged(repository, {"size_bytes": CHUNK * 2, "chunk_bytes": CHUNK * 2, **named})
    assert "a different chunk" in await _flawed(repository, 0)


async def test_a_manifest_of_a_later_vpsd_is_told_as_that(repository: Repository, target: RecordingTarget) -> None:
    await _forged(repository, {"version": 2, "chunks": "something new"})
    with pytest.raises(Unusable, match=r"another version of vpsd \(format 2\)") as caught:
        await repository.read_manifest(backup_ref(0))
    assert not isinstance(caught.value, Damaged)
    with pytest.raises(Unusable, match="format 2"):
        await repository.discard(backup_ref(0), [])
    assert target.objects


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("victim", [0, 1, 2, 3])
async def test_a_discard_killed_at_every_step_never_leaves_what_looks_whole_and_is_not_and_is_repeated(
    dies: str, victim: int
) -> None:
    for step in itertools.count(1):
        target = RecordingTarget()
        repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
        held = await chain(repository, 4)
        others = [backup_ref(number) for number in held if number != victim]
        target.steps_left, target.dies = step, dies  # type: ignore[assignment]
        try:
            await repository.discard(backup_ref(victim), others)
        except Killed:
            ended = False
        else:
            ended = True
        target.steps_left = None
        if backup_ref(victim).backup in target.manifests():
            assert await restored(repository, backup_ref(victim)) == held[victim]
        await repository.discard(backup_ref(victim), others)
        del held[victim]
        assert target.manifests() == {other.backup for other in others}
        for number, content in held.items():
            assert await restored(repository, backup_ref(number)) == content
        named = set[tuple[str, str]]().union(
            *[(await repository.read_manifest(other)).referenced_chunks() for other in others]
        )
        assert {(key.split("/")[-2], key.split("/")[-1]) for key in _chunk_keys(target)} == named
        for number in list(held):
            del held[number]
            await repository.discard(backup_ref(number), [backup_ref(left) for left in held])
        assert target.objects == {}
        if ended:
            break
    assert step > 8


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_the_last_backup_takes_what_deleted_ones_left_for_it_also_when_it_is_killed(dies: str) -> None:
    for step in itertools.count(1):
        target = RecordingTarget()
        repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
        await chain(repository, 3)
        await repository.discard(backup_ref(0), [backup_ref(1), backup_ref(2)])
        await repository.discard(backup_ref(1), [backup_ref(2)])
        assert [key for key in target.objects if backup_ref(0).backup in key]
        target.steps_left, target.dies = step, dies  # type: ignore[assignment]
        try:
            await repository.discard(backup_ref(2), [])
        except Killed:
            target.steps_left = None
            await repository.discard(backup_ref(2), [])
            assert target.objects == {}
        else:
            break
    assert step > 8


async def test_two_discards_killed_between_leave_nothing_when_they_are_repeated(
    repository: Repository, target: RecordingTarget
) -> None:
    await chain(repository, 2)
    for number, others in ((0, [backup_ref(1)]), (1, [])):
        target.steps_left, target.dies = 6, "after"
        with pytest.raises(Killed):
            await repository.discard(backup_ref(number), others)
        target.steps_left = None
        assert backup_ref(number).backup not in target.manifests()
    await repository.discard(backup_ref(0), [])
    await repository.discard(backup_ref(1), [])
    assert target.objects == {}


async def test_what_is_not_there_is_discarded_with_success(repository: Repository, target: RecordingTarget) -> None:
    await repository.discard(backup_ref(0), [])
    assert target.objects == {}


async def test_an_upload_that_failed_is_discarded_without_its_parents_chunks(
    repository: Repository, target: RecordingTarget
) -> None:
    held = await chain(repository, 2)
    await repository.put_chunk(backup_ref(9), "0" * 64, b"a")
    await repository.discard(backup_ref(9), [backup_ref(0), backup_ref(1)])
    assert not [key for key in target.objects if backup_ref(9).backup in key]
    assert await restored(repository, backup_ref(1)) == held[1]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
async def test_while_a_manifest_of_the_others_cannot_be_read_nothing_is_deleted(
    repository: Repository, target: RecordingTarget, harm: str
) -> None:
    await chain(repository, 3)
    key = f"{FOLDER}/{backup_ref(2).backup}/manifest"
    if harm == "missing":
        del target.objects[key]
    else:
        target.objects[key] = target.objects[key][:-1]
    lying = dict(target.objects)
    with pytest.raises(Unusable, match=backup_ref(2).backup):
        await repository.discard(backup_ref(0), [backup_ref(1), backup_ref(2)])
    assert target.objects == lying


async def test_a_backup_whose_own_manifest_is_damaged_goes_and_the_others_stay_whole(
    repository: Repository, target: RecordingTarget
) -> None:
    held = await chain(repository, 3)
    key = f"{FOLDER}/{backup_ref(0).backup}/manifest"
    target.objects[key] = target.objects[key][:-1]
    await repository.discard(backup_ref(0), [backup_ref(1), backup_ref(2)])
    assert target.manifests() == {backup_ref(1).backup, backup_ref(2).backup}
    for number in (1, 2):
        assert await restored(repository, backup_ref(number)) == held[number]


async def test_servers_have_nothing_to_do_with_each_other(repository: Repository, target: RecordingTarget) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"a")
    other = BackupRef(backup_ref(77).backup, backup_ref(0).backup)
    for where in (backup_ref(0), other):
        await keep(repository, where, disk.copy(whole=True))
    with pytest.raises(Unusable, match="cannot be the parent"):
        mine = await repository.read_manifest(other)
        assert isinstance(mine, Manifest)
        await keep(repository, backup_ref(1), disk.copy(whole=True), other)
    await repository.discard(backup_ref(0), [])
    assert await restored(repository, other) == bytes(disk.content)


def test_a_new_key_can_be_read_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    one = new_key()
    path.write_text(one + "\n")
    assert read_key(path) == bytes.fromhex(one)
    assert one != new_key()


@pytest.mark.parametrize(
    ("text", "mode", "complaint"),
    [
        ("00" * 31, 0o600, "64 hex digits"),
        ("00" * 33, 0o600, "64 hex digits"),
        ("zz" * 32, 0o600, "64 hex digits"),
        ("é" * 32, 0o600, "64 hex digits"),
        ("00" * 2000, 0o600, "64 hex digits"),
        ("", 0o600, "64 hex digits"),
        ("00" * 32, 0o640, "others than its owner"),
        ("00" * 32, 0o604, "others than its owner"),
        ("00" * 32, 0o620, "others than its owner"),
    ],
)
def test_a_key_file_that_is_odd_or_open_to_others_is_refused(
    tmp_path: Path, text: str, mode: int, complaint: str
) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=complaint) as caught:
        read_key(path)
    assert str(path) in str(caught.value)
    assert not text or text not in str(caught.value)


def test_a_key_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"VPSD_BACKUP_KEY_FILE=.*No such file"):
        read_key(tmp_path / "key")
