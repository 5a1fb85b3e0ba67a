"""A libvirtd of vpsd's own, for root on a machine without one (no systemd, a container).

All its state lies in `<data>/libvirt`. It runs in a private mount namespace where libvirt's usual folders are bound to
that place, so a libvirt that is installed later, or another vpsd, does not meet it. It listens on a unix socket only.
It outlives vpsd, as guests do.
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

from vpsd.errors import Misconfigured, Unavailable
from vpsd.hypervisor.libvirt import reaper

_FOLDERS = {  # ours -> the one that libvirt uses
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}
_SOCKET_PATH_BYTES = 107  # what a unix socket's address holds
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_QEMU_USER, _QEMU_ID = "libvirt-qemu", 64055  # as Debian's libvirt-daemon-system makes it
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In the namespace: bind every folder of ours over libvirt's, then run libvirtd under the process that reaps.
_ENTER = "".join(
    (
        "set -eu\n",
        *(f'mount --bind "$1/{ours}" {theirs}\n' for ours, theirs in _FOLDERS.items()),
        *(f'[ ! -e "$1/{name}" ] || mount --bind "$1/{name}" /etc/{name}\n' for name in ("passwd", "group")),
        'exec "$2" -I -S "$3" libvirtd --daemon --config "$1/libvirtd.conf" --pid-file "$1/pid"\n',
    )
)


def home(data: Path) -> Path:
    """The folder of the daemon's state."""
    return data.absolute() / "libvirt"


def socket_path(data: Path) -> Path:
    """Where it listens; raises `Misconfigured` when the path is longer than a socket's may be."""
    path = home(data) / "sock" / "libvirt-sock"
    longest = path.with_name("libvirt-admin-sock")
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
        room = _SOCKET_PATH_BYTES - (len(os.fsencode(longest)) - len(os.fsencode(data.absolute())))
        raise Misconfigured(
            f"The path of the data folder is too long for libvirt's socket: {data.absolute()}. "
            f"Set VPSD_DATA_DIR to a path of at most {room} characters."
        )
    return path


def uri(data: Path) -> str:
    """What to open to reach it."""
    return f"qemu+unix:///system?socket={socket_path(data)}"


def missing_programs() -> list[str]:
    """Programs that a daemon of one's own needs and this machine lacks."""
    needed = ("libvirtd", "qemu-system-x86_64", "qemu-img", "unshare", "mount")
    return [name for name in needed if shutil.which(name, path=_search_path()) is None]


def ensure_running(data: Path) -> None:
    """Have the daemon of this data folder running and listening; raises `Unavailable` with its last words."""
    with _only_one(data):
        if _answers(data):
            return
        _stop(data)  # one that lives and does not listen is of no use to anybody; guests do not notice
        _write_files(data)
        _start(data)


def stop_own_daemon(data: Path) -> None:
    """End the daemon of this data folder, if there is one; its guests go on running. For tests and for a clean-up."""
    if home(data).exists():
        with _only_one(data):
            _stop(data)


def running_pid(data: Path) -> int | None:
    """The process that is the daemon of this data folder."""
    try:
        pid = int((home(data) / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(home(data) / "libvirtd.conf") in command.split(b"\0") else None


@contextlib.contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Two vpsd at one data folder start one daemon."""
    home(data).mkdir(parents=True, exist_ok=True)
    with (home(data) / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _answers(data: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(socket_path(data)))
        except OSError:
            return False
        return True


def _start(data: Path) -> None:
    for folder in _FOLDERS.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    arguments = [str(home(data)), sys.executable, reaper.__file__]
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "vpsd", *arguments]
    log = home(data) / "log" / "start.log"
    try:
        with log.open("wb") as words:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                timeout=_START_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"vpsd's own libvirtd did not start in {_START_SECONDS:g} s; see {home(data)}/log") from None
    if done.returncode or not _answers(data):
        raise Unavailable(f"vpsd's own libvirtd did not start: {_last_words(data)} (all of it: {home(data)}/log)")


def _last_words(data: Path) -> str:
    for name in ("start.log", "libvirtd.log"):
        with contextlib.suppress(OSError):
            errors = [line for line in (home(data) / "log" / name).read_text(errors="replace").splitlines() if line]
            if errors:
                return errors[-1]
    return "it said nothing"


def _stop(data: Path) -> None:
    pid = running_pid(data)
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
    place = home(data)
    if '"' in str(place):
        raise Misconfigured(f"The data folder's path may hold no quotation mark: {data}. Set VPSD_DATA_DIR.")
    for name in (*_FOLDERS, "sock"):
        (place / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    (place / "sock").chmod(0o700)
    (place / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    _write_accounts(place)
    identity = place / "uuid"
    if not identity.exists():
        identity.write_text(f"{uuid.uuid4()}\n")
    settings = {
        "unix_sock_dir": socket_path(data).parent,
        "unix_sock_rw_perms": "0700",
        "unix_sock_ro_perms": "0700",
        "unix_sock_admin_perms": "0700",
        "auth_unix_ro": "none",
        "auth_unix_rw": "none",
        "log_outputs": f"3:file:{place}/log/libvirtd.log",
        "host_uuid": identity.read_text().strip(),
    }
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    (place / "libvirtd.conf").write_text("\n".join([*lines, "listen_tls = 0", "listen_tcp = 0", ""]))


def _write_accounts(place: Path) -> None:
    """Debian's libvirtd ends at once unless its user exists, used or not: let it see one where the system has none."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam(_QEMU_USER), grp.getgrnam(_QEMU_USER)
        for name in ("passwd", "group"):
            (place / name).unlink(missing_ok=True)
        return
    line = f"{_QEMU_USER}:x:{_QEMU_ID}"
    account = f"{line}:{_QEMU_ID}::/nonexistent:/usr/sbin/nologin"
    (place / "passwd").write_text(f"{Path('/etc/passwd').read_text().rstrip()}\n{account}\n")
    (place / "group").write_text(f"{Path('/etc/group').read_text().rstrip()}\n{line}:\n")


# QEMU is root's here so that a guest's port 22 can be opened; libvirt's seccomp sandbox around it stays on.
_QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
"""


def _environment() -> Mapping[str, str]:
    """Nothing of vpsd's own: a daemon that outlives it must not carry its settings or its supervisor's sockets."""
    kept = {name: os.environ[name] for name in ("LANG", "TZ", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": _search_path(), "HOME": "/root", "LC_ALL": "C"}


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")
