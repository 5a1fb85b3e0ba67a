"""Two servers with a key, through everything that befalls servers."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def ordered(vpsd: Vpsd, key_id: int) -> Iterator[list[Any]]:
    """Two servers, ordered at once: the answers."""
    made = [vpsd.create(name, ssh_key_id=key_id) for name in ("left", "right")]
    yield made
    for answer in made:
        if vpsd.ask("GET", f"servers/{answer['id']}/").status_code == 200:
            vpsd.delete(answer["id"])


def log_in(vpsd: Vpsd, server: Any, key: Path) -> Login:
    """To a server that is, or becomes, active."""
    return Login(vpsd.until_status(server["id"], "active")["ssh"], key=key)


def test_two_servers_with_one_key_have_nothing_else_in_common(vpsd: Vpsd, ordered: list[Any], key: Path) -> None:
    assert all("password" not in answer for answer in ordered)
    left, right = (log_in(vpsd, answer, key) for answer in ordered)
    assert len({left.machine_id, right.machine_id}) == 2
    show_key = "dropbearkey -y -f /etc/dropbear/dropbear_ed25519_host_key | grep ^ssh-"
    assert len({left.run(show_key), right.run(show_key)}) == 2
    assert len({vpsd.get(f"servers/{answer['id']}/")["ip_address"] for answer in ordered}) == 2


def test_a_new_hostname_arrives_with_the_next_boot(vpsd: Vpsd, ordered: list[Any], key: Path) -> None:
    server = ordered[0]["id"]
    login = log_in(vpsd, ordered[0], key)
    before = login.boot_id, login.machine_id
    answer = vpsd.ask("PATCH", f"servers/{server}/", {"hostname": "new.example.com"})
    assert answer.json()["hostname"] == "new.example.com"
    until(lambda: vpsd.operations(server)[-1]["finished_at"], "the seed")
    vpsd.post(f"servers/{server}/reboot/")
    login = log_in(vpsd, ordered[0], key)
    assert login.run("hostname; hostname -f") == "new\nnew.example.com"
    assert login.boot_id != before[0]
    assert login.machine_id == before[1]


def test_a_stop_is_asked_for_by_acpi_and_a_start_brings_the_same_machine_back(
    vpsd: Vpsd, host: Host, ordered: list[Any], key: Path
) -> None:
    server = ordered[1]["id"]
    login = log_in(vpsd, ordered[1], key)
    before = login.boot_id, login.machine_id
    login.run("echo kept > /root/file")
    vpsd.post(f"servers/{server}/stop/")
    vpsd.until_status(server, "stopped")
    last = vpsd.operations(server)[-1]
    assert (last["command"], last["status"], last["detail"]) == ("stop", "succeeded", "shut down by ACPI")
    assert host.processes(server) == []
    vpsd.post(f"servers/{server}/start/")
    login = log_in(vpsd, ordered[1], key)
    assert login.run("cat /root/file") == "kept"
    assert login.machine_id == before[1]
    assert login.boot_id != before[0]


def test_a_guest_that_powers_itself_off_is_stopped_within_five_seconds(
    vpsd: Vpsd, host: Host, ordered: list[Any], key: Path, record_property: Any
) -> None:
    server = ordered[0]["id"]
    login = log_in(vpsd, ordered[0], key)
    process = host.process(server)
    login.try_to("poweroff")
    until(lambda: not process.is_running(), "the guest's end")
    ended = time.monotonic()
    vpsd.until_status(server, "stopped")
    seconds = time.monotonic() - ended
    record_property("seconds_from_power_off_to_stopped", seconds)
    assert seconds <= 5


def test_a_guest_whose_qemu_was_killed_comes_back(vpsd: Vpsd, host: Host, ordered: list[Any], key: Path) -> None:
    server = ordered[1]["id"]
    login = log_in(vpsd, ordered[1], key)
    before = login.boot_id
    os.kill(host.process(server).pid, signal.SIGKILL)
    until(lambda: vpsd.operations(server)[-1]["command"] == "recover", "vpsd to notice")
    login = log_in(vpsd, ordered[1], key)
    assert login.boot_id != before


def test_of_a_deleted_server_nothing_is_left(vpsd: Vpsd, host: Host, ordered: list[Any]) -> None:
    servers = [answer["id"] for answer in ordered]
    for server in servers:
        vpsd.delete(server)
        assert vpsd.ask("GET", f"servers/{server}/").status_code == 404
    where = f"server_id IN ({', '.join(map(str, servers))})"
    until(
        lambda: not vpsd.rows(f"SELECT 1 FROM addresses WHERE released_at_ms IS NULL AND {where}"),
        "the addresses to be free",
    )
    volumes = host.volumes()
    for name in map(host.name, servers):
        assert name not in host.guests()
        assert name not in volumes.disks | volumes.seeds
    assert all(host.processes(server) == [] for server in servers)
