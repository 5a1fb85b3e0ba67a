"""Which tests go to the same worker: those of a room with real guests to one, each of the others to whichever is free.

xdist's own `loadgroup` does the same by marks, but with pytest 9.2 its marks reach nobody (pytest-xdist 3.8.0, issue
1386): then every worker would start a vpsd with guests.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# Each has a libvirtd, a pool and addresses of its own, so they run beside each other.
_ROOMS = ("tests/guests/", "tests/hypervisor/")


class ByRoom(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Work units: a room with real guests is one, any other test is one of its own; the largest are given out first."""

    def _split_scope(self, nodeid: str) -> str:
        return next((room for room in _ROOMS if nodeid.startswith(room)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByRoom:
    """Asked by xdist at the start; conftest.py hands it on."""
    return ByRoom(config, log)
