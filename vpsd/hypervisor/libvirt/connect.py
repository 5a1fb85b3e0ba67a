"""Which libvirt to use, and where on that host the storage pool is.

An explicit URI wins. Then the kind of libvirt that this data folder has used before: only that one knows its guests,
and vpsd must not switch to another just because a daemon happens to be down. Then the system's daemon, if it
answers. Then, for an ordinary user, the session daemon (libvirt starts it), and for root a daemon that vpsd starts.
"""

import importlib.util
import os
import socket
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from vpsd.core.files import write_private
from vpsd.errors import Misconfigured, Unusable
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
    """The facts about a machine that the choice depends on."""

    def is_root(self) -> bool:
        """Whether vpsd runs as root."""

    def system_answers(self) -> bool:
        """Whether a system libvirt accepts connections from this user."""

    def used_before(self, data: Path) -> str | None:
        """The kind of libvirt that this data folder has used before."""

    def missing_programs(self) -> list[str]:
        """Programs that are needed to start a daemon and are not installed."""


class LocalMachine:
    """The machine that vpsd runs on."""

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def system_answers(self) -> bool:
        return any(_accepts_connection(path) for path in _SYSTEM_SOCKETS)

    def used_before(self, data: Path) -> str | None:
        try:
            return _kind_file(data).read_text().strip()
        except OSError:
            return None

    def missing_programs(self) -> list[str]:
        return daemon.missing_programs()


def choose(uri: str | None, data: Path, machine: Machine) -> Choice:
    """Choose the libvirt to use; raises `Misconfigured` with what to install if there is none."""
    if uri:
        return Choice("given", uri, "set by VPSD_LIBVIRT_URI")
    root = machine.is_root()
    used_before = machine.used_before(data)
    if used_before is not None:
        return _choose_as_before(used_before, data, root)
    if machine.system_answers():
        return Choice("system", SYSTEM_URI, "the system's libvirt answers")
    missing = machine.missing_programs()
    if missing:
        raise Misconfigured(
            f"There is no usable libvirt; missing: {', '.join(missing)}. Install it: {_INSTALL}. "
            "Or use a remote libvirt (VPSD_LIBVIRT_URI), or try vpsd without guests (VPSD_HYPERVISOR=simulator)."
        )
    if root:
        return Choice("own", daemon.uri(data), "no system libvirt answers, and root may run one")
    return Choice("session", SESSION_URI, "no system libvirt accepts this user, who may run one")


def remember(choice: Choice, data: Path) -> None:
    """Record which kind was used, once it has answered."""
    if choice.kind != "given" and LocalMachine().used_before(data) != choice.kind:
        _kind_file(data).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        write_private(_kind_file(data), f"{choice.kind}\n")


def make_ready(choice: Choice, data: Path) -> str:
    """Start vpsd's own daemon if that is the choice; returns the URI to open."""
    if choice.kind == "own":
        daemon.ensure_running(data)
    return choice.uri


def choose_pool_path(choice: Choice, instance: str, data: Path, wanted: Path | None) -> Path:
    """The folder on the host for the disks of this vpsd.

    Under the system's libvirt QEMU runs as another user, who cannot read home directories: there it is libvirt's
    default folder. Raises `Misconfigured` for a remote host, whose layout is unknown.
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
    raise Misconfigured(
        f"The host at {choice.uri} needs a folder for the servers' disks: give it --pool, or set VPSD_POOL_DIR where "
        "VPSD_LIBVIRT_URI names it."
    )


def may_open_low_ports(choice: Choice) -> bool:
    """Whether guests can use port 22 of their addresses, as far as is known: QEMU has to run as root.

    It does under vpsd's own libvirtd. Under the others the kernel has to allow everybody to open that port.
    """
    first_free = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return choice.kind == "own" or (first_free.exists() and int(first_free.read_text()) <= _SSH_PORT)


def is_local(uri: str) -> bool:
    """Whether the host is this machine."""
    place = urlsplit(uri)
    return not place.hostname or place.hostname in ("localhost", "127.0.0.1", "::1")


def peer_uri(uri: str) -> str:
    """The URI of a host for another host's libvirtd, which has keys and certificates of its own.

    Raises `Unusable` for one that no other host can reach.
    """
    place = urlsplit(uri)
    if is_local(uri):
        raise Unusable("The host has no address by which another host could reach it: servers move there stopped.")
    return place._replace(query="", fragment="").geturl()


def move_uri(uri: str) -> str:
    """Where a host's QEMU is reached by that of another host."""
    name = urlsplit(uri).hostname or ""
    return f"tcp://[{name}]" if ":" in name else f"tcp://{name}"


def require_python_binding() -> None:
    """Raise `Misconfigured` if libvirt-python is not installed."""
    if importlib.util.find_spec("libvirt") is None:
        raise Misconfigured(
            "The Python package libvirt-python is missing. It is compiled: sudo apt-get install gcc pkg-config "
            "libvirt-dev python3-dev, then `make run` again, or install the extra `vpsd[libvirt]` of the wheel. Or try "
            "vpsd without guests (VPSD_HYPERVISOR=simulator)."
        )


def _choose_as_before(kind: str, data: Path, root: bool) -> Choice:
    reason = f"this data folder's servers run there ({_kind_file(data)} says so)"
    if kind == "system":
        return Choice("system", SYSTEM_URI, reason)
    if kind == "own" and root:
        return Choice("own", daemon.uri(data), reason)
    if kind == "session" and not root:
        return Choice("session", SESSION_URI, reason)
    raise Misconfigured(
        f"The servers of this data folder run under the libvirt of {'root' if kind == 'own' else 'an ordinary user'} "
        f"({_kind_file(data)} says {kind}): run vpsd as that user, or set VPSD_DATA_DIR to another folder."
    )


def _kind_file(data: Path) -> Path:
    return daemon.state_dir(data) / "kind"


def _own_uri(data: Path) -> str | None:
    try:
        return daemon.uri(data)
    except Misconfigured:
        return None


def _accepts_connection(path: str) -> bool:
    """Whether a daemon listens there and accepts this user."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(path)
        except OSError:
            return False
    return _can_open(SYSTEM_URI)


def _can_open(uri: str) -> bool:
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
