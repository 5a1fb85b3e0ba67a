"""Images, brought by hand beside a running vpsd, with progress."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.running import PROGRAM, Vpsd


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk image."""
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"], check=True)
    return path


def test_an_imported_image_is_listed_and_progress_is_plain_lines(vpsd: Vpsd, disk: Path) -> None:
    assert "debian-12" not in vpsd.run("image", "list").stdout
    done = vpsd.run("image", "import", "debian-12", str(disk))
    assert done.returncode == 0
    assert done.stdout.startswith("Image debian-12-")
    lines = done.stderr.splitlines()
    assert lines[0] == "debian-12:  20% converting the disk image"
    assert lines[-1] == "debian-12: 100% the image is ready"
    (listed,) = [image for image in vpsd.run_json("image", "list") if image["slug"] == "debian-12"]
    assert listed["source"] == f"import {disk}"
    assert listed["key"] in done.stdout
    assert listed["key"] in vpsd.run("image", "list").stdout


def test_progress_on_a_terminal_is_a_bar(vpsd: Vpsd, disk: Path) -> None:
    shown = on_terminal(vpsd, "image", "import", "ubuntu-22.04", str(disk), "--json")
    assert "━" in shown
    assert "100%" in shown


def on_terminal(vpsd: Vpsd, *arguments: str) -> str:
    """Run a command whose standard error is a terminal; what that showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=theirs, env={**vpsd.environment, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # how a terminal says that nobody writes to it any more
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("image", "import", "debian-12", "/nowhere/disk.qcow2"), "/nowhere/disk.qcow2 is not a file."),
        (
            ("image", "import", "hurd", "/nowhere/disk.qcow2"),
            "There is no operating system 'hurd'; `vpsd catalog show` lists them.",
        ),
        (("image", "pull", "tiny"), "to get tiny, use `vpsd image build`."),
        (("image", "build", "ubuntu-22.04"), "to get ubuntu-22.04, use `vpsd image pull`."),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(vpsd: Vpsd, arguments: tuple[str, ...], text: str) -> None:
    done = vpsd.run(*arguments)
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("vpsd: ")
