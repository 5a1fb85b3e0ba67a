"""Backups of a Debian 12, from its first to the server that is made of it, and the larger plan that it gets."""

from typing import Any

import msgspec
import pytest

from tests.guests.host import Host
from tests.guests.login import Login, ssh
from tests.guests.test_first_server import memory_mb, root_size_mb
from tests.guests.writing import start_writer, whole_lines, written
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest

STARTER, STANDARD, DEBIAN = 3, 1, 3
_IMAGE_AND_BOOT_SECONDS = 1200  # the image is built from packages
_HOST_KEY = "cat /etc/ssh/ssh_host_ed25519_key.pub"


class Machine(msgspec.Struct, frozen=True):
    """What a server is told apart by."""

    address: str
    machine_id: str
    host_key: str


class Backed(msgspec.Struct, frozen=True):
    """A Debian with two backups: what was on it at either, and what it was before anything was put back."""

    server_id: int
    password: str
    machine: Machine
    full: Any
    later: Any
    lines: tuple[int, int]  # of the log, when either was whole


def _machine(detail: Any, login: Login) -> Machine:
    return Machine(detail["ip_address"], login.machine_id, login.run(_HOST_KEY))


def _log_in(detail: Any, password: str) -> Login:
    login = Login(detail["ssh"], password=password)
    assert login.run("cloud-init status --wait").endswith("status: done")
    return login


def _holds(login: Login, version: int) -> None:
    assert login.run("cat /root/note") == f"version {version}"
    assert login.run("cd /root; sha256sum -c sums").count(": OK") == version


@pytest.fixture(scope="module")
def backed(vpsd: Vpsd, host: Host) -> Backed:
    """Made in minutes, by its first test."""
    made = vpsd.create("first", plan_id=STARTER, os_id=DEBIAN)
    detail = vpsd.until_status(made["id"], "active", _IMAGE_AND_BOOT_SECONDS)
    login = _log_in(detail, made["password"])
    host.until_agent(made["id"])
    machine, boot = _machine(detail, login), login.boot_id
    start_writer(login)
    backups, lines = [], []
    for version in (1, 2):
        login.run(f"cd /root; echo version {version} > note; head -c 20000000 /dev/urandom > file{version}")
        login.run("cd /root; sha256sum file* > sums")
        backups.append(vpsd.until_copied(vpsd.post("backups/", {"server_id": made["id"]})))
        lines.append(written(login))
    assert login.boot_id == boot  # it never stopped
    return Backed(made["id"], made["password"], machine, backups[0], backups[1], (lines[0], lines[1]))


def test_a_busy_debian_is_backed_up_at_rest_and_the_second_time_only_what_changed(backed: Backed) -> None:
    assert (backed.full["consistent"], backed.full["incremental"]) == (True, False)
    assert (backed.later["consistent"], backed.later["incremental"]) == (True, True)
    assert max(backed.full["paused_ms"], backed.later["paused_ms"]) < 5000
    assert backed.later["sent_mb"] < backed.full["sent_mb"] / 3


def test_a_debian_that_lost_everything_is_put_back_and_is_the_same_machine(vpsd: Vpsd, backed: Backed) -> None:
    login = Login(vpsd.get(f"servers/{backed.server_id}/")["ssh"], password=backed.password)
    login.run("rm -rf /root/* /home; echo lost > /root/note; sync")
    vpsd.post(f"backups/{backed.later['id']}/restore/")
    detail = vpsd.until_status(backed.server_id, "active")
    login = _log_in(detail, backed.password)
    _holds(login, 2)
    assert backed.lines[0] < whole_lines(login) <= backed.lines[1]
    assert _machine(detail, login) == backed.machine
    assert login.run("hostname; systemctl is-system-running --wait || systemctl --failed") == "first\nrunning"


def test_a_new_server_of_a_backup_has_what_was_there_and_is_a_machine_of_its_own(vpsd: Vpsd, backed: Backed) -> None:
    order = {"name": "second", "plan_id": STARTER, "location": "us-west"}
    made = vpsd.post("servers/", {**order, "backup_id": backed.full["id"]})
    detail = vpsd.until_status(made["id"], "active")
    login = _log_in(detail, made["password"])
    _holds(login, 1)
    assert 100 < whole_lines(login) <= backed.lines[0]
    assert login.run("hostname") == "second"
    assert ssh(detail["ssh"], "true", password=backed.password).returncode == 255
    mine, theirs = _machine(detail, login), backed.machine
    assert mine.address != theirs.address
    assert mine.host_key != theirs.host_key
    assert mine.machine_id != theirs.machine_id
    vpsd.delete(made["id"])


def test_a_debian_resized_after_a_restore_has_all_of_its_larger_plan(vpsd: Vpsd, backed: Backed) -> None:
    vpsd.post(f"servers/{backed.server_id}/resize/", {"plan_id": STANDARD})
    detail = vpsd.until_status(backed.server_id, "active")
    login = _log_in(detail, backed.password)
    plan = detail["plan"]
    assert plan["name"] == "Standard VPS"
    assert login.run("nproc") == str(plan["vcpus"])
    assert 0.9 < memory_mb(login) / plan["memory"] <= 1
    assert root_size_mb(login) > 0.95 * 1024 * plan["storage"]
    _holds(login, 2)
    assert _machine(detail, login) == backed.machine


def test_nothing_is_left_of_servers_and_backups_that_are_deleted(vpsd: Vpsd, host: Host, backed: Backed) -> None:
    assert vpsd.run_json("check") == []
    vpsd.delete(backed.server_id)
    host.until_at_rest([server for (server,) in vpsd.rows("SELECT id FROM servers")])
    for backup in (backed.full, backed.later):
        assert vpsd.ask("DELETE", f"backups/{backup['id']}/").status_code == 204
    until(lambda: not vpsd.objects(), "the target to be empty")
    assert vpsd.run_json("check") == []
    assert host.guests() == {}
    assert not host.volumes().disks | host.volumes().exports
