"""A real guest that grows, and one that is made anew."""

from pathlib import Path

import pytest

from tests.guests.login import Login
from tests.guests.test_first_server import memory_mb, root_size_mb
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest


def test_a_resized_server_has_more_memory_and_a_larger_disk_with_what_was_on_it(
    vpsd: Vpsd, key: Path, key_id: int
) -> None:
    server = vpsd.create("grows", ssh_key_id=key_id)["id"]
    before = vpsd.until_status(server, "active")
    login = Login(before["ssh"], key=key)
    login.run("echo kept > /root/note && sync")
    machine = login.machine_id
    answer = vpsd.post(f"servers/{server}/resize/", {"plan_id": 3})
    assert (answer["server"]["status"], "reboots once" in answer["message"]) == ("resizing", True)
    after = vpsd.until_status(server, "active")
    assert (after["plan"]["name"], after["ip_address"]) == ("Starter VPS", before["ip_address"])
    login = Login(after["ssh"], key=key)
    assert login.run("cat /root/note") == "kept"
    assert login.machine_id == machine
    assert memory_mb(login) > 0.8 * 2048
    until(lambda: root_size_mb(login) > 0.95 * 40 * 1024, "the file system to fill the larger disk")
    vpsd.delete(server)


def test_a_disk_grows_under_a_running_guest_and_its_file_system_at_the_next_boot(
    vpsd: Vpsd, key: Path, key_id: int
) -> None:
    server = vpsd.create("widens", ssh_key_id=key_id)["id"]
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    until(lambda: root_size_mb(login) > 0.95 * 2 * 1024, "the file system to fill the disk that it was given")
    boot = login.boot_id
    answer = vpsd.post(f"servers/{server}/resize/", {"plan_id": 5})
    assert "while it runs" in answer["message"]
    vpsd.until_status(server, "active")
    until(lambda: login.run("cat /sys/block/vda/size") == str(5 * 2**30 // 512), "the guest to see the larger disk")
    assert (login.boot_id, root_size_mb(login) < 2.1 * 1024) == (boot, True)
    vpsd.post(f"servers/{server}/reboot/")
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    until(lambda: root_size_mb(login) > 0.95 * 5 * 1024, "the file system to fill the larger disk")
    vpsd.delete(server)


def test_a_rebuilt_server_is_a_new_machine_at_the_old_address(vpsd: Vpsd) -> None:
    created = vpsd.create("anew")
    server = created["id"]
    before = vpsd.until_status(server, "active")
    login = Login(before["ssh"], password=created["password"])
    login.run("echo lost > /root/note && sync")
    machine = login.machine_id
    password = vpsd.post(f"servers/{server}/rebuild/", {"os_id": 1})["password"]
    assert password != created["password"]
    after = vpsd.until_status(server, "active")
    assert (after["uuid"], after["ip_address"]) == (before["uuid"], before["ip_address"])
    login = Login(after["ssh"], password=password)
    assert login.run("ls /root") == ""
    assert login.machine_id != machine
    vpsd.post(f"servers/{server}/power/", {"action": "hard_stop"})
    vpsd.until_status(server, "stopped")
    vpsd.delete(server)
