"""The parent process of vpsd's own libvirtd, which reaps its orphans.

libvirt starts QEMU as an orphan and, when a guest ends, waits until init has reaped it. In containers init often does
that late or never: powering off then takes seconds, or fails. So this program becomes a subreaper and adopts the
orphans. It is a program of its own (`python reaper.py libvirtd --daemon …`), returns libvirtd's exit status once that
is ready, and leaves one process behind, which ends after libvirtd and the last guest.
"""

import contextlib
import ctypes
import os
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Start the daemon under a subreaper; returns the exit status of the daemon's start."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        status = os.read(read, 1)
        return status[0] if status else 1
    os.close(read)
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = subprocess.call(command)
    os.write(write, bytes([min(started, 255) if started >= 0 else 1]))
    os.close(write)
    _redirect_stdio()
    _reap_children()
    return 0


def _redirect_stdio() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def _reap_children() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
