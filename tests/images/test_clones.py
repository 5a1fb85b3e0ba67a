"""What is asked and done in a guest that was made from a backup: the programs themselves, on folders of a test."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vpsd.images import clones
from vpsd.images.clones import CloudInit, Identity

OLD, NEW = "52:54:00:11:22:33", "52:54:00:11:22:33"
HASH = "$6$salt$" + "x" * 86
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ it's mine"
_TOOLS = ("awk", "cat", "chmod", "cp", "grep", "mkdir", "rm", "sed", "sync", "tr")


class Guest:
    """A root folder, and programs that say they were run; nothing outside it is touched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.write("proc/cmdline", "root=LABEL=root ro quiet\n")
        self.write("proc/sys/kernel/random/uuid", "0b1c2d3e-0000-4000-8000-000000000000\n")
        self.write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old.example.org old\n")
        self.write("etc/machine-id", "f" * 32 + "\n")
        self.write("etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin no\n")
        self.write("etc/ssh/ssh_host_rsa_key", "old")
        self.write("etc/ssh/sshd_config.d/20-own.conf", "")
        self.write("sys/class/net/eth0/address", f"{NEW}\n")
        (root / "root").mkdir()
        self.program("ssh-keygen", f"echo new > {root}/etc/ssh/ssh_host_ed25519_key")
        self.program("chpasswd", f"cat > {root}/chpasswd")
        self.program("ip", "exit 0")
        for tool in _TOOLS:  # and no others: this machine's own network is nobody's to set up
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def program(self, name: str, script: str) -> None:
        self.write(f"bin/{name}", f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, argv: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        shell, flag, script = argv
        for folder in ("etc", "proc", "sys", "root", "run", "var", "sbin"):
            script = script.replace(f" /{folder}/", f" {self.root}/{folder}/").replace(
                f"=/{folder}/", f"={self.root}/{folder}/"
            )
        path = next(line for line in script.splitlines() if line.startswith("export PATH="))
        script = script.replace(path, f"export PATH={self.bin}")
        return subprocess.run([shell, flag, script], input=stdin, capture_output=True, check=False)

    def asked(self) -> CloudInit | None:
        done = self.run(clones.ask_command())
        assert (done.returncode, done.stderr) == (0, b"")
        return clones.read_answer(done.stdout.decode())

    def set_right(self, *, key: str | None = None, password_hash: str | None = None) -> None:
        done = self.set_anyway(key=key, password_hash=password_hash)
        assert (done.returncode, done.stderr) == (0, b"")

    def set_anyway(
        self, *, key: str | None = None, password_hash: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        identity = Identity(NEW, OLD, "new.example.org", key, password_hash)
        return self.run(*clones.set_right_command(identity))


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def with_cloud_init(guest: Guest) -> Guest:
    guest.program("cloud-init", "")
    guest.write("etc/cloud/cloud.cfg", "users:\n  - default\npreserve_hostname: false\n")
    guest.write("etc/cloud/cloud.cfg.d/90_dpkg.cfg", "datasource_list: [ NoCloud, ConfigDrive, None ]\n")
    return guest


def test_a_system_with_cloud_init_has_it_enabled_and_one_without_is_told_apart(guest: Guest) -> None:
    assert guest.asked() is CloudInit.MISSING
    guest.program("cloud-init", "")
    assert guest.asked() is CloudInit.ENABLED


def test_tiny_linux_reads_its_seed_itself(guest: Guest) -> None:
    guest.write("sbin/tiny-boot", "")
    (guest.root / "sbin/tiny-boot").chmod(0o755)
    guest.write("etc/instance-id", "one")
    assert guest.asked() is CloudInit.ENABLED


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("etc/cloud/cloud-init.disabled", ""),
        ("proc/cmdline", "quiet cloud-init=disabled\n"),
        ("proc/cmdline", "network-config=disabled quiet\n"),
        ("etc/cloud/ds-identify.cfg", "policy: disabled\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "datasource_list: [ None ]\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "datasource_list:\n- Ec2\n- None\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "# by hand\nnetwork: {config: disabled}\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "network:\n  config: disabled\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "manual_cache_clean: True\n"),
        ("var/lib/cloud/instance/manual-clean", ""),
    ],
)
def test_every_way_to_disable_cloud_init_in_whole_or_in_part_is_seen(
    with_cloud_init: Guest, path: str, text: str
) -> None:
    assert with_cloud_init.asked() is CloudInit.ENABLED
    with_cloud_init.write(path, text)
    assert with_cloud_init.asked() is CloudInit.DISABLED


@pytest.mark.parametrize(("unit", "state"), [("cloud-init.target", "masked"), ("cloud-init.service", "disabled")])
def test_units_that_are_masked_or_disabled_are_seen(with_cloud_init: Guest, unit: str, state: str) -> None:
    (with_cloud_init.root / "run/systemd/system").mkdir(parents=True)
    with_cloud_init.program("systemctl", f"[ $2 = {unit} ] && echo {state} || echo enabled")
    assert with_cloud_init.asked() is CloudInit.DISABLED


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "datasource_list:\n- NoCloud\n- None\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "#datasource_list: [ None ]\n#network: {config: disabled}\n"),
        ("etc/cloud/cloud.cfg.d/99_own.cfg", "network: {version: 1}\nupdates: {policy: disabled}\n"),
    ],
)
def test_what_only_looks_like_that_is_not_taken_for_it(with_cloud_init: Guest, path: str, text: str) -> None:
    with_cloud_init.write(path, text)
    assert with_cloud_init.asked() is CloudInit.ENABLED


def test_a_guest_that_is_forced_to_run_it_by_its_command_line_does(with_cloud_init: Guest) -> None:
    with_cloud_init.write("etc/cloud/cloud-init.disabled", "")
    with_cloud_init.write("proc/cmdline", "cloud-init=enabled\n")
    assert with_cloud_init.asked() is CloudInit.ENABLED


def test_an_answer_that_makes_no_sense_is_none() -> None:
    assert clones.read_answer("enabled\n") is CloudInit.ENABLED
    assert clones.read_answer("of course\n") is None
    assert clones.read_answer("") is None


@pytest.mark.parametrize(
    "path",
    [
        "etc/systemd/network/10-cloud-init-eth0.network",
        "etc/netplan/50-cloud-init.yaml",
        "etc/udev/rules.d/70-persistent-net.rules",
        "etc/NetworkManager/system-connections/eth0.nmconnection",
        "etc/sysconfig/network-scripts/ifcfg-eth0",
    ],
)
def test_what_was_for_the_old_network_card_is_for_the_new_one(guest: Guest, path: str) -> None:
    guest.write(path, f"match {OLD.upper()} and {OLD}\n")
    guest.set_right(password_hash=HASH)
    assert guest.read(path) == f"match {NEW} and {NEW}\n"
    assert not list(guest.root.glob("etc/**/*vpsd.network"))


def test_a_network_that_names_no_card_is_left_alone_where_it_works(guest: Guest) -> None:
    guest.program("ip", "echo 2: eth0 inet 10.0.2.15/24 scope global eth0")
    guest.set_right(password_hash=HASH)
    assert not (guest.root / "etc/netplan").exists()


def test_a_system_without_a_network_gets_one_in_the_way_that_it_knows(guest: Guest) -> None:
    assert guest.set_anyway(password_hash=HASH).stderr == b"nothing that vpsd knows sets up its network\n"
    guest.write("etc/network/interfaces", "auto lo\n")
    guest.program("ifup", "")
    guest.set_right(password_hash=HASH)
    assert "iface eth0 inet static\n  address 10.0.2.15/24\n  gateway 10.0.2.2\n" in guest.read(
        "etc/network/interfaces"
    )
    (guest.root / "etc/netplan").mkdir()
    guest.program("netplan", "")
    guest.set_right(password_hash=HASH)
    assert NEW in guest.read("etc/netplan/90-vpsd.yaml")


def test_names_and_host_keys_are_the_new_servers(guest: Guest) -> None:
    guest.write("etc/netplan/own.yaml", OLD)
    guest.set_right(password_hash=HASH)
    assert guest.read("etc/hostname") == "new\n"
    assert guest.read("etc/hosts") == "127.0.0.1 localhost\n127.0.1.1 new.example.org new\n"
    assert guest.read("etc/machine-id") == "0b1c2d3e000040008000000000000000\n"
    assert [path.name for path in (guest.root / "etc/ssh").glob("ssh_host_*")] == ["ssh_host_ed25519_key"]


def test_the_password_is_set_and_lets_root_in(guest: Guest) -> None:
    guest.write("etc/netplan/own.yaml", OLD)
    guest.set_right(password_hash=HASH)
    assert guest.read("chpasswd") == f"root:{HASH}\n"
    assert guest.read("etc/ssh/sshd_config.d/10-vpsd.conf") == "PermitRootLogin yes\nPasswordAuthentication yes\n"


def test_the_key_is_added_once_and_lets_root_in(guest: Guest) -> None:
    guest.write("etc/netplan/own.yaml", OLD)
    guest.write("root/.ssh/authorized_keys", "ssh-rsa of-the-source")  # without an end of line
    guest.write("etc/ssh/sshd_config", "PermitRootLogin no\n")
    for _ in range(2):
        guest.set_right(key=KEY)
    assert guest.read("root/.ssh/authorized_keys").split("\n") == ["ssh-rsa of-the-source", KEY, ""]
    assert guest.read("etc/ssh/sshd_config").startswith(
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    assert not (guest.root / "chpasswd").exists()


def test_what_cannot_be_set_is_said(guest: Guest) -> None:
    guest.write("etc/netplan/own.yaml", OLD)
    guest.program("chpasswd", "exit 1")
    done = guest.set_anyway(password_hash=HASH)
    assert (done.returncode, done.stderr) == (1, b"the password cannot be set\n")


@pytest.mark.parametrize(
    ("routes", "has_one"),
    [("eth0\t0002000A\t00000000\t0001\n", False), ("eth0\t00000000\t0202000A\t0003\n", True)],
)
def test_a_way_out_is_a_default_route(guest: Guest, routes: str, has_one: bool) -> None:
    guest.write("proc/net/route", f"Iface\tDestination\tGateway\tFlags\n{routes}")
    shell, flag, script = clones.has_network_command()
    script = script.replace("/proc/", f"{guest.root}/proc/")
    assert (subprocess.run([shell, flag, script], check=False).returncode == 0) is has_one
