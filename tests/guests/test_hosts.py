"""A second host, a libvirtd of its own: a real server lives there, and on the first one after the second is off."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import psutil
import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until
from vpsd.hypervisor.libvirt import daemon

pytestmark = pytest.mark.guest


@pytest.fixture
def second() -> Iterator[Path]:
    """The folder of another host; nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="host-", dir="/tmp"))  # short: unix sockets lie below it
    daemon.ensure_running(folder)
    yield folder
    power_off(folder)
    shutil.rmtree(folder)


def power_off(folder: Path) -> None:
    """Everything of the host ends at once, its guests too."""
    daemon.stop_own_daemon(folder)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{folder}/pool/" in part for part in process.cmdline()) and "qemu" in process.name():
                process.kill()
                process.wait(30)


def start_by_hand(folder: Path, name: str) -> None:
    host = libvirt.open(daemon.uri(folder))
    try:
        with contextlib.suppress(libvirt.libvirtError):  # vpsd may cut its power before it is all up
            host.lookupByName(name).create()
    finally:
        host.close()


def is_running(folder: Path, name: str) -> bool:
    host = libvirt.open(daemon.uri(folder))
    try:
        return bool(host.lookupByName(name).isActive())
    finally:
        host.close()


def test_a_server_lives_on_another_host_and_on_this_one_once_that_is_off(
    vpsd: Vpsd, host: Host, key: Path, key_id: int, second: Path
) -> None:
    (here,) = [one["name"] for one in vpsd.run_json("host", "list")]
    # by force: guests are emulated here, which a host that is added should not do
    added = vpsd.run("host", "add", "second", "--uri", daemon.uri(second), "--pool", str(second / "pool"), "--force")
    assert added.returncode == 0, added.stderr
    vpsd.run_json("host", "disable", here)
    server = vpsd.create("mover", ssh_key_id=key_id)["id"]
    vpsd.run_json("host", "enable", here)
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    login.run("echo kept > /root/note; sync")
    assert is_running(second, host.name(server))
    assert host.name(server) not in host.guests()
    backup = vpsd.until_copied(vpsd.post("backups/", {"server_id": server}))
    assert vpsd.run_json("check") == []

    power_off(second)
    until(lambda: vpsd.run_json("host", "show", "second")["health"] == "unreachable", "the loss to be noticed")
    assert vpsd.get(f"servers/{server}/")["status"] == "active"  # nobody knows better
    assert "does not mean that its servers are off" in vpsd.run("host", "evacuate", "second").stderr
    (moved,) = vpsd.run_json("host", "evacuate", "second", "--fenced")
    assert (moved["to"], moved["backup_id"], moved["why"]) == (here, backup["id"], None)
    until(lambda: host.name(server) in host.guests(), "its guest to be made here")
    host.until_at_rest([server])
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    assert login.run("cat /root/note") == "kept"

    vpsd.post(f"servers/{server}/stop/")  # both hosts are this machine, and its ports are there once
    vpsd.until_status(server, "stopped")
    daemon.ensure_running(second)
    start_by_hand(second, host.name(server))  # as a host does that comes back and starts its guests
    until(lambda: not is_running(second, host.name(server)), "the old guest to be off")
    assert vpsd.get(f"servers/{server}/")["status"] == "stopped"
    until(lambda: vpsd.run_json("host", "show", "second")["health"] == "ok", "the host to be back")
    findings = vpsd.run_json("check", "--fix")
    assert [(one["name"], one["fixed"]) for one in findings] == [(host.name(server), "removed from the host")]
    assert vpsd.run_json("check") == []
    vpsd.delete(server)
    host.until_at_rest([server])
    vpsd.run_json("host", "remove", "second")
