"""Operations on single domains; calls block and are idempotent.

Whose a domain is stands in its uuid, which is its server's, and in its metadata, as the mark of who took it last.
libvirt has no call that does something only if that is so: it is looked at right before, with nothing in between but
`check`.
"""

from xml.etree import ElementTree as Xml

import libvirt

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt import agent
from vpsd.hypervisor.libvirt.domain_xml import DISK, read_network
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.states import power_state
from vpsd.hypervisor.owner import NameTaken, Owner
from vpsd.hypervisor.protocol import BootSigns, GuestSpec, PauseReason, PowerState
from vpsd.hypervisor.serial_text import last_lines, read_signs

_METADATA = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
_NVRAM, _KEEP_NVRAM = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM, libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
_TERM = "urn:vpsd:term"
_NO_METADATA = libvirt.VIR_ERR_NO_DOMAIN_METADATA


def find(host: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    """The domain, or None."""
    try:
        return host.lookupByName(name)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise


def is_own(domain: libvirt.virDomain, owner: Owner) -> bool:
    """Whether the domain is its server's; ask right before it is changed. Raises `TakenOver`."""
    if owner.is_other(domain.UUIDString()):
        return False
    if owner.term is not None:
        owner.check_term(_read_term(domain))
    owner.check()
    return True


def find_own(host: libvirt.virConnect, name: str, owner: Owner) -> libvirt.virDomain | None:
    """The domain; None if there is none or it is another server's. Raises `TakenOver`."""
    domain = find(host, name)
    return domain if domain is not None and is_own(domain, owner) else None


def may_change(host: libvirt.virConnect, name: str, owner: Owner) -> bool:
    """Whether what is named after a domain may be changed: not where that is another server's. Raises `TakenOver`."""
    domain = find(host, name)
    return domain is None or is_own(domain, owner)


def require_name(host: libvirt.virConnect, name: str, owner: Owner) -> libvirt.virDomain | None:
    """The domain, or None; raises `NameTaken` if it is another server's, or `TakenOver`."""
    domain = find(host, name)
    if domain is None:
        owner.check()
    elif not is_own(domain, owner):
        raise NameTaken
    return domain


def take(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """Put the owner's mark on the domain, if there is one and it is its server's."""
    domain = find(host, name)
    if domain is None or owner.is_other(domain.UUIDString()):
        return
    try:
        _write_term(domain, owner)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
        _write_term(domain, owner)  # it was started or stopped at that very moment


def _write_term(domain: libvirt.virDomain, owner: Owner) -> None:
    flags = (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0) | (
        libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    )
    mark = None if owner.term is None else Xml.tostring(Xml.Element("term", value=owner.term), encoding="unicode")
    owner.check()
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark, "vpsd-term", _TERM, flags)


def _read_term(domain: libvirt.virDomain) -> str | None:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, _TERM, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == _NO_METADATA:
            return None
        raise
    return Xml.fromstring(text).get("value")  # noqa: S314  the host's libvirt is trusted


def define(host: libvirt.virConnect, spec: GuestSpec, xml: str, owner: Owner) -> None:
    """Define the domain; does nothing if it was defined with the same XML."""
    domain = find(host, spec.name)
    if domain is not None:
        if domain.UUIDString() != spec.uuid:
            raise NameTaken
        present = read_network(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        if domain.isPersistent() and present.digest == read_network(xml).digest:
            return
    require_name(host, spec.name, owner)
    host.defineXML(with_term(xml, owner))


def with_term(xml: str, owner: Owner) -> str:
    """The XML of a domain with the owner's mark."""
    if owner.term is None:
        return xml
    domain = Xml.fromstring(xml)  # noqa: S314
    metadata = domain.find("metadata")
    assert metadata is not None
    Xml.SubElement(metadata, f"{{{_TERM}}}term", value=owner.term)
    return Xml.tostring(domain, encoding="unicode")


def power_on(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """Start or resume the domain."""
    domain = _get(host, name, owner)
    power = power_state(*domain.state())
    if power is PowerState.RUNNING:
        return
    owner.check()
    try:
        if power is PowerState.PAUSED:
            domain.resume()
        else:
            domain.create()
    except libvirt.libvirtError as error:
        started = error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID
        if not (started and power_state(*domain.state()) is PowerState.RUNNING):
            raise


def pause_reason(domain: libvirt.virDomain, state: int, reason: int) -> PauseReason | None:
    """Why QEMU has paused the domain, if it has: its disks tell whether there was no space or another error."""
    if (state, reason) != (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
        return None
    try:
        errors = set(domain.diskErrors(0).values())
    except libvirt.libvirtError:
        errors = set()  # it went down just now, or its monitor is busy
    if errors == {libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE}:
        return PauseReason.STORAGE_FULL
    return PauseReason.IO_ERROR


def resume(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """Resume the domain if QEMU has paused it for an error of its storage."""
    domain = find(host, name)
    try:
        if domain is not None and pause_reason(domain, *domain.state()) is not None and is_own(domain, owner):
            domain.resume()
    except libvirt.libvirtError as error:
        if not _is_off(error):
            raise


def grow_disk(host: libvirt.virConnect, name: str, size_bytes: int, owner: Owner) -> bool:
    """Grow the first disk of a running domain; returns False if the domain is not running."""
    domain = require_name(host, name, owner)
    if domain is None or not domain.isActive():
        return False
    owner.check()
    domain.blockResize(DISK, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    return True


def boot_signs(host: libvirt.virConnect, domain: libvirt.virDomain, text: bytes | None) -> BootSigns:
    """How far a running domain's boot is; `text` is the end of what it wrote to its serial console, None: not known."""
    shows_login, stuck = read_signs(text or b"")
    is_up = shows_login or pings(host, domain.name())
    return BootSigns(
        is_up=is_up,
        stuck=None if is_up else stuck,
        is_idle=not text and not _has_read_disk(domain),
        last_lines=last_lines(text or b""),
    )


def _has_read_disk(domain: libvirt.virDomain) -> bool:
    """Whether a running domain has read its first disk since it was powered on; assumed where nothing tells."""
    try:
        reads: int = domain.blockStats(DISK)[0]
    except libvirt.libvirtError:
        return True
    return reads != 0


def request_shutdown(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """Press the power button of a running domain; one that is on its way down, or paused, would not notice."""
    domain = _get(host, name, owner)
    try:
        if _is_executing(domain):
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError:
        if _is_executing(domain):
            raise


def _is_executing(domain: libvirt.virDomain) -> bool:
    """Whether its processors run: one that has shut itself down stays active until QEMU has gone."""
    return domain.state()[0] in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED)


def power_off(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """Kill the domain's QEMU, if any."""
    domain = find(host, name)
    try:
        if domain is not None and domain.isActive() and is_own(domain, owner):
            domain.destroy()
    except libvirt.libvirtError as error:
        if not _is_off(error):
            raise


def undefine(host: libvirt.virConnect, name: str, owner: Owner, *, keeps_files: bool = False) -> None:
    """Undefine the domain, with all metadata that libvirt keeps for it; its firmware's variables are a file."""
    domain = find_own(host, name, owner)
    try:
        if domain is not None:
            domain.undefineFlags(_METADATA | (_KEEP_NVRAM if keeps_files else _NVRAM))
    except libvirt.libvirtError as error:
        if not is_absent(error):
            raise


def pings(host: libvirt.virConnect, name: str) -> bool:
    """Whether the domain's agent answers, within a second or so."""
    domain = find(host, name)
    return domain is not None and agent.ask(domain, "guest-ping", timeout_seconds=1) is not None


def _get(host: libvirt.virConnect, name: str, owner: Owner) -> libvirt.virDomain:
    domain = require_name(host, name, owner)
    if domain is None:
        raise Unusable(f"The host knows no guest {name}.")
    return domain


def _is_off(error: libvirt.libvirtError) -> bool:
    """Whether a call failed because the domain is not running, or is not there any more."""
    return is_absent(error) or error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID
