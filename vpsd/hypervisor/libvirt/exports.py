"""Exports of a guest's disk, written by QEMU while the guest runs (libvirt's push backup); calls block.

Every export creates a libvirt checkpoint: a bitmap in the disk that records what is written from then on, so that a
later export can hold only the changes.
"""

import contextlib
import json
import logging
from xml.etree import ElementTree as Xml

import libvirt
import libvirt_qemu

from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt import domains, freezing
from vpsd.hypervisor.libvirt.domain_xml import DISK
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.freezing import Freeze
from vpsd.hypervisor.libvirt.states import power_state
from vpsd.hypervisor.owner import Owner
from vpsd.hypervisor.protocol import DiskExport, PowerState

log = logging.getLogger(__name__)

_ANY_JOB = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED


def begin(
    host: libvirt.virConnect, name: str, path: str, checkpoint: str, since: str | None, owner: Owner, *, freeze: bool
) -> DiskExport:
    """Start an export to a file that does not exist yet."""
    domain = domains.require_name(host, name, owner)
    if domain is None:
        raise Unusable(f"The host knows no guest {name}.")
    if not domain.isActive():
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    state, reason = domain.state()
    running = power_state(state, reason) is PowerState.RUNNING
    checkpoints = _checkpoints(domain)
    if checkpoint in checkpoints:  # of an earlier attempt
        _delete_checkpoint(checkpoints.pop(checkpoint))
    if since not in checkpoints:
        since = None
    _remove_unknown_bitmaps(domain, set(checkpoints))
    with freezing.frozen(domain) if running and freeze else contextlib.nullcontext(Freeze()) as done:
        since = _begin_backup(domain, path, checkpoint, since)
    off = not running and reason != libvirt.VIR_DOMAIN_PAUSED_IOERROR
    if off:
        done.detail = "The guest was off: nothing was being written."
    elif not running:
        done.detail = "Not frozen: the guest was paused, for want of space on the host."
    return DiskExport(since, off or done.frozen, done.ms, off, done.asked, done.detail)


def _begin_backup(domain: libvirt.virDomain, path: str, checkpoint: str, since: str | None) -> str | None:
    """Start an incremental backup if the host can, otherwise a full one; returns the checkpoint it is based on."""
    if since is not None:
        try:
            domain.backupBegin(_backup_xml(path, since), _checkpoint_xml(checkpoint))
            return since
        except libvirt.libvirtError as error:
            log.warning("%s: no incremental export, exporting everything: %s", domain.name(), error)
            _delete_checkpoints(domain, None)
    try:
        domain.backupBegin(_backup_xml(path, None), _checkpoint_xml(checkpoint))
    except libvirt.libvirtError as error:
        log.warning("%s: no checkpoint, the next export will be a full one too: %s", domain.name(), error)
        domain.backupBegin(_backup_xml(path, None), None)  # disks of older vpsd versions cannot hold bitmaps
    return None


def progress(host: libvirt.virConnect, name: str) -> float:
    """Progress from 0 to 1; raises `Unavailable` if the export failed."""
    domain = domains.find(host, name)
    if domain is None or not domain.isActive():
        raise Unavailable(f"The guest {name} went down while its disk was exported.")
    _thaw_if_frozen(domain)  # a freeze that timed out may have succeeded since
    job = domain.jobStats(0)
    if job.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        total = job.get("disk_total", 0)
        return min(0.99, job.get("disk_processed", 0) / total) if total else 0.0
    done = domain.jobStats(_ANY_JOB)
    if done.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP or not done.get("success"):
        raise Unavailable(f"The export of the disk of {name} failed: {done.get('errmsg') or 'no reason given'}")
    return 1.0


def abort(host: libvirt.virConnect, name: str, owner: Owner) -> None:
    """Abort a running export and thaw the file systems."""
    domain = domains.find_own(host, name, owner)
    if domain is None or not domain.isActive():
        return
    if domain.jobStats(0).get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
    _thaw_if_frozen(domain)


def ensure_thawed(host: libvirt.virConnect, name: str, owner: Owner) -> bool | None:
    """Have the guest's file systems thawed, and see whether it writes; None where nothing there answers."""
    domain = domains.find_own(host, name, owner)
    return freezing.ensure_thawed(domain) if domain is not None and _is_running(domain) else None


def _thaw_if_frozen(domain: libvirt.virDomain) -> None:
    if _is_running(domain):
        freezing.thaw_if_frozen(domain)


def _is_running(domain: libvirt.virDomain) -> bool:
    return power_state(*domain.state()) is PowerState.RUNNING


def remove_bitmaps(host: libvirt.virConnect, name: str, path: str, owner: Owner) -> bool:
    """Remove all bitmaps from the disk of a guest that is off; returns False if it is not that guest's disk."""
    domain = domains.find_own(host, name, owner)
    if domain is None or domain.isActive() or f"'{path}'" not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE):
        return False
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        _remove_unknown_bitmaps(domain, set())
    finally:
        domains.power_off(host, name, owner)
    return True


def delete_checkpoints(host: libvirt.virConnect, name: str, keep: str | None, owner: Owner) -> None:
    """Delete all checkpoints but one; if the guest is off, only libvirt's metadata of them."""
    domain = domains.find_own(host, name, owner)
    if domain is not None:
        _delete_checkpoints(domain, keep)


def _delete_checkpoints(domain: libvirt.virDomain, keep: str | None) -> None:
    for name, checkpoint in _checkpoints(domain).items():
        if name != keep:
            _delete_checkpoint(checkpoint)
    if domain.isActive():
        _remove_unknown_bitmaps(domain, set(_checkpoints(domain)))


def _checkpoints(domain: libvirt.virDomain) -> dict[str, libvirt.virDomainCheckpoint]:
    return {one.getName(): one for one in domain.listAllCheckpoints(0)}


def _delete_checkpoint(checkpoint: libvirt.virDomainCheckpoint) -> None:
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _remove_unknown_bitmaps(domain: libvirt.virDomain, known: set[str]) -> None:
    """Remove bitmaps without a checkpoint from the disk: those that a dead QEMU left cannot be trusted."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"query-named-block-nodes"}', 0))
    for node in answer["return"]:
        for bitmap in node.get("dirty-bitmaps", ()):
            if bitmap.get("persistent") and bitmap["name"] not in known:
                wanted = {"node": node["node-name"], "name": bitmap["name"]}
                command = json.dumps({"execute": "block-dirty-bitmap-remove", "arguments": wanted})
                libvirt_qemu.qemuMonitorCommand(domain, command, 0)


def _backup_xml(path: str, since: str | None) -> str:
    root = Xml.Element("domainbackup", mode="push")
    if since is not None:
        Xml.SubElement(root, "incremental").text = since
    disk = _only_first_disk(root, "backup", "yes", "no")
    disk.set("type", "file")
    Xml.SubElement(disk, "target", file=path)
    Xml.SubElement(disk, "driver", type="qcow2")
    return Xml.tostring(root, encoding="unicode")


def _checkpoint_xml(checkpoint: str) -> str:
    root = Xml.Element("domaincheckpoint")
    Xml.SubElement(root, "name").text = checkpoint
    _only_first_disk(root, "checkpoint", "bitmap", "no")
    return Xml.tostring(root, encoding="unicode")


def _only_first_disk(root: Xml.Element, attribute: str, yes: str, no: str) -> Xml.Element:
    disks = Xml.SubElement(root, "disks")
    Xml.SubElement(disks, "disk", {"name": "vdb", attribute: no})  # the seed
    return Xml.SubElement(disks, "disk", {"name": DISK, attribute: yes})
