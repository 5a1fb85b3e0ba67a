"""What is known of defined guests: their networks, which are read once per start of a guest, and their states."""

import libvirt

from vpsd.hypervisor.libvirt import domains
from vpsd.hypervisor.libvirt.domain_xml import NetworkInfo, read_network
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.states import is_moving, power_state
from vpsd.hypervisor.protocol import Guest, PowerState


class Networks:
    """The networks of guests, kept until something happens to a guest."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int, NetworkInfo]] = {}  # by name; valid for that uuid and domain id

    def forget(self, name: str) -> None:
        """Read the guest's network anew when it is next asked for."""
        self._known.pop(name, None)

    def clear(self) -> None:
        """Read everything anew."""
        self._known.clear()

    def guest(self, domain: libvirt.virDomain, state: int, reason: int) -> Guest | None:
        """The guest of a domain in that state; None if it has just been undefined."""
        try:
            network = self._of(domain)
        except libvirt.libvirtError as error:
            if is_absent(error):
                return None
            raise
        why = domains.pause_reason(domain, state, reason)
        moving = is_moving(state, reason)
        power = power_state(state, reason)
        return Guest(domain.name(), domain.UUIDString(), power, network.forwards, why, moving, network.address)

    def running(self, host: libvirt.virConnect, name: str) -> NetworkInfo | None:
        """The network of a guest; None if it is not running."""
        domain = domains.find(host, name)
        if domain is None or power_state(*domain.state()) is not PowerState.RUNNING:
            return None
        return self._of(domain)

    def _of(self, domain: libvirt.virDomain) -> NetworkInfo:
        name, uuid, domain_id = domain.name(), domain.UUIDString(), domain.ID()
        known = self._known.get(name)
        if known is not None and known[:2] == (uuid, domain_id):
            return known[2]
        network = read_network(domain.XMLDesc(0))
        self._known[name] = (uuid, domain_id, network)
        return network
