"""Real hosts, two or more, on one machine: a libvirtd each, in a network namespace of its own with folders of its own.

They, and who looks after them from here, see each other over a bridge. Everything goes with `Lab.close`.
"""

import contextlib
import itertools
import os
import shutil
import signal
import string
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from tests.hypervisor.rigs import INSTANCE, NAME
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor

_FOLDERS = {"run": "/run/libvirt", "lib": "/var/lib/libvirt", "cache": "/var/cache/libvirt", "log": "/var/log/libvirt"}
_SCRIPT = "".join(
    (
        "set -eu\n",
        *(f'mount --bind "$1/{ours}" {theirs}\n' for ours, theirs in {**_FOLDERS, "etc": "/etc/libvirt"}.items()),
        *(f'mount --bind "$1/{name}" /etc/{name}\n' for name in ("hosts", "passwd", "group")),
        'hostname "$2"; exec libvirtd --listen -f "$1/libvirtd.conf" -p "$1/pid"\n',
    )
)
_START_SECONDS = 60.0
_LETTERS = itertools.cycle(string.ascii_lowercase)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Host:
    """One of them."""

    def __init__(self, folder: Path, lab: str, number: int, count: int) -> None:
        self.folder, self.pki = folder / f"h{number}", folder / "pki"
        self.namespace, self._link = f"{lab}-h{number}", f"{lab}h{number}"
        link = self._link
        self.address = f"{_network()}.{number}"
        self._daemon: subprocess.Popen[bytes] | None = None
        _ip("netns", "add", self.namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", "up0", "netns", self.namespace)
        _ip("link", "set", link, "master", lab, "up")
        for device in ("lo", "up0"):
            _ip("-n", self.namespace, "link", "set", device, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "up0")
        self._write_files(number, count)

    def _write_files(self, number: int, count: int) -> None:
        for name in (*_FOLDERS, "etc", "sock", "pool"):
            (self.folder / name).mkdir(parents=True)
        for theirs in (*_FOLDERS.values(), "/etc/libvirt"):
            Path(theirs).mkdir(parents=True, exist_ok=True)
        settings = {
            "unix_sock_dir": self.folder / "sock",
            "auth_unix_rw": "none",
            "listen_addr": self.address,
            "auth_tcp": "none",
            "log_outputs": f"3:file:{self.folder}/log/libvirtd.log",
            "ca_file": self.pki / "cacert.pem",
            **_certify(self.pki, f"host{number}", self.address),
            "host_uuid": uuid.uuid4(),
        }
        lines = [f'{key} = "{value}"' for key, value in settings.items()]
        (self.folder / "libvirtd.conf").write_text("\n".join([*lines, "listen_tls = 1", "listen_tcp = 1", ""]))
        (self.folder / "etc" / "qemu.conf").write_text(
            'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nremember_owner = 0\nstdio_handler = "file"\n'
            f'migration_address = "{self.address}"\n'
        )
        # A name that nobody knows costs 10 s.
        names = "".join(f"{_network()}.{one} move-host{one}\n" for one in range(1, count + 1))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for name, line in (("passwd", "64055::/nonexistent:/usr/sbin/nologin"), ("group", "")):
            (self.folder / name).write_text(f"{Path('/etc', name).read_text()}\nlibvirt-qemu:x:64055:{line}\n")
        self._name = f"move-host{number}"

    def start(self) -> None:
        """Start its libvirtd."""
        inside = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", _SCRIPT, "host"]
        with (self.folder / "log" / "start.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *inside, str(self.folder), self._name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _START_SECONDS
        while not (self.folder / "sock" / "libvirt-sock").exists():
            assert time.monotonic() < end, (self.folder / "log" / "start.log").read_text()
            assert self._daemon.poll() is None, (self.folder / "log" / "start.log").read_text()
            time.sleep(0.05)

    def kill_daemon(self) -> None:
        """`kill -9` for its libvirtd; guests run on, and `start` finds them."""
        pid = int((self.folder / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        assert self._daemon is not None
        self._daemon.wait()
        (self.folder / "sock" / "libvirt-sock").unlink(missing_ok=True)

    def cut(self) -> None:
        """Have nobody reach it."""
        _ip("link", "set", self._link, "down")

    def join(self) -> None:
        """Have it reached again."""
        _ip("link", "set", self._link, "up")

    @property
    def uri(self) -> str:
        """Its address."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def tls_uri(self) -> str:
        """Its address for vpsd, which takes none that is not encrypted."""
        return f"qemu+tls://{self.address}/system?pkipath={self.pki}"

    def connect(self, data: Path) -> LibvirtHypervisor:
        """As vpsd sees it."""
        return LibvirtHypervisor(INSTANCE, data, uri=self.uri, pool_path=self.folder / "pool", virt_type="qemu")

    def qemu_pid(self) -> int:
        """The process that is the guest here."""
        return int((self.folder / "run" / "qemu" / f"{NAME}.pid").read_text())

    def qemus(self) -> int:
        """How many guests there are."""
        count = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                count += b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return count

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run something on it."""
        line = ["ip", "netns", "exec", self.namespace, *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    def _pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def close(self) -> None:
        """Take it away, with all that runs on it."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._daemon is not None:
            self._daemon.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._link)
        _ip("netns", "del", self.namespace)


class Lab:
    """All of them, and the bridge."""

    def __init__(self, count: int = 2) -> None:
        self._count = count
        # A name of its own: what a namespace held goes some time after it, where a process in it takes long to end.
        self._bridge = f"vm{os.getpid() % 1_000_000}{next(_LETTERS)}"
        self.folder = Path(tempfile.mkdtemp(prefix="vpsd-m-", dir="/tmp"))
        self.hosts: list[Host] = []
        _certify(self.folder / "pki", "client", "127.0.0.1")
        _ip("link", "add", self._bridge, "type", "bridge", "forward_delay", "0")
        _ip("addr", "add", f"{_network()}.254/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def start(self) -> None:
        """Make and start them."""
        for number in range(1, self._count + 1):
            self.hosts.append(Host(self.folder, self._bridge, number, self._count))
            self.hosts[-1].start()

    def close(self) -> None:
        """Take everything away."""
        for host in self.hosts:
            host.close()
        _ip("link", "del", self._bridge)
        shutil.rmtree(self.folder)


def _network() -> str:
    return f"10.213.{os.getpid() % 250 + 1}"


def _certify(folder: Path, name: str, address: str) -> dict[str, Path]:
    """A certificate and its key, by libvirtd's names for them; the folder gets an authority of its own."""
    folder.mkdir(exist_ok=True)
    ca, ca_key = folder / "cacert.pem", folder / "cakey.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    if not ca.exists():
        files = ["-out", str(ca), "-keyout", str(ca_key), "-subj", "/CN=lab"]
        subprocess.run([*make, *files, "-addext", "keyUsage=keyCertSign"], check=True, capture_output=True)
    files = ["-out", str(folder / f"{name}cert.pem"), "-keyout", str(folder / f"{name}key.pem"), "-subj", f"/CN={name}"]
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", f"subjectAltName=IP:{address}"]
    uses = ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*make, *files, *signed, *uses], check=True, capture_output=True)
    return {"cert_file": folder / f"{name}cert.pem", "key_file": folder / f"{name}key.pem"}
