"""Images, brought by hand beside a running vpsd, with progress."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.images.synthetic import bios_disk, qcow2_of
from tests.running import PROGRAM, Vpsd
from vpsd.core.units import GIB, MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk image."""
    return qcow2_of(bios_disk(tmp_path / "disk.raw", 16 * MIB))


def test_an_imported_image_is_listed_and_progress_is_plain_lines(vpsd: Vpsd, disk: Path) -> None:
    assert "debian-12" not in vpsd.run("image", "list").stdout
    done = vpsd.run("image", "import", "debian-12", str(disk))
    assert done.returncode == 0
    assert done.stdout.startswith("Image debian-12-")
    lines = done.stderr.splitlines()
    assert lines[0] == "debian-12:  58% looking at the disk image"
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


def test_an_import_corrects_what_the_catalogue_says_of_its_disk_also_for_a_vpsd_that_starts_again(
    vpsd: Vpsd, tmp_path: Path
) -> None:
    def known() -> tuple[int, int]:
        systems = {system["id"]: system["min_disk_gb"] for system in vpsd.get("operating-systems/")["results"]}
        return systems[3], systems[5]

    disk = bios_disk(tmp_path / "large.raw", 2 * GIB + MIB)
    done = vpsd.run_json_with_progress("image", "import", "debian-12", str(disk))
    assert (done["min_disk_gb"], done["firmware"]) == (3, "bios")
    assert known()[0] == 3
    order = {"name": "small", "plan_id": 4, "os_id": 3, "location": "us-west"}
    refused = vpsd.ask("POST", "servers/", order)
    assert refused.status_code == 400
    assert refused.json() == {
        "plan_id": [
            "Debian 12 needs a disk of 3 GB, and the plan Nano VPS has 2. "
            "The smallest plan that fits is Starter VPS (3), with 40 GB."
        ]
    }
    assert vpsd.run("catalog", "apply").returncode == 0
    assert vpsd.run("catalog", "apply").stdout.startswith("The catalogue already matches")
    assert known()[0] == 3


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
