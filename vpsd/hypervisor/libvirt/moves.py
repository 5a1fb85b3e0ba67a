"""A pool that was moved: with the data folder, or to another VPSD_POOL_DIR. Uses libvirt's API alone; calls block.

The pool's definition follows its files, and so do the definitions of guests that are off, and disks of earlier vpsd,
which name their bases by absolute paths. Guests that run keep what they have: they are defined anew when they are next
powered on.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import libvirt

from vpsd.errors import Misconfigured
from vpsd.hypervisor.libvirt import qcow2
from vpsd.hypervisor.libvirt.connect import is_local
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.volumes import Upload, is_qcow2, receive

log = logging.getLogger(__name__)

_GONE = (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR)  # of a folder that is not there


def target(pool: libvirt.virStoragePool) -> str | None:
    """The folder of a pool."""
    return Xml.fromstring(pool.XMLDesc(0)).findtext("target/path")  # noqa: S314


def redefine(pool: libvirt.virStoragePool, path: Path) -> libvirt.virStoragePool:
    """Have a pool in another folder; it is not active then."""
    definition = Xml.fromstring(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE))  # noqa: S314
    for element in definition.findall("target/path"):
        element.text = str(path)
    if pool.isActive():
        pool.destroy()
    return pool.connect().storagePoolDefineXML(Xml.tostring(definition, encoding="unicode"), 0)


def follow(host: libvirt.virConnect, name: str, path: Path, files: re.Pattern[str]) -> None:
    """Have the pool of that name where its files are by now, if that is `path`; `files`: the names that they have.

    A pool whose files are still where it says stays there. Raises `Misconfigured` where they are in both places, or in
    none although there are guests.
    """
    try:
        pool = host.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return
        raise
    old = target(pool)
    if old is None or is_same(host, Path(old), path):
        return
    if _holds(pool, files):
        if is_local(host.getURI()) and any(files.fullmatch(file.name) for file in _list(path)):
            raise Misconfigured(
                f"There are disks of this vpsd in {old}, where they were, and in {path}. Move away those "
                "that are not to be used."
            )
        return
    guests = [domain for domain in host.listAllDomains(0) if files.fullmatch(f"{domain.name()}.qcow2")]
    pool = redefine(pool, path)
    if not _holds(pool, files) and guests:
        redefine(pool, Path(old))
        raise Misconfigured(
            f"The disks of this vpsd were in {old} on the host, and are neither there nor in {path}. Put them back, or "
            "set VPSD_POOL_DIR to where they are."
        )
    log.warning("the pool has moved from %s to %s", old, path)
    running = set()
    for domain in guests:
        if domain.isActive():
            running.add(domain.name())
        else:
            _move_definition(domain, old, str(path))
    for volume in pool.listAllVolumes(0) if pool.isActive() else ():
        if files.fullmatch(volume.name()) and volume.name().split(".")[0] not in running:
            make_portable(volume)


def is_same(host: libvirt.virConnect, one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder of the host; a symbolic link on another machine is not followed."""
    try:
        return one == other or (is_local(host.getURI()) and one.samefile(other))
    except OSError:
        return False  # one of them is not there


def _holds(pool: libvirt.virStoragePool, files: re.Pattern[str]) -> bool:
    """Whether any of the files are in the folder that the pool says."""
    try:
        if pool.isActive():
            pool.refresh(0)
        else:
            pool.create(0)  # which does not make the folder
        return any(files.fullmatch(volume.name()) for volume in pool.listAllVolumes(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE or not pool.isActive():
            return False
        raise


def _list(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _move_definition(domain: libvirt.virDomain, old: str, new: str) -> None:
    """Have a guest that is off defined with its files in the new folder."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    definition = Xml.fromstring(domain.XMLDesc(flags))  # noqa: S314
    for element in definition.iter():
        if element.text and element.text.startswith(f"{old}/"):
            element.text = new + element.text.removeprefix(old)
        for attribute, value in element.items():
            if value.startswith(f"{old}/"):
                element.set(attribute, new + value.removeprefix(old))
    domain.connect().defineXML(Xml.tostring(definition, encoding="unicode"))


def make_portable(volume: libvirt.virStorageVol, may_write: Callable[[], bool] = lambda: True) -> None:
    """Have a disk that is not in use name its base by its name alone: so they may move together.

    `may_write` is asked right before it is written to, long after it was read.
    """
    if not is_qcow2(volume):
        return
    head = qcow2.with_relative_backing(receive(volume, 0, qcow2.CLUSTER_BYTES))
    if head is not None and may_write():
        with Upload(volume, len(head)) as upload:
            upload.send(head)
