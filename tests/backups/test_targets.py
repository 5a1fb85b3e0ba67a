"""Targets: objects are there whole or not at all, and every failure is told as what it is."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from moto.s3.models import s3_backends

from tests.backups.recording_target import CHUNK, KEY, Disk, backup_ref, chain, keep, restored
from tests.backups.services import Cut, complaining
from vpsd.backups.repository import Repository
from vpsd.backups.s3 import S3
from vpsd.backups.targets import Directory, Missing, Target, TargetFull, open_target
from vpsd.errors import Unavailable, Unusable
from vpsd.settings import Settings, load

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["directory", "s3", "s3 with a prefix"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """An empty target of each kind."""
    if request.param == "directory":
        return Directory(tmp_path / "backups")
    name, endpoint = request.getfixturevalue("bucket")
    return S3(name, "a/prefix" if "prefix" in request.param else "", endpoint, "us-east-1")


async def test_objects_come_back_are_listed_by_folder_and_go(target: Target) -> None:
    assert await target.keys("a/") == []
    await target.put("a/b/one", b"1")
    await target.put("a/b/two", bytes(2_000_000))
    await target.put("a/bb/three", b"")
    await target.put("a/b/one", b"11")
    assert await target.get("a/b/one") == b"11"
    assert await target.get("a/b/two") == bytes(2_000_000)
    assert await target.get("a/bb/three") == b""
    assert await target.keys("a/") == ["a/b/one", "a/b/two", "a/bb/three"]
    assert await target.keys("a/b/") == ["a/b/one", "a/b/two"]
    await target.delete(["a/b/one", "a/b/none", "c/none"])
    await target.delete(["a/b/one"])
    await target.delete([])
    assert await target.keys("a/") == ["a/b/two", "a/bb/three"]
    with pytest.raises(Missing, match=r"one|NoSuchKey"):
        await target.get("a/b/one")


async def test_an_object_is_created_once_and_whoever_comes_later_is_told_what_is_there(target: Target) -> None:
    assert await target.create("mark", b"1") == b"1"
    assert await target.create("mark", b"2") == b"1"
    assert await target.get("mark") == b"1"


async def test_of_two_that_create_an_object_in_a_bucket_at_once_one_wins(
    bucket: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, other = (S3(bucket[0], "", bucket[1], "us-east-1") for _ in range(2))
    look = target._get

    def meet(key: str) -> bytes:
        monkeypatch.setattr(target, "_get", look)
        other._put(key, b"other")  # after this one has looked
        raise Missing(key)

    monkeypatch.setattr(target, "_get", meet)
    assert await target.create("mark", b"mine") == b"other"


async def test_backups_of_a_chain_come_back_and_leave_nothing(target: Target) -> None:
    repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
    held = await chain(repository, 3)
    await repository.discard(backup_ref(1), [backup_ref(0), backup_ref(2)])
    for number in (0, 2):
        assert await restored(repository, backup_ref(number)) == held[number]
    await repository.discard(backup_ref(0), [backup_ref(2)])
    await repository.verify(backup_ref(2))
    await repository.discard(backup_ref(2), [])
    assert await target.keys("vpsd-0a1b2c3d/") == []


async def test_two_prefixes_of_a_bucket_do_not_see_each_other(bucket: tuple[str, str]) -> None:
    one, two = (S3(bucket[0], prefix, bucket[1], "us-east-1") for prefix in ("one", "one2"))
    await one.put("a/b", b"1")
    assert await two.keys("a/") == []
    await two.delete(["a/b"])
    assert await one.get("a/b") == b"1"


def test_the_settings_say_which_target(tmp_path: Path) -> None:
    assert open_target(Settings(data_dir=tmp_path)).name == f"directory {tmp_path}/backups"
    assert open_target(load({"VPSD_BACKUP_DIR": "/srv/backups"})).name == "directory /srv/backups"
    assert open_target(load({"VPSD_BACKUP_S3": "bucket"})).name == "s3 bucket"
    assert open_target(load({"VPSD_BACKUP_S3": "bucket/a/prefix"})).name == "s3 bucket/a/prefix"


def test_who_keeps_backups_in_a_folder_does_not_load_the_client_of_s3() -> None:
    program = "import sys, vpsd.backups.transfer; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# A directory


async def test_folders_and_files_are_their_owners_alone_and_empty_folders_go(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        target = Directory(tmp_path / "deep/backups")
        await target.put("a/b/one", b"1")
    finally:
        os.umask(old)
    for folder in ("deep", "deep/backups", "deep/backups/a", "deep/backups/a/b"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "deep/backups/a/b/one").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "deep/backups/a/b").iterdir()] == ["one"]
    await target.delete(["a/b/one"])
    assert list((tmp_path / "deep/backups").iterdir()) == []


_KILLED_WRITER = """
import os, sys
from pathlib import Path
from typing import BinaryIO
from vpsd.backups.targets import Directory

def die(*_):
    os._exit(9)

target = Directory(Path(sys.argv[1]))
target._make_folder(Path(sys.argv[1]) / "a/b")
setattr(*{"rename": (Path, "rename"), "fsync": (os, "fsync")}[sys.argv[2]], die)
target._put("a/b/one", b"x" * 10_000)
"""


@pytest.mark.parametrize("before", ["fsync", "rename"])
async def test_a_killed_writer_leaves_no_object_and_what_it_leaves_goes(tmp_path: Path, before: str) -> None:
    folder = tmp_path / "a/b"
    target = Directory(tmp_path)
    for again in (True, False):
        _die_writing(tmp_path, before)
        assert [path.name for path in folder.iterdir()] == [".one"]
        assert await target.keys("a/") == []
        with pytest.raises(Missing):
            await target.get("a/b/one")
        if again:
            await target.delete(["a/b/two"])
            assert list(tmp_path.iterdir()) == []
    await target.put("a/b/one", b"short")
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert await target.get("a/b/one") == b"short"


def _die_writing(folder: Path, before: str) -> None:
    command = [sys.executable, "-c", _KILLED_WRITER, str(folder), before]
    assert subprocess.run(command, cwd=ROOT).returncode == 9


async def test_two_writers_of_the_same_object_do_not_mix(tmp_path: Path) -> None:
    target = Directory(tmp_path)
    (tmp_path / "a").mkdir()
    with (tmp_path / "a/.one").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half of it")
        other.flush()
        with pytest.raises(Unavailable, match=r"one is being written by another process"):
            await target.put("a/one", b"another")
        (tmp_path / "a/.one").rename(tmp_path / "a/one")
    assert await target.get("a/one") == b"half of it"


async def test_a_part_that_became_an_object_while_it_was_opened_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Directory(tmp_path)
    lock = fcntl.flock
    held: list[BinaryIO] = []

    def slow(file: int, how: int) -> None:
        if not held:  # the other writer ended between our open and our lock
            held.append(Path(tmp_path / "a/.one").rename(tmp_path / "a/one").open("rb"))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    await target.put("a/one", b"mine")
    assert held[0].read() == b""  # its own bytes are as they were
    held[0].close()
    assert await target.get("a/one") == b"mine"


async def test_a_folder_that_somebody_takes_away_under_a_writer_is_made_again(tmp_path: Path) -> None:
    class Unlucky(Directory):
        left = 3

        def _make_folder(self, folder: Path) -> None:
            super()._make_folder(folder)
            if folder.name == "b" and self.left:
                self.left -= 1
                folder.rmdir()

    target = Unlucky(tmp_path)
    await target.put("a/b/one", b"1")
    assert await target.get("a/b/one") == b"1"
    target.left = 100
    with pytest.raises(Unavailable, match="a/b"):
        await target.put("a/b/two", b"1")


def test_a_disk_that_gets_full_is_told_and_what_is_on_it_stays_whole(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    mounted = [*unshare, "sh", "-ec", 'mount -t tmpfs -o size=1m tmpfs "$1"; shift; exec "$@"', "sh", str(tmp_path)]
    possible = subprocess.run([*mounted, "true"], capture_output=True, text=True)
    if possible.returncode:
        pytest.skip(f"no file system can be mounted here: {possible.stderr.strip()}")
    program = [sys.executable, "-m", "tests.backups.filling", str(tmp_path)]
    done = subprocess.run([*mounted, *program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, TargetFull, "is full"),
        (errno.EDQUOT, TargetFull, "is full"),
        (errno.EACCES, Unusable, "no access to .*a"),
        (errno.EPERM, Unusable, "no access to .*a"),
        (errno.EROFS, Unusable, "no access to .*a"),
        (errno.EIO, Unavailable, "Input/output error"),
        (errno.ESTALE, Unavailable, "[Ss]tale"),
    ],
)
async def test_what_the_system_refuses_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], text: str
) -> None:
    def refuse(self: Path, *arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    target = Directory(tmp_path)
    await target.put("a/one", b"0")
    for name in ("rename", "unlink", "read_bytes"):
        monkeypatch.setattr(Path, name, refuse)
    for doing in (target.put("a/one", b"1"), target.delete(["a/one"]), target.get("a/one")):
        with pytest.raises(kind, match=f"directory {tmp_path}.*{text}") as caught:
            await doing
        assert type(caught.value) is kind


async def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(Unusable, match="no access to"):
        await Directory(tmp_path).keys("a/")


async def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "backups").write_text("")
    with pytest.raises(Unavailable, match=f"directory {tmp_path}/backups"):
        await Directory(tmp_path / "backups").put("a/one", b"1")


# S3


async def test_more_keys_than_a_page_has_are_listed_and_deleted(bucket: tuple[str, str], moto: tuple[str, int]) -> None:
    target = S3(bucket[0], "many", bucket[1], "us-east-1")
    keys = [f"a/{number:04}" for number in range(1001)]
    backend = s3_backends["123456789012"]["aws"]  # the server's own: a thousand requests would only take long
    for key in keys:
        backend.put_object(bucket[0], f"many/{key}", b"")
    assert await target.keys("a/") == keys
    async with Cut(*moto).open() as way:
        await S3(bucket[0], "many", way.endpoint, "us-east-1").delete(keys)
        assert way.sent.count(b"POST /") == 2
    assert await target.keys("a/") == []


async def test_no_bucket_is_final(bucket: tuple[str, str]) -> None:
    target = S3("another", "", bucket[1], "us-east-1")
    for doing in (target.put("a", b""), target.get("a"), target.keys("a/"), target.delete(["a"])):
        with pytest.raises(Unusable, match="s3 another: NoSuchBucket") as caught:
            await doing
        assert type(caught.value) is Unusable


async def test_no_credentials_are_told(bucket: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Unusable, match=f"s3 {bucket[0]}: Unable to locate credentials"):
        await S3(bucket[0], "", bucket[1], "us-east-1").put("a", b"")


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as it said</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (403, _error("AccessDenied"), Unusable, "AccessDenied: as it said"),
        (403, _error("SignatureDoesNotMatch"), Unusable, "SignatureDoesNotMatch: as it said"),
        (403, _error("InvalidAccessKeyId"), Unusable, "InvalidAccessKeyId: as it said"),
        (403, _error("QuotaExceeded"), TargetFull, "QuotaExceeded: as it said .it is full"),
        (507, _error("XMinioStorageFull"), TargetFull, "it is full"),
        (507, b"", TargetFull, "it is full"),
        (503, _error("SlowDown"), Unavailable, "SlowDown: as it said"),
        (500, b"", Unavailable, "s3 backups"),
        (429, _error("TooManyRequests"), Unavailable, "TooManyRequests"),
        (400, _error("RequestTimeout"), Unavailable, "RequestTimeout"),
        (502, b"<html>Bad gateway</html>", Unavailable, "s3 backups"),
    ],
)
async def test_what_a_service_refuses_is_told_as_what_it_is(
    credentials: None, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, kind: type[Exception], text: str
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    with complaining(status, body) as endpoint:
        target = S3("backups", "", endpoint, "us-east-1")
        for doing in (target.put("a", b"1"), target.get("a"), target.keys("a/"), target.delete(["a"])):
            with pytest.raises(kind, match=f"s3 backups.*{text}" if "s3" not in text else text) as caught:
                await doing
            assert type(caught.value) is kind


@pytest.mark.parametrize(("code", "kind"), [("AccessDenied", Unusable), ("InternalError", Unavailable), ("", None)])
async def test_a_key_that_could_not_be_deleted_is_told(
    credentials: None, code: str, kind: type[Exception] | None
) -> None:
    error = f"<Error><Key>a</Key><Code>{code or 'NoSuchKey'}</Code><Message>as it said</Message></Error>"
    with complaining(200, f"<?xml version='1.0'?><DeleteResult>{error}</DeleteResult>".encode()) as endpoint:
        deleting = S3("backups", "", endpoint, "us-east-1").delete(["a"])
        if kind is None:
            await deleting
            return
        with pytest.raises(kind, match=f"{code}: as it said"):
            await deleting


async def test_a_service_that_is_not_there_is_worth_another_try(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    with complaining(200, b"") as endpoint:
        pass
    with pytest.raises(Unavailable, match="s3 backups does not answer"):
        await S3("backups", "", endpoint, "us-east-1").put("a", b"1")


async def test_a_connection_lost_midway_is_worth_another_try_which_goes_on(
    bucket: tuple[str, str], moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    disk = Disk(64 * 1024 * 8)
    disk.write(0, os.urandom(64 * 1024 * 8))
    copy = disk.copy(whole=True)
    async with Cut(*moto).open() as way:
        target = S3(bucket[0], "", way.endpoint, "us-east-1")
        repository = Repository(target, "0a1b2c3d", KEY, 64 * 1024)
        way.bytes_left = 64 * 1024 * 5
        with pytest.raises(Unavailable, match="does not answer"):
            await keep(repository, backup_ref(0), copy)
        way.bytes_left = None
        lying = await target.keys("vpsd-0a1b2c3d/")
        assert 0 < len(lying) < 8
        assert not [key for key in lying if key.endswith("/manifest")]
        way.sent.clear()
        stored = await keep(repository, backup_ref(0), copy)
        assert stored.sent_bytes < (9 - len(lying)) * (64 * 1024)
        assert not [key for key in lying if f"PUT /{bucket[0]}/{key} ".encode() in way.sent]
        assert await restored(repository, backup_ref(0)) == copy.content


def test_a_bucket_of_another_service_is_in_the_path_and_not_in_the_hosts_name(credentials: None) -> None:
    target = S3("backups", "", "https://s3.example.org", "us-east-1")
    url: str = target._client().generate_presigned_url("get_object", Params={"Bucket": "backups", "Key": "a/b"})
    assert url.startswith("https://s3.example.org/backups/a/b?")


async def test_other_services_than_aws_get_requests_that_they_know(
    bucket: tuple[str, str], moto: tuple[str, int]
) -> None:
    async with Cut(*moto).open() as way:
        target = S3(bucket[0], "", way.endpoint, None)
        await target.put("a/b", b"plain bytes")
        sent = bytes(way.sent)
        assert f"PUT /{bucket[0]}/a/b HTTP/1.1".encode() in sent
        assert b"Content-Length: 11\r\n" in sent
        assert b"x-amz-checksum" not in sent.lower()
        assert b"x-amz-trailer" not in sent.lower()
        assert b"aws-chunked" not in sent
        way.sent.clear()
        await target.delete(["a/b"])
        assert b"Content-MD5: " in way.sent
