"""Whether KVM works is found out by a guest, never by the device."""

from pathlib import Path

import pytest

from vpsd.hypervisor import probe


def test_no_device_means_emulation(tmp_path: Path) -> None:
    kind, reason = probe.probe_kvm(tmp_path / "kvm")
    assert kind == "qemu"
    assert "there is no" in reason


def test_a_device_that_opens_is_not_enough() -> None:
    kind, reason = probe.probe_kvm(Path("/dev/null"))
    assert kind == "qemu"
    assert "did not get through 64-bit mode" in reason


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = _child(tmp_path, "print('ab', end='', flush=True); import time; time.sleep(600)")
    monkeypatch.setattr(probe, "__file__", child)
    kind, reason = probe.probe_kvm(Path("/dev/null"), limit_seconds=0.5)
    assert kind == "qemu"
    assert "did not get through model specific registers (it hung" in reason


def test_a_guest_that_does_everything_means_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "__file__", _child(tmp_path, "print('abcdefg\\nhalted')"))
    assert probe.probe_kvm(Path("/dev/null"))[0] == "kvm"


def test_a_child_that_dies_means_emulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "__file__", _child(tmp_path, "import os; print('abc', flush=True); os.abort()"))
    kind, reason = probe.probe_kvm(Path("/dev/null"))
    assert kind == "qemu"
    assert "cpuid" in reason


def test_the_real_machine_gives_one_of_two_answers_with_a_reason() -> None:
    kind, reason = probe.probe_kvm()
    assert kind in ("kvm", "qemu")
    assert reason


def _child(folder: Path, code: str) -> str:
    file = folder / "child.py"
    file.write_text(code)
    return str(file)
