"""One vpsd with real guests for all tests of this room, as `make run` starts it.

The room runs in one worker (see `tests/scheduling.py`). Debian 12 is ordered at the beginning: its image is built and
it boots beside the other tests.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until
from vpsd.hypervisor.libvirt import connect, daemon

# Of the very options by which vpsd lets the root password in: what it adds has to stand beside them.
USER_DATA = """#cloud-config
users: [{name: ann}]
write_files: [{path: /root/written, content: of its own}]
runcmd: [echo $(id -un) > /root/ran]
"""
DEBIAN = {"plan_id": 1, "os_id": 3, "user_data": USER_DATA}


@pytest.fixture(scope="session")
def vpsd() -> Iterator[Vpsd]:
    """A running vpsd; at the end it has no servers, and nothing on the host is without an owner."""
    # other test runs on this machine take other addresses
    running = Vpsd(address_pool=f"127.77.{os.getpid() % 250}.0/24", workers=8, grace_hours=0, vcpu_overcommit=32)
    if os.geteuid() == 0:
        connect.remember(connect.Choice("own", "", ""), running.data)  # also beside a system's libvirt
    if images := os.environ.get("TEST_IMAGES_DIR"):
        (running.data / "images").symlink_to(Path(images).absolute())
    try:
        running.start()
        _offer_larger_disk(running)
        yield running
        _let_go(running)
    finally:
        print(running.said())
        _clean_up(running)


def _offer_larger_disk(vpsd: Vpsd) -> None:
    """Plan 5: the nano with a larger disk."""
    file = vpsd.data / "catalog.toml"
    nano = next(part for part in file.read_text().split("[[plans]]") if "id = 4\n" in part).partition("[[")[0]
    for old, new in (("id = 4", "id = 5"), ("Nano VPS", "Wide VPS"), ('"nano"', '"wide"'), ("_gb = 2\n", "_gb = 5\n")):
        assert old in nano
        nano = nano.replace(old, new)
    file.write_text(f"{file.read_text()}\n[[plans]]{nano}")
    done = vpsd.run("catalog", "apply")
    assert done.returncode == 0, done.stderr


def _let_go(vpsd: Vpsd) -> None:
    host = Host(vpsd)
    servers = [server["id"] for server in vpsd.get("servers/")["results"]]
    for server in servers:
        vpsd.delete(server)
    host.until_at_rest(servers)
    for what in ("backups", "snapshots"):
        for copy in vpsd.get(f"{what}/")["results"]:
            assert vpsd.ask("DELETE", f"{what}/{copy['id']}/").status_code == 204
    until(lambda: not vpsd.objects(), "the target to be empty")
    assert vpsd.run_json("check") == []
    assert vpsd.rows("SELECT * FROM addresses WHERE released_at_ms IS NULL") == []
    assert host.guests() == {}
    assert (
        not host.volumes().disks
        | host.volumes().seeds
        | host.volumes().unknown
        | host.volumes().exports
        | host.volumes().logs
    )
    assert vpsd.interrupt() == 0


def _clean_up(vpsd: Vpsd) -> None:
    """Also after tests that failed: no guest and no daemon outlives them."""
    if (vpsd.data / "vpsd.sqlite").exists():
        host = Host(vpsd)
        for name in host.guests():
            host.remove(name)
    daemon.stop_own_daemon(vpsd.data)
    vpsd.discard()


@pytest.fixture(scope="session")
def host(vpsd: Vpsd) -> Host:
    """The host behind it."""
    return Host(vpsd)


@pytest.fixture(scope="session")
def first_words(vpsd: Vpsd) -> str:
    """What vpsd printed at its first start."""
    until(lambda: re.search(r"^ +ssh .*\n", vpsd.said(), re.MULTILINE), "the lines to paste")  # the last that it says
    return vpsd.said()


@pytest.fixture(scope="session")
def first(first_words: str) -> Any:
    """The server that the printed curl line made: the answer to it."""
    line = re.search(r"^ +curl .*?}'$", first_words, re.MULTILINE | re.DOTALL)
    assert line is not None, first_words
    done = subprocess.run(["bash", "-c", f"{line.group()} --silent"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def first_login(vpsd: Vpsd, first: Any) -> Login:
    """Into that server, by its password."""
    detail = vpsd.until_status(first["id"], "active")
    return Login(detail["ssh"], password=first["password"])


@pytest.fixture(scope="session")
def debian(vpsd: Vpsd, first: Any) -> Any:
    """A Debian 12, ordered: the answer to that, and what its operation then said of the image."""
    answer = vpsd.create("debian", **DEBIAN)

    def said() -> str | None:
        operation = vpsd.operations(answer["id"])[0]
        detail: str | None = operation["detail"]
        return detail if operation["status"] == "running" and operation["progress"] > 0 else None

    return {**answer, "said": until(said, "progress of Debian's image")}


@pytest.fixture(scope="session", autouse=True)
def debian_ordered_early(request: pytest.FixtureRequest) -> None:
    """Order Debian before anything else where a test asks for it later."""
    if any("debian" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("debian")


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SSH key."""
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def key_id(vpsd: Vpsd, key: Path) -> int:
    """The same key, known to vpsd."""
    answer = vpsd.post("ssh-keys/", {"name": "test", "public_key": key.with_suffix(".pub").read_text()})
    key_id: int = answer["id"]
    return key_id
