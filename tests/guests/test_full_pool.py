"""A real guest fills a real pool: it waits, is told of, and goes on with what it wrote, in the same boot."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until
from vpsd.hypervisor.libvirt import connect, daemon
from vpsd.hypervisor.protocol import PauseReason

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a pool that is small enough to fill"),
]

_POOL_MB = 320
_LEFT_MB = 60  # just enough for the server to be ordered
_WRITTEN_MB = 100
_WRITE = f"setsid sh -c 'dd if=/dev/zero of=/root/much bs=64k count={_WRITTEN_MB * 16} && sync; echo $? > /root/ended'"


@pytest.fixture
def pool() -> Iterator[Path]:
    """A pool of a size of its own."""
    path = Path(tempfile.mkdtemp(prefix="vpsd-pool-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_POOL_MB}m", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


@pytest.fixture
def small(vpsd: Vpsd, pool: Path) -> Iterator[Vpsd]:
    """A vpsd with that pool, and the images that the other one has."""
    small = Vpsd(address_pool=f"127.78.{os.getpid() % 250}.0/24", pool_dir=pool)
    (small.data / "images").symlink_to(vpsd.data / "images")
    connect.remember(connect.Choice("own", "", ""), small.data)
    try:
        small.start()
        yield small
    finally:
        print(small.said())
        host = Host(small)
        for name in host.guests():
            host.remove(name)
        daemon.stop_own_daemon(small.data)
        small.discard()


def free_mb(pool: Path) -> int:
    found = os.statvfs(pool)
    return found.f_bavail * found.f_frsize >> 20


def told(vpsd: Vpsd) -> list[str]:
    """What the events tell of pauses, oldest first."""
    found = [event["action"] for event in vpsd.get("account/events/?page_size=100")["results"]]
    return [action for action in reversed(found) if "paused" in action]


def test_a_guest_that_fills_the_pool_goes_on_in_the_same_boot_when_there_is_room(
    vpsd: Vpsd, first_login: Login, small: Vpsd, pool: Path, key: Path
) -> None:
    del first_login  # the image is made by then
    key_id = small.post("ssh-keys/", {"name": "test", "public_key": key.with_suffix(".pub").read_text()})["id"]
    server = small.create("writes-much", ssh_key_id=key_id)["id"]
    login, host = Login(small.until_status(server, "active")["ssh"], key=key), Host(small)
    boot_id, (process,) = login.boot_id, host.processes(server)
    ballast = pool / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (free_mb(pool) - _LEFT_MB) << 20)
    login.run(f"{_WRITE} > /dev/null 2>&1 < /dev/null &")

    until(lambda: told(small) == ["server.paused"], "the pause to be told")
    assert free_mb(pool) < 2
    small.kill()
    small.start()
    until(lambda: small.health().json()["hypervisor"]["storage"] == "full", "the pause to be seen by another process")
    assert small.health().json()["status"] == "degraded"
    found = {finding["kind"]: finding["text"] for finding in small.run_json("check")}
    assert PauseReason.STORAGE_FULL.text in found["server"]
    assert "MB are free in the pool" in found["storage"]
    refused = small.ask("POST", "servers/", {"name": "more", "plan_id": 4, "os_id": 1, "location": "us-west"})
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert small.get(f"servers/{server}/")["status"] == "active"

    ballast.unlink()
    until(lambda: told(small) == ["server.paused", "server.unpaused"], "the guest to go on")
    until(lambda: login.run("cat /root/ended 2> /dev/null || true") == "0", "the guest to have written everything")
    assert login.run("stat -c %s /root/much") == str(_WRITTEN_MB << 20)
    assert login.boot_id == boot_id
    assert host.processes(server) == [process]
    assert [operation["command"] for operation in small.operations(server)] == ["create"]
    until(lambda: small.health().json()["status"] == "ok", "the storage to be well")
    small.delete(server)
    host.until_at_rest([server])
    assert small.run_json("check") == []
