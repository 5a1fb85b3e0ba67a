"""The store with builders that write small disk images in no time."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.images.synthetic import bios_disk, qcow2_of
from vpsd.core.units import MIB
from vpsd.errors import Invalid, Misconfigured, NotFound, Unavailable, Unusable
from vpsd.hypervisor.protocol import Progress
from vpsd.images.recipes import Build, Parts, Recipe, StoredImage
from vpsd.images.store import ImageStore

TINY = Recipe(slug="tiny", kind="tiny")


def make_disk(path: Path, *options: str, form: str = "qcow2", size: str = "1M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", form, *options, str(path), size], check=True)
    return path


def silent(_fraction: float, _text: str) -> None:
    pass


class Builders:
    """Gives builders, and counts what they build."""

    def __init__(self) -> None:
        self.built = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    def build_of(self, recipe: Recipe) -> Build:
        async def build(work: Path, log: Path, progress: Progress) -> Parts:
            self.built += 1
            (work / "rubbish").write_text("half")
            self.begun.set()
            await self.gate.wait()
            if self.error:
                raise self.error
            (work / "rubbish").unlink()
            make_disk(work / "disk.qcow2")
            (work / "vmlinux").write_text(f"{recipe.slug} {self.built}")
            return Parts(kernel="vmlinux", cmdline="quiet")

        return build


@pytest.fixture
def builders() -> Builders:
    return Builders()


@pytest.fixture
def store(tmp_path: Path, builders: Builders) -> ImageStore:
    return ImageStore(tmp_path / "images", builders.build_of)


async def test_a_missing_image_is_built_and_kept(store: ImageStore, builders: Builders) -> None:
    assert store.get("tiny") is None
    image = await store.ensure(TINY, silent)
    assert image.disk.exists()
    assert image.kernel is not None
    assert image.kernel.read_text() == "tiny 1"
    assert (image.virtual_size_bytes, image.cmdline, image.initrd) == (1024 * 1024, "quiet", None)
    assert image.key == f"tiny-{image.disk.parent.name}"
    assert await store.ensure(TINY, silent) == image == store.get("tiny")
    assert builders.built == 1
    assert [stored.key for stored in store.available()] == [image.key]


async def test_two_who_ask_at_once_get_one_build(store: ImageStore, builders: Builders) -> None:
    builders.gate.clear()
    said: list[str] = []

    def second(_fraction: float, text: str) -> None:
        said.append(text)
        builders.gate.set()

    images = await asyncio.gather(store.ensure(TINY, silent), store.ensure(TINY, second))
    assert images[0] == images[1]
    assert builders.built == 1
    assert set(said) == {"waiting for another build of tiny"}


async def test_a_new_build_has_another_key_and_leaves_the_old_files(store: ImageStore) -> None:
    first = await store.build(TINY, silent)
    second = await store.build(TINY, silent)
    assert first.key != second.key
    assert first.disk.exists()
    assert store.get("tiny") == second
    await store.build(TINY, silent)
    assert not first.disk.exists()
    assert second.disk.exists()


async def test_a_new_build_is_the_one_in_use_although_a_clock_that_was_ahead_made_the_old_one(
    store: ImageStore, tmp_path: Path
) -> None:
    await store.build(TINY, silent)
    (manifest,) = (tmp_path / "images/tiny").glob("*/image.json")
    manifest.chmod(0o644)
    made = msgspec.json.decode(manifest.read_bytes(), type=StoredImage)
    manifest.write_bytes(msgspec.json.encode(msgspec.structs.replace(made, made_at="2099-12-31T23:59:59.000000+00:00")))
    second = await store.build(TINY, silent)
    assert store.get("tiny") == second


async def test_a_failed_build_leaves_nothing_and_the_old_image(store: ImageStore, builders: Builders) -> None:
    good = await store.build(TINY, silent)
    builders.error = Unavailable("no mirror")
    with pytest.raises(Unavailable, match="no mirror"):
        await store.build(TINY, silent)
    assert store.get("tiny") == good
    assert not list(good.disk.parents[2].rglob("rubbish"))


async def test_a_cancelled_build_leaves_nothing(store: ImageStore, builders: Builders, tmp_path: Path) -> None:
    builders.gate.clear()
    task = asyncio.create_task(store.ensure(TINY, silent))
    await builders.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list(tmp_path.rglob("rubbish"))
    assert store.available() == []


def build_until_killed(folder: Path) -> None:
    def build_of(_recipe: Recipe) -> Build:
        async def build(work: Path, log: Path, progress: Progress) -> Parts:
            make_disk(work / "disk.qcow2")
            os.kill(os.getpid(), signal.SIGKILL)
            return Parts()

        return build

    asyncio.run(ImageStore(folder, build_of).ensure(TINY, silent))


async def test_a_killed_build_looks_like_none_and_the_next_one_cleans_up(store: ImageStore, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=build_until_killed, args=(tmp_path / "images",))
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "images/tiny/.work/disk.qcow2").exists()
    assert store.get("tiny") is None
    assert store.available() == []
    image = await store.ensure(TINY, silent)
    assert sorted(path.name for path in (tmp_path / "images/tiny").iterdir()) == [image.disk.parent.name, "build.log"]


async def test_a_manifest_whose_files_are_gone_is_no_image(store: ImageStore) -> None:
    image = await store.ensure(TINY, silent)
    image.disk.unlink()
    assert store.get("tiny") is None


async def test_a_removed_image_is_gone_and_the_rest_stays(store: ImageStore, tmp_path: Path) -> None:
    await store.ensure(TINY, silent)
    await store.ensure(Recipe(slug="other", kind="tiny"), silent)
    await store.remove("tiny")
    assert [stored.slug for stored in store.available()] == ["other"]
    assert not (tmp_path / "images/tiny").exists()
    with pytest.raises(NotFound):
        await store.remove("tiny")


@pytest.mark.parametrize("slug", ["", "..", "../x", "a/b", "Tiny", ".locks", "a."])
def test_a_slug_cannot_leave_the_folder(store: ImageStore, slug: str) -> None:
    with pytest.raises(Invalid):
        store.get(slug)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_an_imported_disk_becomes_a_qcow2(store: ImageStore, tmp_path: Path, form: str) -> None:
    disk = bios_disk(tmp_path / "mine.img", 3 * MIB)
    if form == "qcow2":
        qcow2_of(disk).rename(disk)
    image = await store.import_file("mine", disk, silent)
    assert image.disk.read_bytes()[:4] == b"QFI\xfb"
    assert image.virtual_size_bytes == 3 * 1024 * 1024
    assert store.available()[0].source == f"import {tmp_path / 'mine.img'}"


async def test_a_file_that_is_no_disk_is_not_imported(store: ImageStore, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("these are notes, not a disk\n" * 100)
    with pytest.raises(Unusable, match="is not a bootable disk"):
        await store.import_file("mine", notes, silent)
    assert store.available() == []


async def test_an_import_that_stands_on_another_file_is_refused(store: ImageStore, tmp_path: Path) -> None:
    secret = make_disk(tmp_path / "secret.img", form="raw")
    disk = make_disk(tmp_path / "evil.qcow2", "-b", str(secret), "-F", "raw")
    with pytest.raises(Unusable, match="backing file"):
        await store.import_file("evil", disk, silent)
    assert store.available() == []


async def test_an_import_with_its_data_elsewhere_is_refused(store: ImageStore, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "evil.qcow2", "-o", f"data_file={tmp_path / 'data.raw'}")
    with pytest.raises(Unusable, match="another file"):
        await store.import_file("evil", disk, silent)


async def test_an_import_of_another_format_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="is a VMDK image"):
        await store.import_file("odd", make_disk(tmp_path / "odd.vmdk", form="vmdk"), silent)


async def test_an_import_of_no_file_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="is not a file"):
        await store.import_file("none", tmp_path / "none.img", silent)


async def test_an_image_that_people_bring_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="vpsd image import mine FILE"):
        await ImageStore(tmp_path).ensure(Recipe(slug="mine", kind="import"), silent)
