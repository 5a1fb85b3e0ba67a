"""Which libvirt to use, and where on that host the pool lies.

An explicit URI wins. Then the kind of libvirt that this data folder has used before: its guests are known to no other,
and a daemon that happens to be down must not make vpsd go elsewhere and miss them all. Then the system's daemon, if it
answers. Then, for an ordinary user, the user's own (libvirt starts it), and for root a daemon that vpsd starts.
"""

import importlib.util
import os
import socket
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from vpsd.errors import Misconfigured
from vpsd.hypervisor.libvirt import daemon

SYSTEM_URI = "qemu:///system"
SESSION_URI = "qemu:///session"

_SYSTEM_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
_SYSTEM_IMAGES = Path("/var/lib/libvirt/images")
_ANSWER_SECONDS = 5.0
_INSTALL = (
    "sudo apt-get install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu "
    "qemu-system-x86 qemu-utils util-linux mount"
)

Kind = Literal["given", "own", "system", "session"]
_SSH_PORT = 22


class Choice(msgspec.Struct, frozen=True):
    """The libvirt to use."""

    kind: Kind
    uri: str
    reason: str


class Machine(Protocol):
    """What the choice depends on."""

    def is_root(self) -> bool:
        """Whether vpsd runs as root."""

    def system_answers(self) -> bool:
        """Whether a system libvirt takes this user."""

    def remembers(self, data: Path) -> str | None:
        """The kind of libvirt that this data folder has used before."""

    def missing_programs(self) -> list[str]:
        """What a daemon that vpsd or libvirt starts would need and is not installed."""


class ThisMachine:
    """The machine that vpsd runs on."""

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def system_answers(self) -> bool:
        return any(_takes_us(path) for path in _SYSTEM_SOCKETS)

    def remembers(self, data: Path) -> str | None:
        try:
            return _memory(data).read_text().strip()
        except OSError:
            return None

    def missing_programs(self) -> list[str]:
        return daemon.missing_programs()


def choose(uri: str | None, data: Path, machine: Machine) -> Choice:
    """Say which libvirt to use; raises `Misconfigured` with what to install where there is none."""
    if uri:
        return Choice("given", uri, "set by VPSD_LIBVIRT_URI")
    root = machine.is_root()
    used_before = machine.remembers(data)
    if used_before is not None:
        return _choose_again(used_before, data, root)
    if machine.system_answers():
        return Choice("system", SYSTEM_URI, "the system's libvirt answers")
    missing = machine.missing_programs()
    if missing:
        raise Misconfigured(
            f"There is no libvirt to be used; missing: {', '.join(missing)}. Install it: {_INSTALL}. "
            "Or use a libvirt elsewhere (VPSD_LIBVIRT_URI), or play without guests (VPSD_HYPERVISOR=simulator)."
        )
    if root:
        return Choice("own", daemon.uri(data), "no libvirt of the system answers, and root may run one")
    return Choice("session", SESSION_URI, "no libvirt of the system takes this user, who may run one")


def remember(choice: Choice, data: Path) -> None:
    """Write down what was used, once it has answered."""
    if choice.kind != "given":
        _memory(data).parent.mkdir(parents=True, exist_ok=True)
        _memory(data).write_text(f"{choice.kind}\n")


def make_ready(choice: Choice, data: Path) -> str:
    """Start what is ours to start; returns the URI to open."""
    if choice.kind == "own":
        daemon.ensure_running(data)
    return choice.uri


def choose_pool_path(choice: Choice, instance: str, data: Path, wanted: Path | None) -> Path:
    """The folder on the host for the disks of this vpsd.

    Under the system's libvirt QEMU runs as another user, who cannot read people's homes: there it is libvirt's usual
    place. Raises `Misconfigured` for a host elsewhere whose layout is unknown.
    """
    if wanted is not None:
        return wanted
    if choice.kind in ("own", "session"):
        return data.absolute() / "pool"
    place = urlsplit(choice.uri)
    if place.path == "/system":
        return data.absolute() / "pool" if choice.uri == _own_uri(data) else _SYSTEM_IMAGES / f"vpsd-{instance}"
    if is_local(choice.uri):
        return data.absolute() / "pool"
    raise Misconfigured(f"Set VPSD_POOL_DIR to a folder of the host at {choice.uri} for the servers' disks.")


def may_open_low_ports(choice: Choice) -> bool:
    """Whether guests can have port 22 of their addresses, as far as can be told from here: QEMU must be root's.

    Under vpsd's own libvirtd it is; under the system's and a user's it is not, unless the kernel lets everyone.
    """
    first_free = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return choice.kind == "own" or (first_free.exists() and int(first_free.read_text()) <= _SSH_PORT)


def is_local(uri: str) -> bool:
    """Whether the host is this machine, so that addresses and files there are the ones here."""
    place = urlsplit(uri)
    return not place.hostname or place.hostname in ("localhost", "127.0.0.1", "::1")


def refuse_without_binding() -> None:
    """Raise `Misconfigured` where Python lacks its part of libvirt."""
    if importlib.util.find_spec("libvirt") is None:
        raise Misconfigured(
            "The Python package libvirt-python is missing. It is compiled: sudo apt-get install gcc pkg-config "
            "libvirt-dev python3-dev, then `make run` again. Or play without guests (VPSD_HYPERVISOR=simulator)."
        )


def _choose_again(kind: str, data: Path, root: bool) -> Choice:
    reason = f"this data folder's servers run there ({_memory(data)} says so)"
    if kind == "system":
        return Choice("system", SYSTEM_URI, reason)
    if kind == "own" and root:
        return Choice("own", daemon.uri(data), reason)
    if kind == "session" and not root:
        return Choice("session", SESSION_URI, reason)
    raise Misconfigured(
        f"The servers of this data folder run under the libvirt of {'root' if kind == 'own' else 'an ordinary user'} "
        f"({_memory(data)} says {kind}): run vpsd as that user, or set VPSD_DATA_DIR to another folder."
    )


def _memory(data: Path) -> Path:
    return daemon.home(data) / "kind"


def _own_uri(data: Path) -> str | None:
    try:
        return daemon.uri(data)
    except Misconfigured:
        return None


def _takes_us(path: str) -> bool:
    """Whether a daemon listens there and lets this user in."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(path)
        except OSError:
            return False
    return _opens(SYSTEM_URI)


def _opens(uri: str) -> bool:
    """Whether libvirt answers at that URI, within a few seconds."""
    import threading

    import libvirt

    answers: list[bool] = []

    def ask() -> None:
        try:
            libvirt.open(uri).close()
            answers.append(True)
        except libvirt.libvirtError:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return answers == [True]
