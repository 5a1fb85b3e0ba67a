"""Backups of real guests, and what they are good for: they boot, and have what was there."""

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.guests.test_first_server import root_size_mb
from tests.guests.writing import start_writer, whole_lines, written
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest


def test_a_backup_of_a_guest_that_writes_has_no_torn_line_and_boots(
    vpsd: Vpsd, host: Host, key: Path, key_id: int
) -> None:
    server = vpsd.create("writes", ssh_key_id=key_id)["id"]
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    host.until_agent(server)
    start_writer(login)
    boot = login.boot_id
    backup = vpsd.until_copied(vpsd.post(f"servers/{server}/backup/", {"label": "while it writes"}))
    after = written(login)
    assert login.boot_id == boot  # it never stopped
    assert (backup["consistent"], backup["incremental"], backup["description"]) == (True, False, "while it writes")
    assert backup["paused_ms"] < 5000
    vpsd.post(f"backups/{backup['id']}/restore/")
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    assert 100 < whole_lines(login) <= after
    vpsd.delete(server)


def test_a_chain_of_five_without_its_middle_is_restored_in_place_and_to_a_new_server(
    vpsd: Vpsd, host: Host, key: Path, key_id: int
) -> None:
    server = vpsd.create("chained", ssh_key_id=key_id)["id"]
    before = vpsd.until_status(server, "active")
    login = Login(before["ssh"], key=key)
    host.until_agent(server)
    until(lambda: root_size_mb(login) > 0.95 * 2 * 1024, "the file system to fill the disk")
    chain = []
    for number in range(5):
        login.run(f"echo version {number} > /root/note; head -c 300000 /dev/urandom > /root/file{number}")
        login.run("cd /root; sha256sum file* > sums; sync")
        chain.append(vpsd.until_copied(vpsd.post(f"servers/{server}/snapshot/"), "snapshot"))
    assert [copy["incremental"] for copy in chain] == [False, True, True, True, True]
    assert all(copy["sent_mb"] < chain[0]["sent_mb"] / 2 for copy in chain[1:])
    assert vpsd.ask("DELETE", f"snapshots/{chain[2]['id']}/").status_code == 204
    until(lambda: not list((vpsd.data / "backups").rglob(f"{chain[2]['uuid']}/manifest")), "it to be deleted")
    login.run("rm /root/*")
    vpsd.post(f"snapshots/{chain[3]['id']}/restore/")
    made = vpsd.post(
        "servers/", {"name": "from-one", "plan_id": 4, "location": "us-west", "snapshot_id": chain[1]["id"]}
    )
    after = vpsd.until_status(server, "active")
    assert (after["ip_address"], after["uuid"]) == (before["ip_address"], before["uuid"])
    _holds(Login(after["ssh"], key=key), 3)
    new = Login(vpsd.until_status(made["id"], "active")["ssh"], password=made["password"])
    _holds(new, 1)
    assert new.machine_id != login.machine_id
    assert new.run("hostname") == "from-one"
    for one in (server, made["id"]):
        vpsd.delete(one)


def _holds(login: Login, version: int) -> None:
    assert login.run("cat /root/note") == f"version {version}"
    assert login.run("cd /root; sha256sum -c sums").count(": OK") == version + 1
    assert login.run("ls /root | wc -l") == str(version + 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_target_that_fills_up_in_the_middle_fails_the_backup_and_nothing_else(
    vpsd: Vpsd, host: Host, key: Path, key_id: int, tmp_path: Path
) -> None:
    server = vpsd.create("too-large", ssh_key_id=key_id)["id"]
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    vpsd.until_copied(vpsd.post("backups/", {"server_id": server}))
    login.run("head -c 12000000 /dev/urandom > /root/noise; sync")
    target = vpsd.data / "backups"
    stored, kept = sorted(vpsd.objects()), shutil.copytree(target, tmp_path / "kept")
    size_kb = 6 * 1024 + sum(path.stat().st_size // 1024 + 8 for path in stored)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", target], check=True)
    try:
        failed = vpsd.until_copied(vpsd.post("backups/", {"server_id": server}), status="failed")
        assert "not there now" in failed["error"]  # empty, it is not the target
        assert not list(target.iterdir())
        shutil.copytree(kept, target, dirs_exist_ok=True)
        failed = vpsd.until_copied(vpsd.post("backups/", {"server_id": server}), status="failed")
        assert "full" in failed["error"]
        until(lambda: sorted(vpsd.objects()) == stored, "what was sent to be taken away")
    finally:
        subprocess.run(["umount", target], check=True)
    assert vpsd.get(f"servers/{server}/")["status"] == "active"
    assert not host.volumes().exports
    vpsd.until_copied(vpsd.post("backups/", {"server_id": server}))
    vpsd.delete(server)


def test_vpsd_killed_at_the_steps_of_a_backup_and_a_restore_ends_with_both_done(
    vpsd: Vpsd, host: Host, key: Path, key_id: int
) -> None:
    servers = [vpsd.create(name, ssh_key_id=key_id)["id"] for name in ("backed-up", "put-back")]
    for server in servers:
        login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
        login.run("head -c 3000000 /dev/urandom > /root/noise; echo kept > /root/note; sync")
    host.until_no_image_is_made()
    backup = vpsd.until_copied(vpsd.post("backups/", {"server_id": servers[1]}))
    for moments in (
        ("copy_disk", "write_restored_disk"),
        ("store_copy", "shut_down"),
        ("drop_copy", "take_restored_disk"),
        ("drop_copy", "drop_old_disk"),
    ):
        made = vpsd.post("backups/", {"server_id": servers[0]})
        vpsd.post(f"backups/{backup['id']}/restore/")
        until(partial(_has_come_to, vpsd, servers, moments), f"one of {moments}")
        vpsd.kill()
        print("killed at", _open_steps(vpsd))
        vpsd.start()
        host.until_at_rest(servers)
        vpsd.until_copied(made)
        for server in servers:
            login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
            assert login.run("cat /root/note") == "kept"
        volumes = host.volumes()
        assert not volumes.exports
        for server in servers:
            assert len([disk for disk in volumes.disks if disk.partition(".")[0] == host.name(server)]) == 1
    assert vpsd.run_json("check") == []
    for server in servers:
        vpsd.delete(server)


def _open_steps(vpsd: Vpsd) -> list[tuple[Any, ...]]:
    return vpsd.rows("SELECT server_id, command, step FROM operations WHERE finished_at_ms IS NULL")


def _has_come_to(vpsd: Vpsd, servers: list[int], moments: tuple[str, str]) -> bool:
    """Whether one of the two is at its step, or both are done: what passes in a blink may be missed."""
    steps = [(server, step) for server, _, step in _open_steps(vpsd) if server in servers]
    return not steps or any(step in moments for _, step in steps)
