"""A process of vpsd is stopped in the middle of a rebuild, and goes on when another has done it: on real guests."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.running import Vpsd, until
from vpsd.hypervisor.libvirt import connect, daemon

pytestmark = pytest.mark.guest


@pytest.fixture
def stopped_and_other(postgres: str) -> Iterator[tuple[Vpsd, Vpsd]]:
    """Two processes on one database and one host, of which none is started."""
    url, pool = postgres.format("postgres"), f"127.78.{os.getpid() % 250}.0/24"
    one = Vpsd(database_url=url, address_pool=pool)
    two = Vpsd(beside=one, database_url=url, address_pool=pool)
    if os.geteuid() == 0:
        connect.remember(connect.Choice("own", "", ""), one.data)  # also beside a system's libvirt
    if images := os.environ.get("TEST_IMAGES_DIR"):
        (one.data / "images").symlink_to(Path(images).absolute())
    try:
        yield one, two
    finally:
        print(one.said(), *([two.said()] if two.has_begun else []))
        two.discard()
        daemon.stop_own_daemon(one.data)
        one.discard()


def test_a_process_that_is_stopped_while_it_discards_a_disk_does_not_reach_the_new_one(
    stopped_and_other: tuple[Vpsd, Vpsd],
) -> None:
    one, two = stopped_and_other
    one.start()
    server = one.create("web")["id"]
    one.until_status(server, "active")
    (old,) = _guests(one)
    with _suspended(old):  # libvirt takes ten seconds to end it, and the process waits for that
        one.post(f"servers/{server}/rebuild/", {"os_id": 1})
        until(lambda: _is_being_ended(old), "the rebuild to end the old guest")
        assert one.operations(server)[-1]["step"] == "discard_disk"
        with _suspended(psutil.Process(one.pid)):
            two.start()
            two.until_status(server, "active")
            (new,) = _guests(two)
            assert new.pid != old.pid
    until(lambda: "taken it over" in one.said() or "its lease is over" in one.said(), "the end of what was stopped")
    until(lambda: one.is_well(), "the process that goes on")
    assert two.run_json("check") == []  # by its end, the call that went on has ended, too
    assert two.get(f"servers/{server}/")["status"] == "active"
    assert [guest.pid for guest in _guests(two)] == [new.pid]
    for file in ("vpsd-*.qcow2", "vpsd-*-seed.iso", "serial/vpsd-*.log"):
        assert len(list((one.data / "pool").glob(file))) == 1, file
    two.delete(server)
    until(lambda: not _guests(two), "the deletion")


@contextlib.contextmanager
def _suspended(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def _is_being_ended(process: psutil.Process) -> bool:
    """Whether a process that is suspended has been sent SIGTERM."""
    (pending,) = re.findall(r"ShdPnd:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def _guests(vpsd: Vpsd) -> list[psutil.Process]:
    """The QEMU processes of a vpsd."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "qemu" in process.name() and any(str(vpsd.data / "pool") in part for part in process.cmdline()):
                found.append(process)
    return found
