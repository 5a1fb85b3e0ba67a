"""The driver without guests: the same rules as on a real host, for trying vpsd out and for tests."""

from vpsd.hypervisor.simulator.calls import Hook
from vpsd.hypervisor.simulator.driver import Simulator
from vpsd.hypervisor.simulator.pools import SharedPool, shared_folder

__all__ = ["Hook", "SharedPool", "Simulator", "shared_folder"]
