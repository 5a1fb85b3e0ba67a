"""Tests whether KVM really works here, by running a guest: the presence of the device is not enough.

Some machines have a `/dev/kvm` that opens, creates virtual machines and runs firmware, but hangs every operating
system. So a few dozen bytes of 64-bit guest code, run with plain ioctls, do what every kernel does first. They run in
a child process with hard limits, because a broken KVM_RUN never returns: one of CPU time, which is reliable on a busy
machine too, and one of wall-clock time.

As a program (`python probe.py`), this file is that child: it prints one letter for each step that was reached.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Literal

VirtType = Literal["kvm", "qemu"]

_DEVICE = Path("/dev/kvm")
_LIMIT_SECONDS = 5.0
_LIMIT_CPU_SECONDS = 0.5
_GRACE_SECONDS = 1.0  # for a killed child to exit; one that hangs in the kernel is abandoned

_STEPS = {
    "a": "64-bit mode with paging",
    "b": "switching page tables",
    "c": "model specific registers",
    "d": "cpuid",
    "e": "control register 4",
    "f": "flags and swapgs",
    "g": "a loop at native speed",
}


def probe_kvm(device: Path = _DEVICE, limit_seconds: float = _LIMIT_SECONDS) -> tuple[VirtType, str]:
    """How guests should run on this machine, and why; takes little more than `limit_seconds` at most."""
    if platform.machine() != "x86_64":
        return "qemu", f"emulation: the probe only supports x86_64, and this is {platform.machine()}"
    if not device.exists():
        return "qemu", f"emulation: there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return "qemu", f"emulation: this user may not open {device} (group kvm may)"
    reached, trouble = _run_child(device, limit_seconds)
    if reached == "".join(_STEPS):
        return "kvm", "KVM runs 64-bit guest code"
    missing = next((text for letter, text in _STEPS.items() if letter not in reached), "the end of the test")
    return "qemu", f"emulation: {device} opens, but a test guest did not get through {missing} ({trouble})"


def _run_child(device: Path, limit_seconds: float) -> tuple[str, str]:
    """The letters that the guest wrote, and why it stopped."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(device)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired as late:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
        return _letters(_text(late.output)), f"it hung for {limit_seconds:g} s"
    if child.returncode == -signal.SIGPROF:
        return _letters(output), f"it used up {_LIMIT_CPU_SECONDS:g} s of CPU time"
    if child.returncode:
        return _letters(output), f"the test ended with {child.returncode}"
    return _letters(output), output.strip().rpartition("\n")[2]


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _letters(output: str) -> str:
    """The first line: the steps that were reached."""
    return output.partition("\n")[0].strip()


# --- the rest runs only in the child; ioctl numbers and struct layouts are those of linux/kvm.h ----------------------

_CREATE_VM, _RUN_SIZE, _SUPPORTED_CPUID = 0xAE01, 0xAE04, 0xC008AE05
_CREATE_VCPU, _SET_MEMORY, _SET_TSS = 0xAE41, 0x4020AE46, 0xAE47
_RUN, _SET_REGS, _GET_SREGS, _SET_SREGS, _SET_CPUID = 0xAE80, 0x4090AE82, 0x8138AE83, 0x4138AE84, 0x4008AE90
_EXIT_IO, _EXIT_HALT = 2, 5
_MEMORY_BYTES, _CODE, _TABLES, _STACK = 0x200000, 0x1000, 0x2000, 0x1F0000


def _say(letter: str) -> bytes:
    """Guest code: write a letter to port 0x3f8."""
    return b"\x66\xba\xf8\x03\xb0" + letter.encode() + b"\xee"


_GUEST = b"".join(
    (
        _say("a"),
        b"\x0f\x20\xd8\x0f\x22\xd8",  # mov rax, cr3; mov cr3, rax
        _say("b"),
        b"\xb9\x82\x00\x00\xc0\xb8\x78\x56\x34\x12\xba\xff\xff\xff\xff\x0f\x30",  # wrmsr LSTAR
        b"\x31\xc0\x31\xd2\x0f\x32\x3d\x78\x56\x34\x12\x75\xfe",  # rdmsr; hang unless it reads back
        _say("c"),
        b"\x31\xc0\x0f\xa2",  # cpuid
        _say("d"),
        b"\x0f\x20\xe0\x48\x0d\x80\x00\x00\x00\x0f\x22\xe0",  # cr4 |= PGE
        _say("e"),
        b"\x9c\x58\x50\x9d\x0f\x01\xf8",  # pushf; pop rax; push rax; popf; swapgs
        _say("f"),
        b"\xb9\x00\x00\x80\x00\xff\xc9\x75\xfc",  # 2**23 rounds: 5 ms on a CPU, many seconds if emulated
        _say("g"),
        b"\xf4",  # hlt
    )
)


def _run_guest(device: str) -> str:
    """Run the guest code to its end and print its letters; returns why it stopped."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    with contextlib.suppress(OSError):
        fcntl.ioctl(machine, _SET_TSS, 0x0FFFD000)  # Intel wants it, others refuse it
    memory = _fill_memory(machine)
    vcpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _RUN_SIZE))
    _set_registers(kvm, vcpu)
    for _ in range(2 * len(_STEPS)):
        fcntl.ioctl(vcpu, _RUN, 0)
        (reason,) = struct.unpack_from("<I", run, 8)
        if reason == _EXIT_HALT:
            memory.close()
            return "halted"
        if reason != _EXIT_IO:
            return f"KVM exit {reason}"
        _, size, _, _, offset = struct.unpack_from("<BBHIQ", run, 32)
        print(run[offset : offset + size].decode("ascii", "replace"), end="", flush=True)
    return "too many exits"


def _fill_memory(machine: int) -> mmap.mmap:
    """Two MiB with the code, identity-mapped by page tables with a single large page."""
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    memory[_CODE : _CODE + len(_GUEST)] = _GUEST
    for table, entry in ((_TABLES, 0x3007), (0x3000, 0x4007), (0x4000, 0x87)):
        memory[table : table + 8] = struct.pack("<Q", entry)
    window = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(window)
    del window
    fcntl.ioctl(machine, _SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))
    return memory


def _set_registers(kvm: int, vcpu: int) -> None:
    """The state at a kernel's first 64-bit instruction, with the CPUID that the host offers."""
    cpuid = bytearray(8 + 40 * 256)
    struct.pack_into("<I", cpuid, 0, 256)
    fcntl.ioctl(kvm, _SUPPORTED_CPUID, cpuid, True)
    fcntl.ioctl(vcpu, _SET_CPUID, cpuid, True)
    special = bytearray(312)
    fcntl.ioctl(vcpu, _GET_SREGS, special, True)
    segment = struct.Struct(
        "<QIHBBBBBBBBBB"
    )  # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, 0
    segment.pack_into(special, 0, 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    for number in range(1, 6):
        segment.pack_into(special, 24 * number, 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    struct.pack_into("<Q", special, 224, 0x80050033)  # cr0: paging, protection
    struct.pack_into("<QQ", special, 240, _TABLES, 0x20)  # cr3; cr4: PAE
    struct.pack_into("<Q", special, 264, 0x500)  # efer: long mode
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(special))
    general = [0] * 18
    general[6], general[16], general[17] = _STACK, _CODE, 2  # rsp, rip, rflags
    fcntl.ioctl(vcpu, _SET_REGS, struct.pack("<18Q", *general))


if __name__ == "__main__":
    signal.setitimer(signal.ITIMER_PROF, _LIMIT_CPU_SECONDS)
    try:
        end = _run_guest(sys.argv[1])
    except OSError as error:
        end = str(error)
    print(f"\n{end}", flush=True)
