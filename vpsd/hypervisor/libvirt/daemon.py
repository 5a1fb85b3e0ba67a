"""A libvirtd of vpsd's own, for root on a machine without one (no systemd, a container).

All its state is in `<data>/libvirt`. It runs in a private mount namespace where libvirt's default folders are bind
mounts of that, so it does not conflict with a libvirt that is installed later or with another vpsd. It listens on a
unix socket only. Like the guests, it keeps running when vpsd ends.

Beside it runs a virtlogd, in a namespace like that: libvirt has it write and rotate what guests say on their serial
consoles, and no guest can be started without it.
"""

import contextlib
import fcntl
import grp
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from vpsd.core.files import write_private
from vpsd.errors import Misconfigured, Unavailable
from vpsd.hypervisor.libvirt import reaper

_FOLDERS = {  # ours -> libvirt's default
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}


class _Files(NamedTuple):
    """Of a daemon, in our folder."""

    socket: str
    pid_file: str


_DAEMONS = {  # in the order of their start
    "virtlogd": _Files("run/virtlogd-sock", "virtlogd.pid"),
    "libvirtd": _Files("sock/libvirt-sock", "pid"),
}
_SOCKET_PATH_BYTES = 107  # the longest address of a unix socket
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
MAX_LOG_BYTES = 256 * 1024  # of each file, and one older is kept
_QEMU_USER, _QEMU_ID = "libvirt-qemu", 64055  # as Debian's libvirt-daemon-system makes it
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In the namespace: bind our folders over libvirt's, then run the command.
_NAMESPACE_SCRIPT = "".join(
    (
        "set -eu\n",
        *(f'mount --bind "$1/{ours}" {theirs}\n' for ours, theirs in _FOLDERS.items()),
        *(f'[ ! -e "$1/{name}" ] || mount --bind "$1/{name}" /etc/{name}\n' for name in ("passwd", "group")),
        'shift; exec "$@"\n',
    )
)


def state_dir(data: Path) -> Path:
    """The folder with the state of the daemon."""
    return data.absolute() / "libvirt"


def socket_path(data: Path) -> Path:
    """The socket that it listens on; raises `Misconfigured` if the path is too long for a socket."""
    path = state_dir(data) / "sock" / "libvirt-sock"
    longest = path.with_name("libvirt-admin-sock")
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
        room = _SOCKET_PATH_BYTES - (len(os.fsencode(longest)) - len(os.fsencode(data.absolute())))
        raise Misconfigured(
            f"The path of the data folder is too long for libvirt's socket: {data.absolute()}. "
            f"Set VPSD_DATA_DIR to a path of at most {room} characters."
        )
    return path


def uri(data: Path) -> str:
    """The URI to connect to it."""
    return f"qemu+unix:///system?socket={socket_path(data)}"


def missing_programs() -> list[str]:
    """Programs that the daemon needs and that are not installed."""
    needed = ("libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img", "unshare", "mount")
    return [name for name in needed if shutil.which(name, path=_search_path()) is None]


def ensure_running(data: Path) -> None:
    """Start the daemons of this data folder unless they are running; raises `Unavailable` with their last error."""
    with _locked(data):
        if _is_outdated(data):
            _stop(data, "libvirtd")
        for name in _DAEMONS:
            if not _answers(data, name):
                _stop(data, name)  # one that runs but does not listen is useless; guests keep running
                _write_files(data)
                _start(data, name)


def stop_own_daemon(data: Path) -> None:
    """Stop the daemons of this data folder, if any; its guests keep running. For tests and for cleaning up.

    What guests that keep running write to their serial consoles is not recorded until they are powered on again.
    """
    if state_dir(data).exists():
        with _locked(data):
            for name in reversed(_DAEMONS):
                _stop(data, name)


def running_pid(data: Path, name: str = "libvirtd") -> int | None:
    """The process id of libvirtd (or virtlogd) of this data folder, if it is running."""
    try:
        pid = int((state_dir(data) / _DAEMONS[name].pid_file).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if os.fsencode(state_dir(data) / f"{name}.conf") in command:
            return pid
        # Started before the data folder was moved: what is bound over libvirt's folder is ours all the same.
        if os.fsencode(name) in (part.rpartition(b"/")[2] for part in command):
            ours, theirs = state_dir(data) / "etc", Path(f"/proc/{pid}/root") / _FOLDERS["etc"].lstrip("/")
            return pid if ours.samefile(theirs) else None
    except (OSError, ValueError):
        pass
    return None


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Make sure that two vpsd with one data folder start only one daemon."""
    state_dir(data).mkdir(mode=0o711, parents=True, exist_ok=True)
    with (state_dir(data) / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_outdated(data: Path) -> bool:
    """Whether the daemon was started by an earlier vpsd, whose libvirtd let guests write their logs without a limit."""
    qemu_conf = state_dir(data) / "etc" / "qemu.conf"
    return qemu_conf.exists() and qemu_conf.read_text() != _QEMU_CONF


def _answers(data: Path, name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(state_dir(data) / _DAEMONS[name].socket))
        except OSError:
            return False
        return True


def _start(data: Path, name: str) -> None:
    for folder in _FOLDERS.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    files = state_dir(data)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NAMESPACE_SCRIPT, "vpsd", str(files)]
    command += [sys.executable, "-I", "-S", reaper.__file__] if name == "libvirtd" else []
    command += [
        name,
        "--daemon",
        "--config",
        f"{files}/{name}.conf",
        "--pid-file",
        f"{files}/{_DAEMONS[name].pid_file}",
    ]
    log = files / "log" / "start.log"
    try:
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                timeout=_START_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"vpsd's own {name} did not start in {_START_SECONDS:g} s; see {files}/log") from None
    if done.returncode or not _answers(data, name):
        raise Unavailable(f"vpsd's own {name} did not start: {_last_error(data, name)} (see {files}/log)")


def _last_error(data: Path, name: str) -> str:
    for file in ("start.log", f"{name}.log"):
        with contextlib.suppress(OSError):
            errors = [
                line for line in (state_dir(data) / "log" / file).read_text(errors="replace").splitlines() if line
            ]
            if errors:
                return errors[-1]
    return "it printed nothing"


def _stop(data: Path, name: str) -> None:
    pid = running_pid(data, name)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, sign)
                if select.select([handle], [], [], _STOP_SECONDS)[0]:
                    return
        finally:
            os.close(handle)


def _write_files(data: Path) -> None:
    folder = state_dir(data)
    if '"' in str(folder):
        raise Misconfigured(f"The data folder's path must not contain quotation marks: {data}. Set VPSD_DATA_DIR.")
    for name in (*_FOLDERS, "sock"):
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in ("sock", "etc", "log"):  # what guests are made of, and what they said, is nobody else's
        (folder / name).chmod(0o700)
    (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    _write_accounts(folder)
    identity = folder / "uuid"
    if not identity.exists():
        write_private(identity, f"{uuid.uuid4()}\n")
    settings = {
        "unix_sock_dir": socket_path(data).parent,
        "unix_sock_rw_perms": "0700",
        "unix_sock_ro_perms": "0700",
        "unix_sock_admin_perms": "0700",
        "auth_unix_ro": "none",
        "auth_unix_rw": "none",
        "log_outputs": f"3:file:{folder}/log/libvirtd.log",
        "host_uuid": identity.read_text().strip(),
    }
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    (folder / "libvirtd.conf").write_text("\n".join([*lines, "listen_tls = 0", "listen_tcp = 0", ""]))
    lines = [f'log_outputs = "3:file:{folder}/log/virtlogd.log"', f"max_size = {MAX_LOG_BYTES}", "max_backups = 1", ""]
    (folder / "virtlogd.conf").write_text("\n".join(lines))


def _write_accounts(folder: Path) -> None:
    """Debian's libvirtd exits unless its user exists, even if unused: provide one if the system has none."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam(_QEMU_USER), grp.getgrnam(_QEMU_USER)
        for name in ("passwd", "group"):
            (folder / name).unlink(missing_ok=True)
        return
    line = f"{_QEMU_USER}:x:{_QEMU_ID}"
    account = f"{line}:{_QEMU_ID}::/nonexistent:/usr/sbin/nologin"
    (folder / "passwd").write_text(f"{Path('/etc/passwd').read_text().rstrip()}\n{account}\n")
    (folder / "group").write_text(f"{Path('/etc/group').read_text().rstrip()}\n{line}:\n")


# QEMU is root's here so that a guest's port 22 can be opened; libvirt's seccomp sandbox around it stays on.
_QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
stdio_handler = "logd"
"""


def _environment() -> Mapping[str, str]:
    """Only a few variables: a daemon that outlives vpsd must not inherit its settings or its supervisor's sockets."""
    kept = {name: os.environ[name] for name in ("LANG", "TZ", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": _search_path(), "HOME": "/root", "LC_ALL": "C"}


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")
