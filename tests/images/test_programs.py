"""Running programs of the host."""

import asyncio
import os
from pathlib import Path

import pytest

from vpsd.errors import Misconfigured, Unavailable, Unusable
from vpsd.images.programs import require, run


async def test_a_program_gives_its_output_and_logs_its_errors(tmp_path: Path) -> None:
    said: list[str] = []
    script = "echo out; echo one >&2; echo two >&2"
    assert await run("sh", "-c", script, log=tmp_path / "log", timeout_seconds=10, on_line=said.append) == "out\n"
    assert said == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


async def test_a_failing_program_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"sh failed \(3\): the disk is full"):
        await run("sh", "-c", "echo the disk is full >&2; exit 3", log=tmp_path / "log", timeout_seconds=10)


async def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(Unavailable, match="did not finish within"):
        await run("sh", "-c", script, log=tmp_path / "log", timeout_seconds=0.3, error=Unavailable)
    await until_gone(int((tmp_path / "child").read_text()))


async def test_a_cancelled_program_is_ended_with_its_children(tmp_path: Path) -> None:
    begun = asyncio.Event()
    script = "sleep 1000 & echo $! >&2; wait"
    children: list[int] = []

    def record(line: str) -> None:
        children.append(int(line))
        begun.set()

    task = asyncio.create_task(run("sh", "-c", script, log=tmp_path / "log", timeout_seconds=60, on_line=record))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_gone(children[0])


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.01)


def test_a_missing_program_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/nonexistent"})
    with pytest.raises(Misconfigured, match="mmdebstrap missing on this machine; apt-get install mmdebstrap"):
        require("mmdebstrap")
