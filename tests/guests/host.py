"""The host of a running vpsd, seen and touched behind its back."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

import libvirt
import psutil

from tests.running import BOOTS_SECONDS, Vpsd, until
from vpsd.hypervisor.libvirt import daemon
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.protocol import BootSigns, Guest, Volumes, guest_name

T = TypeVar("T")

_OPEN = "SELECT id FROM operations WHERE finished_at_ms IS NULL"


class Host:
    """Guests, volumes and processes of one vpsd."""

    def __init__(self, vpsd: Vpsd) -> None:
        self._vpsd = vpsd
        self.instance = str(vpsd.rows("SELECT instance FROM installation")[0][0])

    def driver(self) -> LibvirtHypervisor:
        """A driver of the test's own, to the same libvirt; close it."""
        return LibvirtHypervisor(self.instance, self._vpsd.data)

    def _ask(self, work: Callable[[LibvirtHypervisor], Awaitable[T]]) -> T:
        async def ask() -> T:
            driver = self.driver()
            try:
                return await work(driver)
            finally:
                await driver.close()

        return asyncio.run(ask())

    def name(self, server_id: int) -> str:
        """The guest of a server."""
        return guest_name(self.instance, server_id)

    def guests(self) -> dict[str, Guest]:
        """Everything that libvirt has defined."""
        return dict(self._ask(lambda driver: driver.guests()))

    def volumes(self) -> Volumes:
        """Everything in the pool."""
        return self._ask(lambda driver: driver.volumes())

    def until_agent(self, server_id: int) -> None:
        """Wait for the agent in a guest to answer."""
        name = self.name(server_id)
        until(lambda: self._ask(lambda driver: driver.stats(name)).disk_used_bytes, "the guest's agent")

    def run(self, server_id: int, *argv: str) -> int | None:
        """Run a program through the agent in a guest; its exit code."""
        name = self.name(server_id)
        done = self._ask(lambda driver: driver.run_in_guest(name, argv))
        return None if done is None else done.exit_code

    def signs(self, server_id: int) -> BootSigns:
        """What is seen of a guest's boot."""
        name = self.name(server_id)
        return self._ask(lambda driver: driver.boot_signs(name))

    def remove(self, name: str) -> None:
        """Take a guest away with all that it has."""
        self._ask(lambda driver: driver.remove(name))

    def meddle(self, server_id: int, what: str) -> None:
        """Do something to a guest as `virsh` would: suspend, destroy, undefine."""

        async def do(driver: LibvirtHypervisor) -> None:
            host = libvirt.open((await driver.facts()).uri)
            try:
                domain = host.lookupByName(self.name(server_id))
                if what == "undefine":
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
                else:
                    getattr(domain, what)()
            finally:
                host.close()

        self._ask(do)

    def processes(self, server_id: int) -> list[psutil.Process]:
        """The QEMU processes of a server: one, or none."""
        mark = f"guest={self.name(server_id)},"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(part.startswith(mark) for part in process.cmdline()):
                    found.append(process)
        return found

    def process(self, server_id: int) -> psutil.Process:
        """The QEMU process of a running server."""
        (process,) = self.processes(server_id)
        return process

    @property
    def daemon_pid(self) -> int | None:
        """vpsd's own libvirtd."""
        return daemon.running_pid(self._vpsd.data)

    def end_daemon(self) -> None:
        """End vpsd's own libvirtd."""
        daemon.stop_own_daemon(self._vpsd.data)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """libvirt hears everything and does nothing: whoever asks it for something waits in the middle of it."""
        pid = self.daemon_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def until_at_rest(self, servers: Iterable[int], limit_seconds: float = BOOTS_SECONDS) -> None:
        """Wait for the operations of these servers to end."""
        where = f"server_id IN ({', '.join(map(str, servers))})"
        until(lambda: not self._vpsd.rows(f"{_OPEN} AND {where}"), "operations to end", limit_seconds)

    def until_no_image_is_made(self, limit_seconds: float = 600) -> None:
        """A vpsd that ends in the middle of a build begins it anew: wait."""
        steps = "('reserve_address', 'fetch_image')"
        until(lambda: not self._vpsd.rows(f"{_OPEN} AND step IN {steps}"), "images", limit_seconds)
