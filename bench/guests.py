"""A vpsd with real guests, of the bench's own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from vpsd.hypervisor.libvirt.daemon import stop_own_daemon

T = TypeVar("T")

LIMIT_SECONDS = 180.0


class Vpsd:
    """A vpsd of the bench's own; needs root or a user with libvirt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "d"
        self._port = _free_port()
        self._key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        self.public_key = self._key.with_suffix(".pub").read_text().strip()

    @contextmanager
    def running(self) -> Iterator[tuple[int, float]]:
        """The process, and the seconds until /health answered."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VPSD_")} | {
            "VPSD_DATA_DIR": str(self.data),
            "VPSD_LISTEN": f"127.0.0.1:{self._port}",
            "VPSD_ADDRESS_POOL": "127.78.0.0/24",
            "VPSD_LOG_LEVEL": "warning",
        }
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("vpsd")), "up"]
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: self.ask("GET", "/health"), pause_seconds=0.02)
            yield process.pid, time.monotonic() - began
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of the API."""
        token = self.data / "token"
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

    def add_key(self) -> int:
        """Have the bench's own key known: its id."""
        key_id: int = self.ask("POST", "/api/v1/ssh-keys/", {"name": "bench", "public_key": self.public_key})["id"]
        return key_id

    def create(self, key_id: int) -> tuple[int, float]:
        """Make a server: its id, and the seconds until a command ran in it."""
        began = time.monotonic()
        order = {"name": "bench", "plan_id": 4, "os_id": 1, "location": "us-west", "ssh_key_id": key_id}
        server: int = self.ask("POST", "/api/v1/servers/", order)["id"]
        address: str = until(lambda: self.address(server), pause_seconds=0.05)
        self.run_command(address)
        return server, time.monotonic() - began

    def address(self, server: int) -> str | None:
        """Where a server is; None until it is active."""
        detail = self.ask("GET", f"/api/v1/servers/{server}/")
        if detail["status"] == "error":
            raise SystemExit(f"bench: the server rests in error: {detail['error']}")
        address: str | None = detail["ip_address"] if detail["status"] == "active" else None
        return address

    def disks(self, server: int) -> list[Path]:
        """The files that are a server's disk: one, or none."""
        return list((self.data / "pool").glob(f"vpsd-*-{server}.????????-????????.qcow2"))

    def delete(self, server: int) -> None:
        """Make a server vanish, and wait until its disk is gone."""
        self.ask("DELETE", f"/api/v1/servers/{server}/")
        until(lambda: not self.disks(server), pause_seconds=0.05)

    def run_command(self, address: str, command: str = "true") -> str:
        """What a command prints by SSH; raises when it does not succeed."""
        done = subprocess.run(
            self.ssh(address, command), stdout=subprocess.PIPE, check=True, timeout=LIMIT_SECONDS, text=True
        )
        return done.stdout.strip()

    def ssh(self, address: str, command: str) -> list[str]:
        """The words that run a command in a guest."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        arguments = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *arguments, "-i", str(self._key), f"root@{address}", command]


@contextmanager
def vpsd_in_a_folder() -> Iterator[Vpsd]:
    """A vpsd that is not running yet, of which nothing is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/tmp", ignore_cleanup_errors=True) as name:
        vpsd = Vpsd(Path(name))
        try:
            yield vpsd
        finally:
            stop_own_daemon(vpsd.data)


def until(ask: Callable[[], T | None], pause_seconds: float) -> T:
    """Ask until there is an answer that is true; what cannot be reached yet is asked again."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            if answer := ask():
                return answer
        time.sleep(pause_seconds)
    raise SystemExit("bench: nothing answered in time")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
