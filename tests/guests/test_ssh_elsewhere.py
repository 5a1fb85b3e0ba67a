"""A real server whose SSH server listens where nobody asks: it is as well as any other."""

import socket

import pytest

from tests.guests.host import Host
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest

MOVES_SSH = """#!/bin/sh
sed -i 's/dropbear -F/dropbear -F -p 2200/' /sbin/tiny-ssh
sync
touch /root/moved
"""


def test_a_server_with_ssh_elsewhere_is_rebooted_and_keeps_its_power(vpsd: Vpsd, host: Host, key_id: int) -> None:
    server = vpsd.create("elsewhere", ssh_key_id=key_id, user_data=MOVES_SSH)["id"]
    address = vpsd.until_status(server, "active")["ip_address"]
    host.until_agent(server)
    until(lambda: host.run(server, "/bin/ls", "/root/moved") == 0, "the user data")
    before = host.process(server).pid
    vpsd.post(f"servers/{server}/reboot/")
    detail = vpsd.until_status(server, "active")
    assert (detail["error"], detail["status_detail"]) == (None, None)
    assert greeting(address) == b""
    assert host.process(server).pid != before
    reboot = vpsd.operations(server)[-1]
    assert (reboot["command"], reboot["status"]) == ("reboot", "succeeded")
    assert host.signs(server).is_up
    assert "login:" in host.signs(server).last_lines
    vpsd.delete(server)


def greeting(address: str) -> bytes:
    """What a server behind port 22 says first."""
    with socket.create_connection((address, 22), timeout=5) as connection:
        try:
            return connection.recv(4)
        except OSError:
            return b""
