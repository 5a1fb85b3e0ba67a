"""What is known of the host at this moment."""

import msgspec

from vpsd.hypervisor.protocol import HostFacts


class HostStatus(msgspec.Struct):
    """Whether the host answers; kept true by whoever is connected to it."""

    status: str = "connecting"  # connecting | ok | unavailable | elsewhere
    error: str | None = None
    facts: HostFacts | None = None
