"""The one composition that API, worker and the operator's commands work with."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from vpsd.backups.repository import Repository
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Transactions
from vpsd.core.jumps import ClockJumps
from vpsd.hosts.models import Address, Host
from vpsd.hosts.status import HostStatus
from vpsd.hypervisor.protocol import Hypervisor, Image, Progress


class Images(Protocol):
    """Where images come from."""

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        """The operating system's image, fetched or built on first use."""

    def find(self, system: OperatingSystem, key: str) -> Image | None:
        """The image of that key, of an operating system, if this machine still has it."""

    def current(self, system: OperatingSystem) -> str | None:
        """The key of the image that new servers get, if there is one here already."""

    def cloud_config_schema(self, system: OperatingSystem) -> str | None:
        """The JSON Schema of a #cloud-config, if its image was built with a cloud-init that brings one."""


class Hypervisors:
    """The connections of this process to hosts, each made when it is first used."""

    def __init__(self, connect: Callable[[Address], Hypervisor]) -> None:
        self._connect = connect
        self._open: dict[int, tuple[Address, Hypervisor]] = {}
        self._left: list[Hypervisor] = []  # whoever still holds one may end what it does

    def at(self, host: Host) -> Hypervisor:
        """The host of that row; where its address has changed, by the new one."""
        was, hypervisor = self._open.get(host.id, (None, None))
        if hypervisor is None or was != host.address:
            if hypervisor is not None:
                self._left.append(hypervisor)
            hypervisor = self._connect(host.address)
            self._open[host.id] = host.address, hypervisor
        return hypervisor

    async def close(self) -> None:
        """Disconnect from all of them; guests keep running."""
        for hypervisor in (*self._left, *(hypervisor for _, hypervisor in self._open.values())):
            await hypervisor.close()


class Serving(msgspec.Struct):
    """How far this process is as one of several that serve."""

    is_ending: bool = False  # it was told to end, and answers until nobody asks any more
    hosts_seen: Any = None  # what /health says of the hosts as long as the database is away


class Runtime(Transactions, frozen=True, kw_only=True):
    """Transactions, and everything outside the database."""

    hypervisors: Hypervisors
    images: Images
    repository: Repository
    instance: str  # eight hex digits, the database's own: part of every name on hosts and targets
    jumps: ClockJumps
    serving: Serving = msgspec.field(default_factory=Serving)

    def at(self, host: Host, status: HostStatus | None = None) -> "HostRuntime":
        """The same at one host; `status` is kept true by whoever looks after that."""
        parts = {name: getattr(self, name) for name in Runtime.__struct_fields__}
        return HostRuntime(
            **parts,
            hypervisor=self.hypervisors.at(host),
            host_id=host.id,
            place=host.place,
            host=HostStatus() if status is None else status,
        )


class HostRuntime(Runtime, frozen=True, kw_only=True):
    """What works at one host: a job, and the loops that look after the host."""

    hypervisor: Hypervisor
    host_id: int
    place: str  # `Host.place`
    host: HostStatus
