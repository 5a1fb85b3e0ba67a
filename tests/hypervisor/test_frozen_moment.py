"""The moment in which a guest is frozen, with an agent that does whatever a test needs."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import libvirt
import pytest

from vpsd.hypervisor.freeze_guard import FREEZE_GUARD
from vpsd.hypervisor.libvirt import agent, freezing

_ROOT = {
    "name": "vda1",
    "mountpoint": "/",
    "type": "ext4",
    "disk": [{"bus-type": "virtio", "pci-controller": {"domain": 0, "bus": 0, "slot": 3, "function": 0}}],
}
_FREEZE, _THAW, _EXEC = "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-exec"


class Silent(libvirt.libvirtError):  # type: ignore[misc]  # libvirt has no types
    """The agent does not answer."""

    def __init__(self) -> None:
        super().__init__("Guest agent is not responding")

    def get_error_code(self) -> int:
        return cast("int", libvirt.VIR_ERR_AGENT_UNRESPONSIVE)


class FakeAgent:
    """A guest's agent, and as much of its domain as is looked at."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "guest-get-fsinfo": [_ROOT],
            _FREEZE: 1,
            _THAW: 1,
            _EXEC: {"pid": 5},
            "guest-exec-status": {"exited": True, "exitcode": 0},
            "guest-fsfreeze-status": "thawed",
            "guest-ping": {},
        }
        self.asked: list[str] = []
        self.on_thaw: Callable[[], None] = lambda: None

    def __call__(self, _domain: Any, command: str, _timeout_seconds: int = 0, **_arguments: Any) -> Any:
        self.asked.append(command)
        if command == _THAW:
            self.on_thaw()
        if self.answers[command] is None:
            raise Silent
        return self.answers[command]

    def agentSetResponseTimeout(self, _seconds: int, _flags: int) -> None:  # noqa: N802  # libvirt's name
        pass

    def name(self) -> str:
        return "guest"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    """An agent that does well."""
    fake = FakeAgent()
    monkeypatch.setattr(agent, "demand", fake)
    monkeypatch.setattr(freezing, "_WRITE_SECONDS", 0.01)
    return fake


def _freeze(fake: FakeAgent, export: Callable[[], None] = lambda: None) -> freezing.Freeze:
    with freezing.frozen(cast("Any", fake)) as freeze:
        fake.asked.append("export")
        export()
    return freeze


def test_the_export_begins_between_freeze_and_thaw_and_the_guard_is_set_up_before(fake: FakeAgent) -> None:
    freeze = _freeze(fake)
    assert (freeze.frozen, freeze.asked) == (True, True)
    assert freeze.detail == f"Frozen for {freeze.ms} ms: /."
    order = [command for command in fake.asked if command in (_EXEC, _FREEZE, _THAW, "export")]
    assert order == [_EXEC, _FREEZE, "export", _THAW, _EXEC]


def test_an_agent_that_does_not_say_what_is_mounted_is_not_told_to_freeze(fake: FakeAgent) -> None:
    fake.answers["guest-get-fsinfo"] = None
    freeze = _freeze(fake)
    assert (freeze.frozen, freeze.asked, freeze.ms) == (False, False, 0)
    assert freeze.detail == "Not frozen: the guest's agent did not answer."
    assert fake.asked == ["guest-get-fsinfo", "export"]


def test_a_freeze_that_is_not_answered_in_time_is_undone_and_the_export_begins(fake: FakeAgent) -> None:
    fake.answers[_FREEZE] = None
    freeze = _freeze(fake)
    assert (freeze.frozen, freeze.asked, freeze.ms) == (False, True, None)
    assert "could not freeze / in time: Guest agent is not responding." in freeze.detail
    assert fake.asked.index(_THAW) < fake.asked.index("export")


def test_what_was_thawed_before_the_export_began_is_not_consistent(fake: FakeAgent) -> None:
    fake.answers[_THAW] = 0  # by somebody else: the guard
    freeze = _freeze(fake)
    assert not freeze.frozen
    assert freeze.detail == "Frozen: /. They were thawed before the copy had begun."


def test_an_agent_that_is_gone_at_the_thaw_has_frozen_and_nobody_knows_for_how_long(fake: FakeAgent) -> None:
    fake.answers[_THAW] = None
    freeze = _freeze(fake)
    assert (freeze.frozen, freeze.ms) == (True, None)
    assert "did not answer when it was told to thaw" in freeze.detail


def test_fewer_file_systems_than_asked_for_are_not_all(fake: FakeAgent) -> None:
    fake.answers["guest-get-fsinfo"] = [_ROOT, {**_ROOT, "name": "vda2", "mountpoint": "/data"}]
    freeze = _freeze(fake)
    assert not freeze.frozen
    assert freeze.detail == "Only 1 of 2 file systems were frozen: /, /data."


def test_an_export_that_fails_leaves_nothing_frozen(fake: FakeAgent) -> None:
    def fail() -> None:
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError):
        _freeze(fake, fail)
    assert _THAW in fake.asked


def test_an_export_that_hangs_does_not_keep_the_guest_frozen(fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    thawed = threading.Event()
    fake.on_thaw = thawed.set
    monkeypatch.setattr(freezing, "_LONGEST_SECONDS", 0.01)
    _freeze(fake, lambda: _wait(thawed))


def _wait(event: threading.Event) -> None:
    assert event.wait(30)


@pytest.mark.parametrize(
    ("answers", "writes"),
    [
        ({}, True),
        ({"guest-fsfreeze-status": "frozen"}, True),
        ({"guest-fsfreeze-status": "frozen", _THAW: None}, False),
        ({"guest-fsfreeze-status": None}, None),
        ({_EXEC: None}, True),  # it may not run programs
        ({"guest-exec-status": {"exited": False}}, False),
        ({"guest-exec-status": None, "guest-ping": None}, None),
    ],
)
def test_a_guest_is_seen_to_write(fake: FakeAgent, answers: dict[str, Any], writes: bool | None) -> None:
    fake.answers |= answers
    assert freezing.ensure_thawed(cast("Any", fake)) is writes
    assert (_THAW in fake.asked) == (answers.get("guest-fsfreeze-status") == "frozen")


def test_nobody_waits_for_the_guard_that_waits_in_the_guest(tmp_path: Path) -> None:
    token = tmp_path / "token"
    script = FREEZE_GUARD.replace("/run/freeze-guard", str(token)).replace("/sys/fs/cgroup/cgroup.procs", "/dev/null")
    command = ["/bin/sh", "-c", script, "freeze-guard", "freeze", "alone"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as shell:
        try:
            # As the agent does, until whoever has the other end open is gone: the guard stays for 20 seconds.
            output, _ = shell.communicate(timeout=10)
            os.killpg(shell.pid, 0)  # the guard is there
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert (output, shell.returncode) == (b"", 0)
    assert token.read_text().strip()
