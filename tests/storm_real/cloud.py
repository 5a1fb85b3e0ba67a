"""A cloud of many processes on this machine, each of which can be killed and started again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests import postgres
from tests.hypervisor.two_hosts import Lab
from tests.running import PROGRAM, Vpsd, until
from vpsd.hypervisor.libvirt import connect

LOCATIONS = ("us-west", "us-east")
_END_SECONDS = 30


class Size(msgspec.Struct, frozen=True):
    """How large the cloud is, and how long it storms."""

    apis: int = 2
    workers: int = 3
    hosts: int = 3
    simulated: int = 2
    servers_per_host: int = 2
    servers: int = 206
    customers: int = 4
    seconds: float = 240


SHORT = Size(apis=1, workers=2, hosts=2, simulated=2, servers_per_host=1, servers=32, customers=2, seconds=0)


class Worker:
    """A `vpsd worker`."""

    def __init__(self, name: str, environment: dict[str, str], log: Path) -> None:
        self.name, self._environment, self._log = name, environment, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "worker"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    def send(self, sign: signal.Signals) -> None:
        """SIGKILL, SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(sign)
        if sign is signal.SIGKILL:
            self._process.wait(_END_SECONDS)

    def end(self) -> None:
        """As a system's shutdown does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(_END_SECONDS)


class ManyProcesses:
    """APIs, workers, a database, real hosts and simulated ones."""

    def __init__(self, folder: Path, url: str, lab: Lab, size: Size) -> None:
        self.url, self.lab, self._size = url, lab, size
        settings: Any = {
            "database_url": url,
            "address_pool": f"127.{80 + os.getpid() % 100}.0.0/16",  # addresses of deleted servers rest for minutes
            "workers": 8,
            "virt_type": "qemu",
            "simulator_boot_seconds": 0.2,
            "boot_timeout_seconds": 600,
            **dict.fromkeys(("rate_limit", "address_rate_limit", "login_failures"), 0),
            "operations_per_account": 100_000,
        }
        self.apis = [Vpsd(**settings)]
        self.apis += [Vpsd(beside=self.apis[0], **settings) for _ in range(size.apis - 1)]
        self.workers = [
            Worker(f"worker-{number + 1}", self.apis[0].environment, folder / f"worker-{number + 1}.log")
            for number in range(size.workers)
        ]
        if images := os.environ.get("TEST_IMAGES_DIR"):
            (self.data / "images").symlink_to(Path(images).absolute())
        connect.remember(connect.Choice("own", "", ""), self.data)  # nobody uses it: it has a host by name only

    @property
    def data(self) -> Path:
        """The data folder that all share."""
        return self.apis[0].data

    def start(self) -> None:
        """Start it all, with its hosts."""
        for api in self.apis:
            api.start(well=False, part="api")
        cpu_ratio = self._size.servers_per_host / (os.cpu_count() or 1)
        for number, host in enumerate(self.lab.hosts):
            options = ["--location", LOCATIONS[number % len(LOCATIONS)], "--pool", str(host.folder / "pool")]
            self._add(f"real-{number + 1}", host.tls_uri, cpu_ratio, *options)
        for number in range(self._size.simulated):  # each serves all locations: servers are moved between them
            name = f"simulated-{number + 1}"
            self._add(name, f"simulator://{name}", 1000.0, "--memory-ratio", "1000", "--storage-ratio", "1000")
        for worker in self.workers:
            worker.start()
        until(self.is_well, "all hosts", 120)

    def _add(self, name: str, uri: str, cpu_ratio: float, *options: str) -> None:
        arguments = ["--uri", uri, "--cpu-ratio", f"{cpu_ratio}", *options]
        # by force: guests are emulated here, which a host that is added should not do
        done = self.apis[0].run("host", "add", name, *arguments, "--force")
        assert done.returncode == 0, done.stderr

    def hosts(self) -> list[dict[str, Any]]:
        """What vpsd knows of its hosts."""
        found: list[dict[str, Any]] = self.run_json("host", "list")
        return found

    def is_well(self) -> bool:
        """Whether every host answers, and is looked after."""
        return all(host["health"] == "ok" for host in self.hosts())

    def run_json(self, *arguments: str) -> Any:
        """An operator's command; what it found, whatever it ends with."""
        done = self.apis[0].run(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def end(self) -> None:
        """End every process, and say what those of them logged that failed."""
        for worker in self.workers:
            worker.end()
        for api in reversed(self.apis):
            if api.has_begun:
                api.interrupt()
        for api in reversed(self.apis):
            api.discard()


@contextmanager
def many_processes(folder: Path, size: Size) -> Iterator[ManyProcesses]:
    """A cloud that runs; nothing of it is left afterwards."""
    with postgres.running_postgres() as url:
        lab = Lab(size.hosts)
        try:
            lab.start()
            made = ManyProcesses(folder, url.format("postgres"), lab, size)
            try:
                made.start()
                yield made
            finally:
                made.end()
        finally:
            lab.close()


def say(text: str) -> None:
    """A line of the story."""
    print(text, file=sys.stderr, flush=True)
