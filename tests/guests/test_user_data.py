"""User data, carried out by real guests."""

from functools import partial
from pathlib import Path

import pytest

from tests.guests.login import Login
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest

LOG = "/var/log/cloud-init-output.log"
SCRIPT = f"""#!/bin/sh
echo "$(id -un) \u00e4 --vpsd" >> /root/ran
echo said
exit 3
{"#" * 60_000}
"""


def has_said(login: Login, text: str) -> bool:
    return text in login.run(f"cat {LOG} || true")


def test_a_script_runs_once_for_a_server_and_once_more_when_that_is_made_anew(
    vpsd: Vpsd, key: Path, key_id: int
) -> None:
    server = vpsd.create("scripted", ssh_key_id=key_id, user_data=SCRIPT)["id"]
    for ends in ("reboot", "rebuild"):
        login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
        until(partial(has_said, login, "exit status 3"), "the script to end")
        for _ in range(2):
            assert login.run("cat /root/ran") == "root \u00e4 --vpsd"
            assert "said" in login.run(f"cat {LOG}")
            if ends == "reboot":
                vpsd.post(f"servers/{server}/reboot/")
                login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
        if ends == "reboot":
            vpsd.post(f"servers/{server}/rebuild/", {"os_id": 1})
    vpsd.delete(server)


def test_a_tiny_guest_says_what_it_did_not_do_and_lets_its_owner_in_all_the_same(vpsd: Vpsd) -> None:
    config = "#cloud-config\nssh_authorized_keys:\n- none\nhashed_passwd: none\npackages: [htop]\n"
    made = vpsd.create("honest", user_data=config)
    login = Login(vpsd.until_status(made["id"], "active")["ssh"], password=made["password"])
    until(partial(has_said, login, "the user data (#cloud-config) was ignored"), "the guest to say so")
    assert login.run("hostname") == "honest"
    vpsd.delete(made["id"])
