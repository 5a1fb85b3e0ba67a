"""What can be seen of a host before it is added."""

import socket
from collections.abc import Collection

import msgspec

from vpsd.core.clock import Clock
from vpsd.errors import VpsdError
from vpsd.hypervisor.clock import difference
from vpsd.hypervisor.protocol import HostFacts, Hypervisor
from vpsd.settings import Settings


class Check(msgspec.Struct, frozen=True):
    """What was found out of a host before it was added."""

    what: str
    ok: bool
    text: str
    warning: bool = False  # it may be added as it is, and should be mended

    @property
    def verdict(self) -> str:
        """In a word, for people."""
        return "FAILED" if not self.ok else "WARNING" if self.warning else "ok"


async def check(
    settings: Settings, clock: Clock, hypervisor: Hypervisor
) -> tuple[list[Check], HostFacts | None, Collection[str]]:
    """Look at a host as far as can be looked at from here, and disconnect: what was found, and which guests it has."""
    checks: list[Check] = []
    try:
        try:
            facts = await hypervisor.facts()
        except VpsdError as error:
            return [Check("connection", False, str(error))], None, ()
        checks.append(Check("connection", True, f"{facts.driver} {facts.version} at {facts.uri}"))
        emulates = facts.virt_type != "kvm" and facts.driver != "simulator" and settings.virt_type != "qemu"
        checks.append(Check("guests", not emulates, f"{facts.virt_type} ({facts.virt_reason})"))
        try:
            await hypervisor.volumes()
            checks.append(Check("pool", True, f"{facts.storage_gb or '?'} GB"))
            checks.append(await _check_clock(hypervisor, clock))
        except VpsdError as error:
            checks.append(Check("pool", False, str(error)))
        if facts.driver != "simulator":
            checks.append(_check_name(facts.name))
        return checks, facts, (await hypervisor.guests()).keys()
    finally:
        await hypervisor.close()


async def _check_clock(hypervisor: Hypervisor, clock: Clock) -> Check:
    """A host's clock is seen by the time that a new file in its pool has."""
    found = await difference(hypervisor, clock)
    if found is None:
        return Check("clock", True, "it cannot be seen from here")
    how_far = f"{abs(found.seconds):.1f} s {'ahead of' if found.seconds > 0 else 'behind'} this machine's"
    text = f"{how_far}, give or take {found.give_or_take_seconds:.1f} s"
    return Check("clock", True, f"{text}; set it right, by NTP" if found.is_far else text, warning=found.is_far)


def _check_name(name: str) -> Check:
    """A host's own name has to resolve: libvirt asks for it at every start, and waits for seconds where it does not."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return Check("name", False, f"{name} does not resolve here ({error}); let it resolve here and on every host")
    return Check("name", True, f"{name} resolves here; it has to on every host")
