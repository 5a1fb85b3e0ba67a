"""What the process that looks after a host knows of it; the host's row says so to everybody else."""

from typing import Literal, TypeAlias

import msgspec

from vpsd.hosts.models import HostHealth
from vpsd.hypervisor.protocol import HostFacts, PauseReason

StorageState: TypeAlias = Literal["ok", "low", "full", "failing"]


class HostStatus(msgspec.Struct):
    """Whether the host answers, and how its storage is."""

    status: HostHealth = HostHealth.CONNECTING
    error: str | None = None
    facts: HostFacts | None = None
    recorded_facts: HostFacts | None = None  # what the row says
    storage_low: bool = False  # nothing begins that takes more of it
    pauses: frozenset[PauseReason] = frozenset()  # for which servers are paused now
    recorded_storage: StorageState | None = None  # what the row says of it

    @property
    def storage(self) -> StorageState | None:
        """How the storage is, in a word; None before it is known."""
        if PauseReason.IO_ERROR in self.pauses:
            return "failing"
        if PauseReason.STORAGE_FULL in self.pauses:
            return "full"
        if self.storage_low:
            return "low"
        return None if self.facts is None else "ok"
