"""What is made of what a guest says of its first boot; its owner controls every byte of it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vpsd.servers.guest_report import COMMAND, LONGEST_ERROR, Report, read_report

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV"
FINGERPRINT = "SHA256:uzVFf1/MRs46QOr6LE9iUMja+pcJdQ/bcm6Oa3WYODQ"  # by ssh-keygen -l


def verdict(said: Any, warning: str = "") -> tuple[str | None, str | None]:
    report = read_report(f"\n--\n{said if isinstance(said, str) else json.dumps(said)}\n\n--\n{warning}")
    return report.status, report.error


@pytest.mark.parametrize("line", [KEY, f"{KEY} root@web\n", f"Public key portion is:\n{KEY} root@x\nFingerprint: x\n"])
def test_a_key_is_read_as_openssh_and_dropbear_write_it(line: str) -> None:
    (key,) = read_report(f"{line}\n--\n").host_keys
    assert (key.type, key.fingerprint, key.public_key) == ("ssh-ed25519", FINGERPRINT, KEY)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        KEY.replace("ssh-ed25519", "ssh-rsa"),
        KEY[:-1] + "!",
        "ssh-rsa " + "A" * 9000,
    ]
    + [f"x {KEY}", KEY.replace("ssh-ed25519", "ssh-\x1b[2J"), "<script> AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJ"],
)
def test_what_is_no_key_is_left_out(line: str) -> None:
    assert read_report(f"{line}\n\n--\n").host_keys == []


def test_a_guest_cannot_fill_the_database() -> None:
    report = read_report(f"{KEY}\n" * 1000 + "\n--\n" + json.dumps({"status": "error", "errors": ["x" * 10**5]}))
    assert len(report.host_keys) == 16
    assert len(report.error or "") == LONGEST_ERROR
    assert read_report("-" * 10**6).status is None
    assert read_report("\n--\n" + "[" * 10**5).status is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"status": "done", "errors": []}, ("done", None)),
        ({"status": "error", "errors": ["first", "second"]}, ("error", "first")),
        ({"status": "error", "errors": ["a\nb\x00\x1b[1m c"]}, ("error", "a b [1m c")),
        ({"status": "error", "errors": 7}, ("error", "The guest says that there was an error, and not which.")),
        ({"status": "running"}, (None, None)),
        ({"status": "not run"}, (None, None)),
        ({"status": "disabled"}, ("unknown", None)),
        ({"status": "done", "recoverable_errors": {}}, ("done", None)),
        ({"status": "done", "recoverable_errors": {"WARNING": ["odd"]}}, ("degraded", "odd")),
        ({"status": "done", "recoverable_errors": {"DEPRECATED": ["old"]}}, ("done", None)),
        ({"status": ["done"]}, (None, None)),
        ({}, (None, None)),
        ([], (None, None)),
        ("", (None, None)),
        ("no JSON", (None, None)),
    ],
)
def test_the_verdict_is_cloud_inits(said: Any, expected: tuple[str | None, str | None]) -> None:
    assert verdict(said) == expected


def test_a_warning_in_the_log_of_an_old_cloud_init_degrades_what_is_done_and_nothing_else() -> None:
    assert verdict({"status": "done"}, "Failed at merging\n") == ("degraded", "Failed at merging")
    assert verdict({"status": "error", "errors": ["e"]}, "w") == ("error", "e")
    assert verdict({"status": "running"}, "w") == (None, None)


class Root:
    """A guest's files, in a folder, and the command carried out on them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.write("etc/ssh/ssh_host_ed25519_key.pub", f"{KEY} root@web\n")
        self.write("bin/cloud-init", """#!/bin/sh\necho '{"status": "done"}'\n""").chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        file = self._path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def report(self) -> Report:
        script = COMMAND[2].replace("PATH=", f"PATH={self._path}/bin:")
        for folder in ("/etc/", "/run/", "/var/"):
            script = script.replace(folder, f"{self._path}{folder}")
        return read_report(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout)


def test_a_guest_tells_its_keys_when_cloud_init_has_made_them_and_its_verdict_at_the_end(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert len(root.report().host_keys) == 1  # without a cloud-init
    root.write("run/cloud-init/enabled", "")
    assert root.report() == Report([])  # they may be those of the server whose disk it began with
    stages: dict[str, dict[str, Any]] = {
        "init": {"errors": [], "finished": None, "start": 1.5},
        "init-local": {"finished": 1.0, "start": 0.5},
    }
    root.write("run/cloud-init/status.json", json.dumps({"v1": stages}, indent=1))
    assert root.report() == Report([])
    stages["init"]["finished"] = 2.5
    root.write("run/cloud-init/status.json", json.dumps({"v1": stages}, indent=1))
    assert (len(root.report().host_keys), root.report().status) == (1, None)
    root.write("run/cloud-init/result.json", "{}")
    assert (len(root.report().host_keys), root.report().status) == (1, "done")
    log = ["util.py[DEBUG]: x", "schema.py[WARNING]: Deprecated cloud-config", "cc.py[WARNING]: DEPRECATION: y"]
    log += ["schema.py[WARNING]: Invalid cloud-config provided: z"]
    root.write("var/log/cloud-init.log", "\n".join(log))
    assert root.report().status == "done"
    root.write("var/log/cloud-init.log", "\n".join([*log, "user_data.py[WARNING]: no file", "b.py[WARNING]: later"]))
    assert (root.report().status, root.report().error) == ("degraded", "no file")


def test_tiny_linux_tells_its_own(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.write("var/lib/cloud/instance/tiny-status", '{"status": "error", "errors": ["exit status 3"]}\n')
    assert (root.report().status, root.report().error) == ("error", "exit status 3")
