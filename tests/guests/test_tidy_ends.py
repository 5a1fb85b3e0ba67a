"""vpsd and libvirtd come and go; guests stay."""

import os
from typing import Any

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, run, until

pytestmark = pytest.mark.guest


def test_a_restart_of_vpsd_disturbs_no_guest(
    vpsd: Vpsd, host: Host, first: Any, first_login: Login, record_property: Any
) -> None:
    host.until_no_image_is_made()
    before = first_login.boot_id, host.process(first["id"]).pid, vpsd.operations(first["id"])
    assert vpsd.interrupt() == 0
    assert "servers go on running" in vpsd.said()
    assert first_login.boot_id == before[0]
    seconds = vpsd.start()
    record_property("seconds_to_health", seconds)
    print(f"/health answered {seconds:.2f} s after the start")
    assert vpsd.token not in vpsd.said()
    vpsd.until_status(first["id"], "active")
    assert vpsd.run_json("check") == []
    assert (first_login.boot_id, host.process(first["id"]).pid, vpsd.operations(first["id"])) == before


def test_a_second_vpsd_on_the_same_folder_is_refused(vpsd: Vpsd) -> None:
    done = run("up", environment={**vpsd.environment, "VPSD_LISTEN": "127.0.0.1:0"})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        f"vpsd: another vpsd works in {vpsd.data}; stop it, or set VPSD_DATA_DIR to another folder"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's libvirtd is not vpsd's to start")
def test_a_restart_of_libvirtd_disturbs_no_guest(vpsd: Vpsd, host: Host, first: Any, first_login: Login) -> None:
    before = first_login.boot_id, host.process(first["id"]).pid
    daemon_pid = host.daemon_pid
    host.end_daemon()
    until(lambda: host.daemon_pid not in (None, daemon_pid), "vpsd to start libvirtd again")
    until(vpsd.is_well, "the host to answer")
    assert (first_login.boot_id, host.process(first["id"]).pid) == before
    assert vpsd.get(f"servers/{first['id']}/")["status"] == "active"
