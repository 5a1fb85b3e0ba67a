"""The vault: what lies there is sealed, named, whole or not there, and taken away without breaking what is left."""

import itertools
import zlib
from pathlib import Path

import msgspec
import pytest

from tests.backups.shelf import CHUNK, KEY, SERVER, Disk, Killed, Shelf, chain, keep, place, restored
from vpsd.backups.targets import Missing
from vpsd.backups.vault import Damaged, Manifest, Place, Vault, WrongKey, new_key, read_key
from vpsd.errors import Misconfigured, Unusable

FOLDER = f"vpsd-0a1b2c3d/servers/{SERVER}"


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture(params=[None, KEY], ids=["plain", "sealed"])
def vault(request: pytest.FixtureRequest, shelf: Shelf) -> Vault:
    return Vault(shelf, "0a1b2c3d", request.param, CHUNK)


def _chunk_keys(shelf: Shelf) -> list[str]:
    return sorted(key for key in shelf.objects if not key.endswith("/manifest"))


async def test_objects_lie_by_instance_server_and_backup(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"a" * CHUNK)
    await keep(vault, place(0), disk.copy(whole=True))
    digest = vault.digest(SERVER, b"a" * CHUNK)
    assert set(shelf.objects) == {f"{FOLDER}/{place(0).backup}/{digest}", f"{FOLDER}/{place(0).backup}/manifest"}
    assert vault.target_name == "shelf"


async def test_two_vpsd_share_a_target_and_do_not_see_each_other(shelf: Shelf) -> None:
    one, two = Vault(shelf, "0a1b2c3d", None, CHUNK), Vault(shelf, "ffffffff", None, CHUNK)
    held = await chain(one, 2)
    with pytest.raises(Missing):
        await two.read_manifest(place(0))
    await two.discard(place(0), [])
    assert await restored(one, place(1)) == held[1]


async def test_with_a_key_nothing_of_the_disk_can_be_read_off_the_target(shelf: Shelf) -> None:
    plain, sealed = Shelf(), Vault(shelf, "0a1b2c3d", KEY, CHUNK)
    disk = Disk(CHUNK * 4)
    for number in range(4):
        disk.write(CHUNK * number, b"secret text %d " % number)
    copy = disk.copy(whole=True)
    await keep(sealed, place(0), copy)
    await keep(Vault(plain, "0a1b2c3d", None, CHUNK), place(0), copy)
    assert not set(_chunk_keys(shelf)) & set(_chunk_keys(plain))  # names would tell who has a known file
    for data in shelf.objects.values():
        for known in (b"secret", b"debian", zlib.compress(b"secret text")[2:8], place(0).backup.encode()):
            assert known not in data
    assert sealed.digest(SERVER, b"a") != sealed.digest(place(7).backup, b"a")  # nor who has the same as another


async def test_what_is_sealed_twice_looks_different_each_time(shelf: Shelf) -> None:
    vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
    seen: set[bytes] = set()
    for _ in range(3):
        await vault.put_chunk(place(0), "0" * 64, b"a" * CHUNK)
        seen.update(shelf.objects.values())
    assert len(seen) == 3


async def test_what_can_be_packed_is_and_what_cannot_does_not_grow(vault: Vault, shelf: Shelf) -> None:
    assert await vault.put_chunk(place(0), "0" * 64, b"a" * 10_000) < 200
    assert await vault.put_chunk(place(0), "0" * 64, bytes(range(256))) <= 256 + 41 + 12 + 16


async def _flawed(vault: Vault, number: int) -> str:
    """What reading and verifying say of a damaged backup."""
    with pytest.raises(Damaged) as by_reading:
        await restored(vault, place(number))
    with pytest.raises(Damaged) as by_verifying:
        await vault.verify(place(number))
    assert str(by_reading.value) in str(by_verifying.value)
    return str(by_reading.value)


_IDLE_BITS = 7  # at most: those that fill the last byte of what zlib packed. They are nobody's content


async def test_every_bit_of_a_chunks_object_counts(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"some text that is not too long")
    await keep(vault, place(0), disk.copy(whole=True))
    (key,) = _chunk_keys(shelf)
    whole = shelf.objects[key]
    idle = 0
    for position in range(len(whole) * 8):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        shelf.objects[key] = bytes(data)
        try:
            assert await restored(vault, place(0)) == bytes(disk.content)
            idle += 1
            continue
        except Damaged:
            text = await _flawed(vault, 0)
        assert f"backup {place(0).backup}: chunk 0 ({key} on shelf) is damaged" in text
    assert idle <= (0 if vault.key_id else _IDLE_BITS)
    for length in range(len(whole)):
        shelf.objects[key] = whole[:length]
        await _flawed(vault, 0)
    shelf.objects[key] = whole + b"\0"
    await _flawed(vault, 0)
    shelf.objects[key] = whole
    assert (await vault.verify(place(0))).chunks == 1


async def test_a_manifest_whose_bytes_changed_is_not_believed(vault: Vault, shelf: Shelf) -> None:
    await keep(vault, place(0), Disk(CHUNK * 3).copy(whole=True))
    key = f"{FOLDER}/{place(0).backup}/manifest"
    whole, manifest = shelf.objects[key], await vault.read_manifest(place(0))
    idle = 0
    for position in range(len(whole) * 8):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        shelf.objects[key] = bytes(data)
        try:
            assert await vault.read_manifest(place(0)) == manifest
            idle += 1
            continue
        except (Damaged, WrongKey):
            pass
        with pytest.raises((Damaged, WrongKey), match=place(0).backup):
            await vault.verify(place(0))
    assert idle <= (0 if vault.key_id else _IDLE_BITS)


async def test_chunks_that_are_missing_or_changed_places_are_found_and_all_of_them_named(
    vault: Vault, shelf: Shelf
) -> None:
    disk = Disk(CHUNK * 4)
    for number in range(4):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    await keep(vault, place(0), disk.copy(whole=True))
    found = await vault.verify(place(0))
    assert (found.chunks, found.size_bytes) == (4, CHUNK * 4)
    one, two, three, _ = _chunk_keys(shelf)
    shelf.objects[one], shelf.objects[two] = shelf.objects[two], shelf.objects[one]
    del shelf.objects[three]
    with pytest.raises(Damaged) as caught:
        await vault.verify(place(0))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for key, what in ((one, "is damaged"), (two, "is damaged"), (three, "is missing")):
        assert [line for line in lines if key in line and what in line]


async def test_a_chunk_of_another_backup_in_its_place_is_found_although_its_name_is_right(shelf: Shelf) -> None:
    vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
    disk = Disk(CHUNK)
    disk.write(0, b"a")
    for number in (0, 1):
        await keep(vault, place(number), disk.copy(whole=True))
    one, two = _chunk_keys(shelf)
    shelf.objects[one] = shelf.objects[two]  # sealed for another place
    assert "its seal is broken" in await _flawed(vault, 0)


async def test_the_note_of_what_is_being_deleted_is_no_manifest_by_another_name(shelf: Shelf) -> None:
    vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
    await chain(vault, 1)
    shelf.steps_left, shelf.dies = 5, "after"
    with pytest.raises(Killed):
        await vault.discard(place(0), [])
    shelf.steps_left = None
    folder = f"{FOLDER}/{place(0).backup}"
    shelf.objects[f"{folder}/manifest"] = shelf.objects.pop(f"{folder}/deleted")
    with pytest.raises(Damaged, match="its seal is broken"):
        await vault.read_manifest(place(0))


async def test_a_manifest_of_another_backup_in_its_place_is_not_believed(vault: Vault, shelf: Shelf) -> None:
    await chain(vault, 2)
    shelf.objects[f"{FOLDER}/{place(0).backup}/manifest"] = shelf.objects[f"{FOLDER}/{place(1).backup}/manifest"]
    with pytest.raises(Damaged, match=place(0).backup):
        await vault.read_manifest(place(0))


async def test_what_unpacks_to_more_than_a_chunk_is_not_unpacked(shelf: Shelf) -> None:
    vault = Vault(shelf, "0a1b2c3d", None, CHUNK)
    disk = Disk(CHUNK)
    disk.write(0, b"a")
    await keep(vault, place(0), disk.copy(whole=True))
    (key,) = _chunk_keys(shelf)
    shelf.objects[key] = shelf.objects[key][:41] + zlib.compress(bytes(100_000_000))
    assert "cannot be unpacked" in await _flawed(vault, 0)


@pytest.mark.parametrize(
    ("theirs", "mine", "text"),
    [
        (KEY, None, "was sealed with the key [0-9a-f]{8}, and vpsd has no key"),
        (None, KEY, "was not sealed, and vpsd has the key [0-9a-f]{8}"),
        (KEY, KEY[::-1], "was sealed with the key [0-9a-f]{8}, and vpsd has the key [0-9a-f]{8}"),
    ],
)
async def test_a_backup_of_another_key_is_told_as_that(
    shelf: Shelf, theirs: bytes | None, mine: bytes | None, text: str
) -> None:
    held = await chain(Vault(shelf, "0a1b2c3d", theirs, CHUNK), 2)
    vault = Vault(shelf, "0a1b2c3d", mine, CHUNK)
    lying = dict(shelf.objects)
    for doing in (
        vault.read_manifest(place(0)),
        vault.verify(place(0)),
        vault.discard(place(0), []),
        vault.discard(place(2), [place(0)]),
        keep(vault, place(2), Disk(CHUNK).copy(whole=False), place(1)),
    ):
        with pytest.raises(WrongKey, match=text):
            await doing
    assert shelf.objects == lying
    assert await restored(Vault(shelf, "0a1b2c3d", theirs, CHUNK), place(1)) == held[1]


def test_a_keys_id_tells_keys_apart_and_none_from_any() -> None:
    one, two = Vault(Shelf(), "a", KEY), Vault(Shelf(), "b", KEY[::-1])
    assert one.key_id is not None
    assert len(one.key_id) == 8
    assert one.key_id != two.key_id
    assert one.key_id not in KEY.hex()
    assert Vault(Shelf(), "c", KEY).key_id == one.key_id
    assert Vault(Shelf(), "a", None).key_id is None


async def _forged(vault: Vault, change: dict[str, object]) -> None:
    manifest = Manifest(
        server=SERVER,
        backup=place(0).backup,
        created_at_ms=0,
        size_bytes=CHUNK,
        chunk_bytes=CHUNK,
        facts={},
        owners=[],
        chunks=[None],
    )
    content = {**msgspec.to_builtins(manifest), **change}
    text = msgspec.json.encode(content)
    await vault._put(place(0), "manifest", vault.digest(SERVER, text), text)


@pytest.mark.parametrize(
    "change",
    [
        {"owners": ["../../../../somewhere"], "chunks": [[0, "0" * 64]]},
        {"owners": ["0" * 36 + "\n"], "chunks": [[0, "0" * 64]]},
        {"owners": [place(0).backup], "chunks": [[0, "../" + "0" * 61]]},
        {"owners": [place(0).backup], "chunks": [[1, "0" * 64]]},
        {"owners": [place(0).backup], "chunks": [[-1, "0" * 64]]},
        {"chunks": []},
        {"chunks": [None, None]},
        {"chunk_bytes": 0},
        {"size_bytes": -1},
        {"server": place(0).backup},
        {"version": "1"},
    ],
)
async def test_a_manifest_that_leads_elsewhere_or_does_not_fit_is_damaged(
    vault: Vault, change: dict[str, object]
) -> None:
    await _forged(vault, change)
    with pytest.raises(Damaged, match=place(0).backup):
        await vault.read_manifest(place(0))


async def test_a_chunk_of_another_size_than_the_manifest_says_is_damaged(vault: Vault) -> None:
    digest = vault.digest(SERVER, b"a" * CHUNK)
    await vault.put_chunk(place(0), digest, b"a" * CHUNK)
    named = {"owners": [place(0).backup], "chunks": [[0, digest]]}
    await _forged(vault, {"size_bytes": CHUNK * 2, "chunk_bytes": CHUNK * 2, **named})
    assert "another chunk" in await _flawed(vault, 0)


async def test_a_manifest_of_a_later_vpsd_is_told_as_that(vault: Vault, shelf: Shelf) -> None:
    await _forged(vault, {"version": 2, "chunks": "something new"})
    with pytest.raises(Unusable, match=r"another version of vpsd \(format 2\)") as caught:
        await vault.read_manifest(place(0))
    assert not isinstance(caught.value, Damaged)
    with pytest.raises(Unusable, match="format 2"):
        await vault.discard(place(0), [])
    assert shelf.objects


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("victim", [0, 1, 2, 3])
async def test_a_discard_killed_at_every_step_never_leaves_what_looks_whole_and_is_not_and_is_repeated(
    dies: str, victim: int
) -> None:
    for step in itertools.count(1):
        shelf = Shelf()
        vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
        held = await chain(vault, 4)
        others = [place(number) for number in held if number != victim]
        shelf.steps_left, shelf.dies = step, dies  # type: ignore[assignment]
        try:
            await vault.discard(place(victim), others)
        except Killed:
            ended = False
        else:
            ended = True
        shelf.steps_left = None
        if place(victim).backup in shelf.manifests():
            assert await restored(vault, place(victim)) == held[victim]
        await vault.discard(place(victim), others)
        del held[victim]
        assert shelf.manifests() == {other.backup for other in others}
        for number, content in held.items():
            assert await restored(vault, place(number)) == content
        named = set[tuple[str, str]]().union(*[(await vault.read_manifest(other)).named() for other in others])
        assert {(key.split("/")[-2], key.split("/")[-1]) for key in _chunk_keys(shelf)} == named
        for number in list(held):
            del held[number]
            await vault.discard(place(number), [place(left) for left in held])
        assert shelf.objects == {}
        if ended:
            break
    assert step > 8


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_the_last_backup_takes_what_deleted_ones_left_for_it_also_when_it_is_killed(dies: str) -> None:
    for step in itertools.count(1):
        shelf = Shelf()
        vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
        await chain(vault, 3)
        await vault.discard(place(0), [place(1), place(2)])
        await vault.discard(place(1), [place(2)])
        assert [key for key in shelf.objects if place(0).backup in key]
        shelf.steps_left, shelf.dies = step, dies  # type: ignore[assignment]
        try:
            await vault.discard(place(2), [])
        except Killed:
            shelf.steps_left = None
            await vault.discard(place(2), [])
            assert shelf.objects == {}
        else:
            break
    assert step > 8


async def test_two_discards_killed_between_leave_nothing_when_they_are_repeated(vault: Vault, shelf: Shelf) -> None:
    await chain(vault, 2)
    for number, others in ((0, [place(1)]), (1, [])):
        shelf.steps_left, shelf.dies = 6, "after"
        with pytest.raises(Killed):
            await vault.discard(place(number), others)
        shelf.steps_left = None
        assert place(number).backup not in shelf.manifests()
    await vault.discard(place(0), [])
    await vault.discard(place(1), [])
    assert shelf.objects == {}


async def test_what_is_not_there_is_discarded_with_success(vault: Vault, shelf: Shelf) -> None:
    await vault.discard(place(0), [])
    assert shelf.objects == {}


async def test_an_upload_that_failed_is_discarded_without_its_parents_chunks(vault: Vault, shelf: Shelf) -> None:
    held = await chain(vault, 2)
    await vault.put_chunk(place(9), "0" * 64, b"a")
    await vault.discard(place(9), [place(0), place(1)])
    assert not [key for key in shelf.objects if place(9).backup in key]
    assert await restored(vault, place(1)) == held[1]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
async def test_while_a_manifest_of_the_others_cannot_be_read_nothing_is_deleted(
    vault: Vault, shelf: Shelf, harm: str
) -> None:
    await chain(vault, 3)
    key = f"{FOLDER}/{place(2).backup}/manifest"
    if harm == "missing":
        del shelf.objects[key]
    else:
        shelf.objects[key] = shelf.objects[key][:-1]
    lying = dict(shelf.objects)
    with pytest.raises(Unusable, match=place(2).backup):
        await vault.discard(place(0), [place(1), place(2)])
    assert shelf.objects == lying


async def test_a_backup_whose_own_manifest_is_damaged_goes_and_the_others_stay_whole(
    vault: Vault, shelf: Shelf
) -> None:
    held = await chain(vault, 3)
    key = f"{FOLDER}/{place(0).backup}/manifest"
    shelf.objects[key] = shelf.objects[key][:-1]
    await vault.discard(place(0), [place(1), place(2)])
    assert shelf.manifests() == {place(1).backup, place(2).backup}
    for number in (1, 2):
        assert await restored(vault, place(number)) == held[number]


async def test_servers_have_nothing_to_do_with_each_other(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"a")
    other = Place(place(77).backup, place(0).backup)
    for where in (place(0), other):
        await keep(vault, where, disk.copy(whole=True))
    with pytest.raises(Unusable, match="built upon"):
        mine = await vault.read_manifest(other)
        assert isinstance(mine, Manifest)
        await keep(vault, place(1), disk.copy(whole=True), other)
    await vault.discard(place(0), [])
    assert await restored(vault, other) == bytes(disk.content)


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
