"""The process that stands above vpsd's own libvirtd and buries its dead.

libvirt starts QEMU as an orphan and, when a guest ends, waits until init has buried it. In containers init often does
that late or never: each power-off then takes seconds, or fails. So this program adopts the orphans instead. It runs by
itself (`python reaper.py libvirtd --daemon …`), returns with libvirtd's exit status once that is ready, leaves one
process behind, and that one ends after libvirtd and the last guest.
"""

import contextlib
import ctypes
import os
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Start the daemon under a process that reaps; returns the daemon's exit status at its start."""
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
    _let_go_of_files()
    _bury_children()
    return 0


def _let_go_of_files() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def _bury_children() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
