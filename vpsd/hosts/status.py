"""The current status of the host."""

import msgspec

from vpsd.hypervisor.protocol import HostFacts


class HostStatus(msgspec.Struct):
    """Whether the host answers; kept up to date by the worker."""

    status: str = "connecting"  # connecting | ok | unavailable | elsewhere
    error: str | None = None
    facts: HostFacts | None = None
