"""From POST to a successful SSH command, against the same guest started by QEMU alone: five of each, in turn.

Also what one running vpsd weighs, and how soon it answers when it is started again.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from vpsd.hypervisor.libvirt.daemon import stop_own_daemon
from vpsd.hypervisor.protocol import Image
from vpsd.images.seed import seed_iso
from vpsd.images.store import ImageStore

_ROUNDS = 5
_LIMIT_SECONDS = 180.0
_MEMORY_MB = 256  # of the Nano VPS
_DISK_GB = 2


class Figures(msgspec.Struct, frozen=True):
    """Seconds, and megabytes."""

    vpsd_seconds: list[float]
    direct_seconds: list[float]
    health_seconds: float
    memory_mb: float

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.vpsd_seconds) / statistics.median(self.direct_seconds)


class Vpsd:
    """A vpsd of the bench's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port = _free_port()
        self._key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        self.public_key = self._key.with_suffix(".pub").read_text().strip()

    @contextmanager
    def running(self) -> Iterator[tuple[int, float]]:
        """The process, and the seconds until /health answered."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VPSD_")} | {
            "VPSD_DATA_DIR": str(self.folder / "d"),
            "VPSD_LISTEN": f"127.0.0.1:{self._port}",
            "VPSD_ADDRESS_POOL": "127.78.0.0/24",
            "VPSD_LOG_LEVEL": "warning",
        }
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("vpsd")), "up"]
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _until(lambda: self.ask("GET", "/health"), pause_seconds=0.02)
            yield process.pid, time.monotonic() - began
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of the API."""
        token = self.folder / "d" / "token"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {token.read_text().strip() if token.exists() else 'none'}",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else True

    def create(self, key_id: int) -> tuple[int, float]:
        """Make a server: its id, and the seconds until a command ran in it."""
        began = time.monotonic()
        wish = {"name": "bench", "plan_id": 4, "os_id": 1, "location": "us-west", "ssh_key_id": key_id}
        server: int = self.ask("POST", "/api/v1/servers/", wish)["id"]
        address: str = _until(lambda: self._address(server), pause_seconds=0.05)
        self.run_command(address)
        return server, time.monotonic() - began

    def _address(self, server: int) -> str | None:
        detail = self.ask("GET", f"/api/v1/servers/{server}/")
        if detail["status"] == "error":
            raise SystemExit(f"bench: the server rests in error: {detail['error']}")
        address: str | None = detail["ip_address"] if detail["status"] == "active" else None
        return address

    def delete(self, server: int) -> None:
        """Make a server vanish, and wait until its disk is gone."""
        self.ask("DELETE", f"/api/v1/servers/{server}/")
        _until(lambda: not list((self.folder / "d" / "pool").glob(f"vpsd-*-{server}.qcow2")), pause_seconds=0.05)

    def run_command(self, address: str) -> None:
        """A command by SSH; raises when it does not succeed."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        arguments = [word for option in options for word in ("-o", option)]
        command = ["ssh", "-F", "none", *arguments, "-i", str(self._key), f"root@{address}", "true"]
        subprocess.run(command, check=True, timeout=_LIMIT_SECONDS)


def measure() -> Figures:
    """Run it all; needs root or a user with libvirt."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/tmp", ignore_cleanup_errors=True) as name:
        vpsd = Vpsd(Path(name))
        data = Path(name) / "d"
        try:
            with vpsd.running():
                key = {"name": "bench", "public_key": vpsd.public_key}
                key_id = vpsd.ask("POST", "/api/v1/ssh-keys/", key)["id"]
                server, _ = vpsd.create(key_id)  # builds the image; what it costs is not a boot
                vpsd.delete(server)
                image = ImageStore(data / "images").get("tiny")
                assert image is not None
                ours, direct = [], []
                for _ in range(_ROUNDS):
                    server, seconds = vpsd.create(key_id)
                    vpsd.delete(server)
                    ours.append(seconds)
                    direct.append(_direct(vpsd, image))
            with vpsd.running() as (pid, health_seconds):
                _until(lambda: vpsd.ask("GET", "/health")["hypervisor"]["status"] == "ok", pause_seconds=0.1)
                memory_mb = _memory_mb(pid)
        finally:
            stop_own_daemon(data)
    return Figures(ours, direct, health_seconds, memory_mb)


def _direct(vpsd: Vpsd, image: Image) -> float:
    """The same guest by QEMU alone: seconds until a command ran in it."""
    address = "127.78.1.2"
    began = time.monotonic()
    disk, seed = vpsd.folder / "direct.qcow2", vpsd.folder / "direct.iso"
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(disk)]
    subprocess.run([*overlay, f"{_DISK_GB}G"], check=True)
    seed.write_bytes(seed_iso(instance_id=f"direct-{began}", hostname="bench", ssh_keys=[vpsd.public_key]))
    accelerator = ["-machine", "q35,accel=tcg", "-cpu", "max,la57=off"]
    process = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *accelerator),
            *("-m", str(_MEMORY_MB), "-smp", "1", "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", image.cmdline, "-serial", "null", "-device", "virtio-serial-pci"),
            *("-drive", f"if=none,id=d0,format=qcow2,discard=unmap,file={disk}", "-device", "virtio-blk-pci,drive=d0"),
            *("-drive", f"if=none,id=d1,format=raw,readonly=on,file={seed}", "-device", "virtio-blk-pci,drive=d1"),
            *("-netdev", f"user,id=n0,hostfwd=tcp:{address}:22-:22"),
            *("-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-balloon-pci"),
            *("-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r0"),
        ]
    )
    try:
        _until(lambda: _banner(address), pause_seconds=0.1)
        vpsd.run_command(address)
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def _banner(address: str) -> bool:
    with socket.create_connection((address, 22), 0.3) as connection:
        connection.settimeout(0.3)
        return connection.recv(64).startswith(b"SSH-")


def _until(ask: Any, pause_seconds: float) -> Any:
    end = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            if answer := ask():
                return answer
        time.sleep(pause_seconds)
    raise SystemExit("bench: nothing answered in time")


def _memory_mb(pid: int) -> float:
    """Memory that is the process's own share of what is resident (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
