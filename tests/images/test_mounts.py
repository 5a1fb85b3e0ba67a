"""Builds that mount, and are killed: nothing stays mounted, and nothing is deleted through what did."""

import asyncio
import multiprocessing
import os
import select
import subprocess
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from tests.images.test_store import TINY, make_disk, silent
from vpsd.errors import Misconfigured
from vpsd.hypervisor.protocol import Progress
from vpsd.images import debian
from vpsd.images.programs import mounts_below, remove_tree
from vpsd.images.recipes import Build, Parts, Recipe
from vpsd.images.store import ImageStore

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts outside of a user namespace")

# In place of mmdebstrap: mounts like it does, and has a child; all hold the pipe at $ALIVE open while they live.
_MMDEBSTRAP = """#!/bin/sh
exec 3> "$ALIVE"
mkdir "$TMPDIR/root"
mount -t tmpfs none "$TMPDIR/root"
touch "$TMPDIR/root/inside"
sleep 1000 &
echo mounted >&3
wait
"""


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> Iterator[None]:
    yield
    for left in mounts_below(tmp_path, Path("/proc/self/mountinfo").read_text()):
        subprocess.run(["umount", "--lazy", left], check=False)


def _builder(_recipe: Recipe) -> Build:
    async def build(work: Path, log: Path, progress: Progress) -> Parts:
        await debian._bootstrap(work / "root.tar", [], work, log, progress)
        return Parts()

    return build


def _build_until_killed(folder: Path) -> None:
    asyncio.run(ImageStore(folder, _builder).ensure(TINY, silent))


def _quick_builder(_recipe: Recipe) -> Build:
    async def build(work: Path, log: Path, progress: Progress) -> Parts:
        make_disk(work / "disk.qcow2")
        return Parts()

    return build


def _mount(*argv: str | Path) -> None:
    subprocess.run(["mount", *argv], check=True)


def _read(pipe: FileIO) -> bytes | None:
    assert select.select([pipe], [], [], 30)[0], "nobody has written, and somebody still holds it open"
    return pipe.read(100)


@only_root
async def test_a_killed_build_takes_its_mounts_and_children_along_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, alive, folder = tmp_path / "bin", tmp_path / "alive", tmp_path / "images"
    programs.mkdir()
    (programs / "mmdebstrap").write_text(_MMDEBSTRAP)
    (programs / "mmdebstrap").chmod(0o755)
    os.mkfifo(alive)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("ALIVE", str(alive))
    process = multiprocessing.get_context("spawn").Process(target=_build_until_killed, args=(folder,))
    with os.fdopen(os.open(alive, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        process.start()
        assert _read(pipe) == b"mounted\n"
        reading = os.fdopen(os.open(alive, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    with reading:
        process.kill()
        process.join()
        assert _read(reading) == b""  # the last of them has ended
    assert (folder / "tiny/.work").exists()
    assert mounts_below(folder, Path("/proc/self/mountinfo").read_text()) == []
    image = await ImageStore(folder, _quick_builder).ensure(TINY, silent)
    assert {path.name for path in (folder / "tiny").iterdir()} == {image.disk.parent.name, "build.log"}


@only_root
async def test_what_an_older_vpsd_left_mounted_is_unmounted_and_not_deleted(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "images"
    inside = folder / "tiny/.work/a folder/root"
    inside.mkdir(parents=True)
    precious.mkdir()
    (precious / "file").write_text("kept")
    _mount("--bind", precious, inside)
    (inside / "proc").mkdir()
    _mount("-t", "tmpfs", "none", inside / "proc")
    image = await ImageStore(folder, _quick_builder).ensure(TINY, silent)
    assert (precious / "file").read_text() == "kept"
    assert {path.name for path in (folder / "tiny").iterdir()} == {image.disk.parent.name, "build.log"}


@only_root
async def test_what_cannot_be_unmounted_is_named_with_the_way_out_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious, inside, programs = tmp_path / "precious", tmp_path / "work/root", tmp_path / "bin"
    for folder in (precious, inside, programs):
        folder.mkdir(parents=True)
    (precious / "file").write_text("kept")
    _mount("--bind", precious, inside)
    (programs / "umount").write_text("#!/bin/sh\nexit 1\n")
    (programs / "umount").chmod(0o755)
    with monkeypatch.context() as changed:
        changed.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with pytest.raises(Misconfigured, match=f"umount --lazy '{inside}'"):
            await remove_tree(tmp_path / "work")
    assert (precious / "file").read_text() == "kept"
    await remove_tree(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    assert (precious / "file").exists()


def test_mounts_are_found_by_whole_names_and_the_innermost_first() -> None:
    points = ("/", "/w", "/w/a\\040b", "/w/a\\040b/c", "/work", "/w/a\\040b")
    text = "".join(f"{number} 1 0:1 / {point} rw - tmpfs none rw\n" for number, point in enumerate(points))
    assert [str(path) for path in mounts_below(Path("/w"), text)] == ["/w/a b", "/w/a b/c", "/w/a b", "/w"]
