"""The current status of the host."""

from typing import Literal, TypeAlias

import msgspec

from vpsd.hypervisor.protocol import HostFacts, PauseReason

HostState: TypeAlias = Literal["connecting", "ok", "unavailable", "elsewhere"]
StorageState: TypeAlias = Literal["ok", "low", "full", "failing"]


class HostStatus(msgspec.Struct):
    """Whether the host answers; kept up to date by the worker."""

    status: HostState = "connecting"
    error: str | None = None
    facts: HostFacts | None = None
    storage_low: bool = False  # nothing begins that takes more of it
    pauses: frozenset[PauseReason] = frozenset()  # for which servers are paused now

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
