"""What is made of what a guest says of its first boot; its owner controls every byte of it."""

import json
from typing import Any

import pytest

from vpsd.servers.guest_report import LONGEST_ERROR, read_report

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
