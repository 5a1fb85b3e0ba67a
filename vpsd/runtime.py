"""The one composition that API, worker and the operator's commands work with."""

from typing import Protocol

from vpsd.backups.repository import Repository
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Transactions
from vpsd.core.jumps import ClockJumps
from vpsd.hosts.status import HostStatus
from vpsd.hypervisor.protocol import Hypervisor, Image, Progress


class Images(Protocol):
    """Where images come from."""

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        """The operating system's image, fetched or built on first use."""

    def cloud_config_schema(self, system: OperatingSystem) -> str | None:
        """The JSON Schema of a #cloud-config, if its image was built with a cloud-init that brings one."""


class Runtime(Transactions, frozen=True, kw_only=True):
    """Transactions, and everything outside the database."""

    hypervisor: Hypervisor
    images: Images
    repository: Repository
    instance: str  # eight hex digits, the database's own: part of every name on hosts and targets
    host: HostStatus
    jumps: ClockJumps
