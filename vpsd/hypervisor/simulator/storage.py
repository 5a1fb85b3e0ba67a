"""The storage of the simulated host, as far as guests can fill it or it can fail them."""

from msgspec.structs import replace

from vpsd.hypervisor.protocol import NoSpace, PauseReason, PowerState, storage_reserve_mb
from vpsd.hypervisor.simulator.state import GuestState

SIZE_GB = 1 << 17


class Storage:
    """Its public attributes control how it behaves."""

    def __init__(self, reserve_mb: int | None = None) -> None:
        self._reserve_mb = storage_reserve_mb(reserve_mb, SIZE_GB)
        self.free_mb = SIZE_GB * 1024  # with 0, guests that write are paused
        self.fails = False  # what guests write meets an error

    def require_space(self) -> None:
        """Raise `Unusable` where what is left is for guests that run."""
        if self.free_mb < self._reserve_mb:
            raise NoSpace(f"Not enough space on the host: {self.free_mb} MB are free in the pool.")

    def written_by(self, guest: GuestState) -> GuestState:
        """A guest that runs and writes, or is paused by that."""
        reason = PauseReason.IO_ERROR if self.fails else None if self.free_mb else PauseReason.STORAGE_FULL
        power = PowerState.RUNNING if reason is None else PowerState.PAUSED
        return replace(guest, power=power, paused_by=reason)
