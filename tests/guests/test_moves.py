"""The data folder of a vpsd that does not run is moved: its servers are there again, with what they hold."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd
from vpsd.hypervisor.libvirt import connect, daemon

pytestmark = pytest.mark.guest


@pytest.fixture
def mover() -> Iterator[Vpsd]:
    """A vpsd of this test's own, as root with a libvirtd of its own."""
    made = Vpsd(address_pool=f"127.78.{os.getpid() % 250}.0/24")
    connect.remember(connect.Choice("own", "", ""), made.data)
    if images := os.environ.get("TEST_IMAGES_DIR"):
        (made.data / "images").symlink_to(Path(images).absolute())
    try:
        yield made
    finally:
        print(made.said())
        if (made.data / "vpsd.sqlite").exists():
            host = Host(made)
            for name in host.guests():
                host.remove(name)
        daemon.stop_own_daemon(made.data)
        made.discard()


def _move(vpsd: Vpsd) -> None:
    """With `mv`, while nothing of it runs but its libvirtd."""
    vpsd.data = vpsd.data.rename(vpsd.data.with_name(f"{vpsd.data.name}-new"))
    vpsd.environment["VPSD_DATA_DIR"] = str(vpsd.data)


def _backing(disk: Path) -> str:
    told = subprocess.run(["qemu-img", "info", "-U", "--output=json", disk], capture_output=True, check=True).stdout
    name: str = json.loads(told)["backing-filename"]
    return name


@pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of vpsd's own is root's")
def test_a_server_boots_with_its_data_where_the_folder_is_by_now(mover: Vpsd) -> None:
    mover.start()
    made = mover.create("moved")
    detail = mover.until_status(made["id"], "active")
    Login(detail["ssh"], password=made["password"]).run("echo before > /root/note; sync")
    mover.post(f"servers/{made['id']}/stop/")
    mover.until_status(made["id"], "stopped")
    assert mover.interrupt() == 0
    (found,) = (mover.data / "pool").glob(f"{Host(mover).name(made['id'])}.*.qcow2")
    disk = found.relative_to(mover.data)
    base = _backing(found)
    assert "/" not in base
    absolute = ["-b", str(mover.data / "pool" / base), "-F", "qcow2"]  # as earlier vpsd named it
    subprocess.run(["qemu-img", "rebase", "-u", *absolute, str(mover.data / disk)], check=True)
    pid = daemon.running_pid(mover.data)
    assert pid is not None
    _move(mover)
    assert daemon.running_pid(mover.data) == pid  # it is still known as this folder's, and can be ended
    mover.start()
    copied = mover.until_copied(mover.post("backups/", {"server_id": made["id"]}))  # of one that is off
    assert copied["consistent"]
    assert _backing(mover.data / disk) == base
    mover.post(f"servers/{made['id']}/start/")
    detail = mover.until_status(made["id"], "active")
    assert Login(detail["ssh"], password=made["password"]).run("cat /root/note") == "before"
    assert mover.run_json("check") == []
    assert mover.interrupt() == 0
