"""The connection to a host, on whose behalf it is changed, and what it tells of itself."""

import asyncio
import contextlib
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import libvirt

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt import connect, transfer
from vpsd.hypervisor.libvirt.connection import Connection
from vpsd.hypervisor.libvirt.host import LibvirtHost
from vpsd.hypervisor.libvirt.migration import Departure
from vpsd.hypervisor.libvirt.networks import Networks
from vpsd.hypervisor.libvirt.port_probe import PortProbes
from vpsd.hypervisor.libvirt.serial_logs import SerialLogs
from vpsd.hypervisor.libvirt.storage import Pool
from vpsd.hypervisor.libvirt.virtualization import Virtualization
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.owner import ANYBODY, Owner

T = TypeVar("T")

QUICK_SECONDS = 20.0


class Calls:
    """What every call goes through, and what the host tells."""

    def __init__(
        self,
        instance: str,
        data: Path,
        uri: str | None = None,
        pool_path: Path | None = None,
        virt_type: str | None = None,
        machine: connect.Machine | None = None,
        storage_reserve_mb: int | None = None,
        shared_pool: str | None = None,
    ) -> None:
        """`uri`, `pool_path`, `virt_type` and `storage_reserve_mb` override what is detected.

        `shared_pool`: what the pool is called that other hosts see as well.

        Raises `Misconfigured` if there is no usable libvirt.
        """
        connect.require_python_binding()
        self._own = re.compile(rf"vpsd-{re.escape(instance)}-\d+")  # whole: a clone that virt-clone made is not ours
        self._data = data
        self._owner = ANYBODY
        self._choice = connect.choose(uri, data, machine or connect.LocalMachine())
        self._is_local = connect.is_local(self._choice.uri)
        path = connect.choose_pool_path(self._choice, instance, data, pool_path)
        self.shared_pool = shared_pool
        shared = shared_pool is not None
        self._pool = Pool(instance, path, pool_path is not None, storage_reserve_mb, shared=shared)
        self._virtualization = Virtualization(virt_type)
        self._host = LibvirtHost(Connection(self._find_uri, self._on_connect, self._on_change, self._on_reboot))
        self._networks = Networks()
        self._watchers: list[Callable[[str], None]] = []
        self._reboot_watchers: list[Callable[[str], None]] = []
        self._missed_watchers: list[Callable[[], None]] = []
        self._uploads: dict[str, asyncio.Lock] = {}
        self._logs = SerialLogs(instance, self._pool)
        self._port_probes = PortProbes()
        self._departures: dict[str, Departure] = {}  # by guest name: moves that this process has started
        self._exports = transfer.ExportReader(self._host, self._pool)

    @property
    def is_here(self) -> bool:
        """Whether the host is this machine."""
        return self._is_local

    def held_by(self, owner: Owner) -> Self:
        """The same host, with the same connection, as one owner may change it."""
        held = copy.copy(self)
        held._owner = owner
        return held

    async def _change(
        self, name: str, work: Callable[[libvirt.virConnect], T], action: str, seconds: float = QUICK_SECONDS
    ) -> T:
        """Change something that is named after a guest."""
        self._require_own(name)

        def ask(host: libvirt.virConnect) -> T:
            self._owner.check()
            return work(host)

        return await self._host.call(ask, action, seconds)

    def watch(
        self,
        changed: Callable[[str], None],
        rebooted: Callable[[str], None] | None = None,
        missed: Callable[[], None] | None = None,
    ) -> None:
        """Call `changed(guest name)` from libvirt's event thread when something happens to a guest."""
        self._watchers.append(changed)
        if rebooted is not None:
            self._reboot_watchers.append(rebooted)
        if missed is not None:
            self._missed_watchers.append(missed)

    async def close(self) -> None:
        """Disconnect from the host; guests keep running."""
        self._watchers.clear()
        await self._port_probes.close()
        self._reboot_watchers.clear()
        self._missed_watchers.clear()
        await self._host.close()

    def _find_uri(self) -> str:
        return connect.make_ready(self._choice, self._data)

    def _on_connect(self) -> None:
        self._networks.clear()
        connect.remember(self._choice, self._data)
        for missed in tuple(self._missed_watchers):
            with contextlib.suppress(RuntimeError):  # whoever watches has ended
                missed()

    def _on_change(self, name: str) -> None:
        """In libvirt's event thread."""
        if self._own.fullmatch(name):
            self._networks.forget(name)
            for changed in tuple(self._watchers):
                changed(name)

    def _on_reboot(self, name: str) -> None:
        """In libvirt's event thread."""
        if self._own.fullmatch(name):
            for rebooted in tuple(self._reboot_watchers):
                rebooted(name)

    def _require_own(self, name: str) -> None:
        if not self._own.fullmatch(guest_of(name)):
            raise Unusable(f"{name} does not belong to this vpsd.")
