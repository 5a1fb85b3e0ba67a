"""Live moves between two libvirtd: peer to peer, with what the disk holds above its base. Calls block.

libvirt copies into a disk that has to be at the target already, of the same size and on the same base. The two hosts
talk to each other, so that a move ends well although vpsd does not live to see it: exactly one of them runs the guest.
"""

import threading
import time
from xml.etree import ElementTree as Xml

import libvirt
import msgspec

from vpsd.errors import Unusable, VpsdError
from vpsd.hypervisor.libvirt import domains, exports
from vpsd.hypervisor.libvirt.domain_xml import DISK
from vpsd.hypervisor.libvirt.failures import translate
from vpsd.hypervisor.libvirt.states import power_state
from vpsd.hypervisor.moving import MoveProgress
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import PowerState

_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)


# libvirt leaves a disk where it is only if it knows the file system for a shared one (NFS, CephFS, …). Of a folder that
# is shared otherwise it knows nothing; the operator has said so, and the target has just seen the disk. What is in page
# caches is no reason: QEMU drops it where a guest arrives (`drop-cache`, since 4.0).
_SHARED = libvirt.VIR_MIGRATE_UNSAFE


class Landing(msgspec.Struct, frozen=True):
    """Where a guest arrives."""

    xml: str  # what it is defined by at the target
    peer_uri: str  # of the target's libvirtd, as the source's sees it
    move_uri: str  # of its QEMU


class Departure:
    """A move that this process has started, in a thread of its own: it takes as long as it takes, or hangs."""

    def __init__(
        self,
        domain: libvirt.virDomain,
        landing: Landing,
        max_mb_per_second: int | None,
        owner: Owner,
        *,
        copies: bool = True,
    ) -> None:
        """`copies`: what the disk holds as well; not where both hosts see the same file."""
        self._domain, self._owner = domain, owner
        self._landing = landing
        self._flags = _FLAGS | (libvirt.VIR_MIGRATE_NON_SHARED_INC if copies else _SHARED)
        self._parameters: dict[str, object] = {
            libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: landing.xml,
            libvirt.VIR_MIGRATE_PARAM_URI: landing.move_uri,
        }
        if copies:
            self._parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = [DISK]
        if max_mb_per_second is not None:
            self._parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max_mb_per_second
        self.failure: VpsdError | None = None
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="libvirt-move", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether libvirt's call has returned."""
        return not self._thread.is_alive()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def _run(self) -> None:
        domain, name = self._domain, self._domain.name()
        try:
            live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
            parameters = {**self._parameters, libvirt.VIR_MIGRATE_PARAM_DEST_XML: arriving_xml(live, self._landing.xml)}
            if not domains.is_own(domain, self._owner):
                raise Unusable(f"The host knows no guest {name}.")
            domain.migrateToURI3(self._landing.peer_uri, parameters, self._flags)
        except VpsdError as error:
            self.failure = error
        except libvirt.libvirtError as error:
            self.failure = translate(error, f"move the guest {name}")


def require_ready(host: libvirt.virConnect, name: str, owner: Owner) -> libvirt.virDomain:
    """The guest, ready to leave; raises `Unusable` if it is not running."""
    domain = domains.require_name(host, name, owner)
    if domain is None:
        raise Unusable(f"The host knows no guest {name}.")
    if power_state(*domain.state()) is not PowerState.RUNNING:
        raise Unusable("The guest is not running.")
    exports.delete_checkpoints(host, name, None, owner)  # libvirt moves no guest that has any
    return domain


def progress(host: libvirt.virConnect, name: str, owner: Owner) -> MoveProgress | None:
    """How far the move of a guest is; None if none is on its way."""
    domain = domains.find(host, name)
    found = None if domain is None or owner.is_other(domain.UUIDString()) else _job(domain)
    if found is None:
        return None
    done, total = found.get("data_processed", 0), found.get("data_total", 0)
    return MoveProgress(min(done / total, 1.0) if total else 0.0, found.get("time_elapsed", 0) / 1000)


def abort(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """End the move of a guest, if one is on its way."""
    domain = domains.find_own(host, name, owner)
    try:
        if domain is not None and _job(domain) is not None:
            domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            raise  # otherwise it has just ended


def _job(domain: libvirt.virDomain) -> dict[str, int] | None:
    """What libvirt says of a guest's move, if one is on its way from here."""
    try:
        found: dict[str, int] = domain.jobStats(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    return found if found.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT else None


def arriving_xml(live: str, landing: str) -> str:
    """The XML that a guest arrives with: what it has now, with the files, ports and marks that it has at the target."""
    guest, wanted = Xml.fromstring(live), Xml.fromstring(landing)  # noqa: S314  of the hosts' libvirt, and vpsd's own
    if guest.get("type") != wanted.get("type"):
        raise Unusable(f"The guest runs on {guest.get('type')}, and at the target on {wanted.get('type')}.")
    for disk in guest.findall("devices/disk"):
        target = disk.find("target")
        assert target is not None
        for tag in ("source", "backingStore"):  # with the chain of its bases, which are elsewhere at the target
            for element in disk.findall(tag):
                disk.remove(element)
        source = wanted.find(f"devices/disk/target[@dev='{target.get('dev')}']/../source")
        assert source is not None
        disk.append(source)
    for path in ("os/kernel", "os/initrd", "os/nvram"):
        present, text = guest.find(path), wanted.findtext(path)
        if present is not None and text is not None:
            present.text = text
    log = wanted.find("devices/serial/log")
    for console in (*guest.findall("devices/serial"), *guest.findall("devices/console")):
        for element in console.findall("log"):
            console.remove(element)
            if log is not None:
                console.append(log)
    for tag in ("metadata", "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"):
        for element in guest.findall(tag):
            guest.remove(element)
        guest.extend(wanted.findall(tag))
    return Xml.tostring(guest, encoding="unicode")
