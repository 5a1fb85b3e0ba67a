"""A copy of a guest's disk, made by QEMU beside it while the guest runs (libvirt's push backup); calls block.

The moment of the copy is also a checkpoint in libvirt (a bitmap in the disk of what is written from then on), named by
the copy's mark: that is how a later copy knows what has changed.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from xml.etree import ElementTree as Xml

import libvirt
import libvirt_qemu

from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt import domains
from vpsd.hypervisor.libvirt.domain_xml import DISK
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.figures import ask_agent
from vpsd.hypervisor.libvirt.states import power_of
from vpsd.hypervisor.protocol import Copying, Power

log = logging.getLogger(__name__)

_AGENT_SECONDS = 5  # an agent that has not frozen the file systems by then is thawed, and the copy made without it
_ANY_JOB = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED


def begin(host: libvirt.virConnect, name: str, path: str, mark: str, since: str | None) -> Copying:
    """Begin the copy into a file that is not there yet."""
    domain = domains.find(host, name)
    if domain is None:
        raise Unusable(f"The host knows no guest {name}.")
    if not domain.isActive():
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    state, reason = domain.state()
    runs = power_of(state, reason) is Power.RUNNING
    marks = _marks(domain)
    if mark in marks:  # of an earlier try
        _forget(marks.pop(mark))
    if since not in marks:
        since = None
    _remove_bitmaps(domain, set(marks))
    with _frozen(domain) if runs else contextlib.nullcontext([0, 0]) as frozen:
        since = _begin(domain, path, mark, since)
    off = not runs and reason != libvirt.VIR_DOMAIN_PAUSED_IOERROR
    return Copying(since, off or frozen[0] > 0, frozen[1], off)


def _begin(domain: libvirt.virDomain, path: str, mark: str, since: str | None) -> str | None:
    """Begin with as little as the host can do; returns since when the changes are copied, None for everything."""
    if since is not None:
        try:
            domain.backupBegin(_backup(path, since), _checkpoint(mark))
            return since
        except libvirt.libvirtError as error:
            log.warning("%s: what changed cannot be told, copying everything: %s", domain.name(), error)
            _forget_all(domain, None)
    try:
        domain.backupBegin(_backup(path, None), _checkpoint(mark))
    except libvirt.libvirtError as error:
        log.warning("%s: the next copy, too, will have to hold everything: %s", domain.name(), error)
        domain.backupBegin(_backup(path, None), None)  # a disk of an older vpsd keeps no record of changes
    return None


@contextlib.contextmanager
def _frozen(domain: libvirt.virDomain) -> Iterator[list[int]]:
    """File systems at rest, where the agent answers. Yields how many there are and, afterwards, for how long (ms)."""
    held = [0, 0]
    began = time.monotonic()
    try:
        domain.agentSetResponseTimeout(_AGENT_SECONDS, 0)
        held[0] = domain.fsFreeze()
    except libvirt.libvirtError as error:
        log.info("%s: copied without its file systems at rest: %s", domain.name(), error)
        if error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            _thaw(domain)  # it may only have been slow to say so
    try:
        yield held
    finally:
        if held[0]:
            _thaw(domain)
            held[1] = round((time.monotonic() - began) * 1000)


def _thaw(domain: libvirt.virDomain) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        domain.fsThaw()


def progress(host: libvirt.virConnect, name: str) -> float:
    """How far it is, from 0 to 1; raises `Unavailable` for a copy that broke off."""
    domain = domains.find(host, name)
    if domain is None or not domain.isActive():
        raise Unavailable(f"The guest {name} went down while its disk was copied.")
    _thaw_if_frozen(domain)  # an agent that was slow to freeze may have done so since
    stats = domain.jobStats(0)
    if stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        total = stats.get("disk_total", 0)
        return min(0.99, stats.get("disk_processed", 0) / total) if total else 0.0
    done = domain.jobStats(_ANY_JOB)
    if done.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP or not done.get("success"):
        raise Unavailable(f"Copying the disk of {name} broke off: {done.get('errmsg') or 'the host does not say why'}")
    return 1.0


def end(host: libvirt.virConnect, name: str) -> None:
    """Have no copy under way, and no file system frozen."""
    domain = domains.find(host, name)
    if domain is None or not domain.isActive():
        return
    if domain.jobStats(0).get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
    _thaw_if_frozen(domain)


def _thaw_if_frozen(domain: libvirt.virDomain) -> None:
    if power_of(*domain.state()) is Power.RUNNING and ask_agent(domain, "guest-fsfreeze-status") == "frozen":
        _thaw(domain)


def clean(host: libvirt.virConnect, name: str, path: str) -> bool:
    """Take the bitmaps out of the disk of a guest that is off; False where that is not its disk."""
    domain = domains.find(host, name)
    if domain is None or domain.isActive() or f"'{path}'" not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE):
        return False
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        _remove_bitmaps(domain, set())
    finally:
        domain.destroy()
    return True


def forget(host: libvirt.virConnect, name: str, but: str | None) -> None:
    """Let go of every mark but one; of those of a guest that is off, only libvirt's knowledge."""
    domain = domains.find(host, name)
    if domain is not None:
        _forget_all(domain, but)


def _forget_all(domain: libvirt.virDomain, but: str | None) -> None:
    for mark, checkpoint in _marks(domain).items():
        if mark != but:
            _forget(checkpoint)
    if domain.isActive():
        _remove_bitmaps(domain, set(_marks(domain)))


def _marks(domain: libvirt.virDomain) -> dict[str, libvirt.virDomainCheckpoint]:
    return {one.getName(): one for one in domain.listAllCheckpoints(0)}


def _forget(checkpoint: libvirt.virDomainCheckpoint) -> None:
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _remove_bitmaps(domain: libvirt.virDomain, known: set[str]) -> None:
    """Take bitmaps out of the disk that no checkpoint names: what a QEMU that died leaves is of no use any more."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"query-named-block-nodes"}', 0))
    for node in answer["return"]:
        for bitmap in node.get("dirty-bitmaps", ()):
            if bitmap.get("persistent") and bitmap["name"] not in known:
                wanted = {"node": node["node-name"], "name": bitmap["name"]}
                command = json.dumps({"execute": "block-dirty-bitmap-remove", "arguments": wanted})
                libvirt_qemu.qemuMonitorCommand(domain, command, 0)


def _backup(path: str, since: str | None) -> str:
    root = Xml.Element("domainbackup", mode="push")
    if since is not None:
        Xml.SubElement(root, "incremental").text = since
    disk = _only_first_disk(root, "backup", "yes", "no")
    disk.set("type", "file")
    Xml.SubElement(disk, "target", file=path)
    Xml.SubElement(disk, "driver", type="qcow2")
    return Xml.tostring(root, encoding="unicode")


def _checkpoint(mark: str) -> str:
    root = Xml.Element("domaincheckpoint")
    Xml.SubElement(root, "name").text = mark
    _only_first_disk(root, "checkpoint", "bitmap", "no")
    return Xml.tostring(root, encoding="unicode")


def _only_first_disk(root: Xml.Element, attribute: str, yes: str, no: str) -> Xml.Element:
    disks = Xml.SubElement(root, "disks")
    Xml.SubElement(disks, "disk", {"name": "vdb", attribute: no})  # the seed
    return Xml.SubElement(disks, "disk", {"name": DISK, attribute: yes})
