"""User data on a Debian 12, of every kind that its cloud-init has a module for."""

from functools import partial
from typing import Any

import pytest

from tests.guests.login import Login
from tests.guests.test_user_data import has_verdict
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest

_IMAGE_AND_BOOT_SECONDS = 1200
STARTER = {"plan_id": 3, "os_id": 3}

CONFIG = """#cloud-config
users: [default, {name: ann, groups: [sudo], sudo: ['ALL=(ALL) NOPASSWD:ALL']}]
chpasswd: {expire: false, users: [{name: ann, password: swordfish, type: text}]}
apt: {conf: 'APT::Get::Assume-Yes "true";'}
swap: {filename: /swapfile, size: 33554432}
mounts: [[tmpfs, /scratch, tmpfs, "size=4m"]]
ntp: {servers: [ntp.example.com]}
locale: en_GB.UTF-8
timezone: Europe/Berlin
write_files: [{path: /etc/later, content: later, defer: true}]
runcmd: [echo ran > /root/ran]
"""
CHECKS = {
    "cat /etc/later; echo; cat /root/ran": "later\nran",
    "swapon --show=NAME --noheadings": "/swapfile",
    "findmnt -no SIZE /scratch": "4M",
    "grep -h NTP /etc/systemd/timesyncd.conf.d/*": "NTP=ntp.example.com",
    ". /etc/default/locale; echo $LANG; locale -a | grep en_GB": "en_GB.UTF-8\nen_GB.utf8",
    "cat /etc/apt/apt.conf.d/94cloud-init-config": 'APT::Get::Assume-Yes "true";',
    "readlink /etc/localtime": "/usr/share/zoneinfo/Europe/Berlin",
    "sudo -lU ann | grep -c NOPASSWD": "1",
    "grep -c '^ann:[$]' /etc/shadow": "1",
}

# The guest fills a template in: that it takes everything away is seen by nobody before.
TEMPLATE = """## template: jinja
#cloud-config
# {{ v1.local_hostname }}
users:
ssh_authorized_keys:
write_files:
disable_root: true
ssh_pwauth: false
"""

OFF = "#cloud-config\npower_state: {mode: poweroff, delay: now, condition: true}\n"


def _made(vpsd: Vpsd, name: str, user_data: str, **body: Any) -> tuple[int, Any]:
    made = vpsd.create(name, **STARTER, user_data=user_data, **body)
    return made["id"], made


def test_every_module_does_what_it_is_asked_for(vpsd: Vpsd) -> None:
    server, made = _made(vpsd, "modules", CONFIG)
    login = Login(vpsd.until_status(server, "active", _IMAGE_AND_BOOT_SECONDS)["ssh"], password=made["password"])
    until(partial(has_verdict, vpsd, server, "done", None), "the verdict", 400)
    assert {check: login.run(check) for check in CHECKS} == CHECKS
    vpsd.delete(server)


def test_what_a_template_takes_away_is_there_all_the_same(vpsd: Vpsd) -> None:
    server, made = _made(vpsd, "template", TEMPLATE)
    login = Login(vpsd.until_status(server, "active", _IMAGE_AND_BOOT_SECONDS)["ssh"], password=made["password"])
    assert login.run("hostname") == "template"
    until(lambda: vpsd.get(f"servers/{server}/")["user_data_status"] != "running", "the verdict", 400)
    login.run("systemctl is-active ssh")  # still, after everything has run
    until(lambda: vpsd.get(f"servers/{server}/")["ssh_host_keys"], "the host keys")
    told = {key["public_key"] for key in vpsd.get(f"servers/{server}/")["ssh_host_keys"]}
    assert told == {line.rpartition(" ")[0] for line in login.run("cat /etc/ssh/ssh_host_*.pub").splitlines()}
    vpsd.delete(server)


def test_a_debian_that_powers_itself_off_is_stopped(vpsd: Vpsd) -> None:
    server, _ = _made(vpsd, "off", OFF)
    vpsd.until_status(server, "stopped", _IMAGE_AND_BOOT_SECONDS)
    until(lambda: vpsd.get(f"servers/{server}/")["user_data_status"] in ("done", "unknown"), "the verdict")
    vpsd.delete(server)
