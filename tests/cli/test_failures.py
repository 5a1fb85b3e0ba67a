"""What goes wrong is said in one line that says what to do, without a traceback."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.running import PROGRAM, environment, run
from vpsd.core.files import write_private


def assert_one_line(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    """The command failed as a command should."""
    assert done.returncode == 1
    assert done.stderr.startswith("vpsd: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.mark.parametrize("command", [("up",), ("check",), ("image", "list"), ("doctor",)], ids=" ".join)
def test_an_unknown_setting_is_refused_with_the_known_ones(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*command, environment={**environment(data_dir=tmp_path), "VPSD_LISTEN_ON": "127.0.0.1:1"})
    assert_one_line(done, "VPSD_LISTEN_ON is not a setting", "VPSD_LISTEN,")


@pytest.mark.parametrize("command", [("up",), ("account", "list"), ("doctor",)], ids=" ".join)
def test_a_data_folder_that_cannot_be_is_refused_by_its_name(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(*command, environment=environment(data_dir=tmp_path / "file", hypervisor="simulator"))
    if command == ("doctor",):
        assert done.returncode == 1
        assert f"VPSD_DATA_DIR={tmp_path / 'file'} cannot be used" in done.stdout
    else:
        assert_one_line(done, f"VPSD_DATA_DIR={tmp_path / 'file'} cannot be used")


def test_a_database_that_does_not_answer_is_said_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://vpsd:secret@127.0.0.1:1/vpsd"
    done = run("account", "list", environment=environment(data_dir=tmp_path, database_url=url, hypervisor="simulator"))
    assert_one_line(done, "VPSD_DATABASE_URL")
    assert "secret" not in done.stderr


def test_the_doctor_tells_what_the_database_says(command: Command, tmp_path: Path) -> None:
    (tmp_path / "vpsd.sqlite").write_text("no database " * 100)
    tmp_path.chmod(0o711)
    (tmp_path / "vpsd.sqlite").chmod(0o600)
    (problem,) = command.json("doctor", data_dir=tmp_path)["problems"]
    assert problem.endswith("The database is failing: file is not a database")


HIDE = """
PATH=$PATH:/usr/sbin:/sbin
program=$(command -v libvirtd) && mount --bind /dev/null "$program"
[ ! -d /run/libvirt ] || mount -t tmpfs nothing /run/libvirt
exec "$@"
"""


def run_without_libvirt(*arguments: str, data: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command where libvirt's daemon is neither installed nor running."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return subprocess.run(
        ["unshare", *mapped, "--mount", "sh", "-c", HIDE, "sh", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(data_dir=data, **settings),
        check=False,
    )


def test_where_no_libvirt_can_be_had_it_says_what_to_install(tmp_path: Path) -> None:
    done = run_without_libvirt("up", data=tmp_path, listen="127.0.0.1:0")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert last.startswith("vpsd: There is no usable libvirt; missing: libvirtd.")
    assert "apt-get install" in last
    assert "VPSD_HYPERVISOR=simulator" in last


def test_without_libvirt_the_doctor_tells_and_the_simulator_plays(tmp_path: Path) -> None:
    done = run_without_libvirt("doctor", data=tmp_path, trusted_proxies="127.0.0.1")
    assert done.returncode == 1
    assert "guests can pretend to be the proxy" in done.stdout
    assert "no servers can be created: There is no usable libvirt" in done.stdout
    assert run_without_libvirt("doctor", data=tmp_path, hypervisor="simulator").returncode == 0


def test_no_command_makes_a_new_cloud_beside_an_earlier_one(command: Command, tmp_path: Path) -> None:
    write_private(tmp_path / "token", "vps_of-an-earlier-cloud\n")
    tmp_path.chmod(0o711)
    own = {"data_dir": tmp_path, "listen": "127.0.0.1:0"}
    for arguments in (("up",), ("account", "list"), ("check",), ("token", "add", "default"), ("catalog", "apply")):
        assert f"an earlier cloud's token {tmp_path}/token" in command.refused(*arguments, **own)
    assert not (tmp_path / "vpsd.sqlite").exists()
    (tmp_path / "token").rename(tmp_path / "kept")
    assert command("account", "list", **own).returncode == 0
    assert "leave --new-cloud out" in command.refused("up", "--new-cloud", **own)
