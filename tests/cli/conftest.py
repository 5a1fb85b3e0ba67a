"""A vpsd that runs on the simulator, for the operator's commands beside it."""

from collections.abc import Iterator

import pytest

from tests.running import Vpsd


@pytest.fixture(scope="session")
def vpsd() -> Iterator[Vpsd]:
    """A running vpsd; tests share it, so what they make has names of its own."""
    running = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    try:
        running.start()
        yield running
        assert running.interrupt() == 0
    finally:
        running.discard()
