"""User data, carried out by real guests."""

import subprocess
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


def has_verdict(vpsd: Vpsd, server: int, status: str, error: str | None) -> bool:
    detail = vpsd.get(f"servers/{server}/")
    return (detail["user_data_status"], detail["user_data_error"]) == (status, error)


def test_a_script_runs_once_for_a_server_and_once_more_when_that_is_made_anew(
    vpsd: Vpsd, key: Path, key_id: int
) -> None:
    server = vpsd.create("scripted", ssh_key_id=key_id, user_data=SCRIPT)["id"]
    for ends in ("reboot", "rebuild"):
        login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
        until(partial(has_said, login, "exit status 3"), "the script to end")
        until(partial(has_verdict, vpsd, server, "error", "The script ended with exit status 3."), "the verdict")
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
    said = "Tiny Linux has no cloud-init, and runs only scripts that begin with #!."
    until(partial(has_verdict, vpsd, made["id"], "error", said), "the verdict")
    vpsd.delete(made["id"])


def test_a_script_from_windows_runs_and_the_detail_tells_the_key_that_ssh_is_shown(
    vpsd: Vpsd, key: Path, key_id: int, tmp_path: Path
) -> None:
    server = vpsd.create("crlf", ssh_key_id=key_id, user_data="#!/bin/sh\r\necho ran > /root/ran\r\n")["id"]
    detail = vpsd.until_status(server, "active")
    login = Login(detail["ssh"], key=key)
    until(partial(has_verdict, vpsd, server, "done", None), "the verdict")
    assert login.run("cat /root/ran") == "ran"
    until(lambda: vpsd.get(f"servers/{server}/")["ssh_host_keys"], "the host keys")
    (told,) = vpsd.get(f"servers/{server}/")["ssh_host_keys"]
    known = tmp_path / "known_hosts"
    known.write_text(f"server {told['public_key']}\n")
    options = ("StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "HostKeyAlias=server", "BatchMode=yes")
    command = ["ssh", "-i", str(key), *(word for option in options for word in ("-o", option))]
    subprocess.run([*command, *detail["ssh"].split()[1:], "true"], check=True)
    vpsd.delete(server)
