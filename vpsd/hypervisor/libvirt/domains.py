"""What is done to one domain; calls block, and each may be repeated."""

import libvirt

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt.domain_xml import DISK, read_wiring
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.states import power_of
from vpsd.hypervisor.protocol import GuestSpec, Power

_EVERYTHING = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def find(host: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    """The domain, or None."""
    try:
        return host.lookupByName(name)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise


def define(host: libvirt.virConnect, spec: GuestSpec, xml: str) -> None:
    """Have the domain defined; does nothing when it was defined by the same XML."""
    domain = find(host, spec.name)
    if domain is not None:
        if domain.UUIDString() != spec.uuid:
            raise Unusable(f"The host has another guest by the name {spec.name}: {domain.UUIDString()}.")
        present = read_wiring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        if domain.isPersistent() and present.digest == read_wiring(xml).digest:
            return
    host.defineXML(xml)


def power_on(host: libvirt.virConnect, name: str) -> None:
    """Start or resume the domain."""
    domain = _get(host, name)
    power = power_of(*domain.state())
    if power is Power.RUNNING:
        return
    try:
        if power is Power.PAUSED:
            domain.resume()
        else:
            domain.create()
    except libvirt.libvirtError as error:
        started = error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID
        if not (started and power_of(*domain.state()) is Power.RUNNING):
            raise


def grow_disk(host: libvirt.virConnect, name: str, size_bytes: int) -> bool:
    """Grow the first disk of a domain that runs; False for one that does not, whose volume nobody has open."""
    domain = find(host, name)
    if domain is None or not domain.isActive():
        return False
    domain.blockResize(DISK, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    return True


def request_shutdown(host: libvirt.virConnect, name: str) -> None:
    """Press the power button of a domain that runs."""
    domain = _get(host, name)
    try:
        if domain.isActive():
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def power_off(host: libvirt.virConnect, name: str) -> None:
    """End the domain's QEMU, if there is one."""
    domain = find(host, name)
    try:
        if domain is not None and domain.isActive():
            domain.destroy()
    except libvirt.libvirtError as error:
        gone = is_absent(error) or error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID
        if not gone:
            raise


def undefine(host: libvirt.virConnect, name: str) -> None:
    """Have the host forget the domain, and all that it remembers beside it."""
    domain = find(host, name)
    try:
        if domain is not None:
            domain.undefineFlags(_EVERYTHING)
    except libvirt.libvirtError as error:
        if not is_absent(error):
            raise


def ask_for_kvm(host: libvirt.virConnect) -> tuple[str, str]:
    """How guests run on a host elsewhere: only its libvirt can say."""
    try:
        host.getDomainCapabilities(None, "x86_64", None, "kvm")
    except libvirt.libvirtError:
        return "qemu", "emulation: the host's libvirt offers no KVM"
    return "kvm", "the host's libvirt offers KVM"


def _get(host: libvirt.virConnect, name: str) -> libvirt.virDomain:
    domain = find(host, name)
    if domain is None:
        raise Unusable(f"The host knows no guest {name}.")
    return domain
