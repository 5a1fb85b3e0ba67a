"""What a base image on a host is called, and who uses it."""

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as Xml

import libvirt

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.volumes import backing_path

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class BasePaths(NamedTuple):
    """Paths of a complete base image on the host."""

    disk: str
    kernel: str
    initrd: str | None


def check_key(key: str) -> str:
    """The key, if it is safe in a file name; raises `Unusable` otherwise."""
    if not _KEY.fullmatch(key):
        raise Unusable(f"The key of an image must consist of letters, digits, dots, hyphens and underscores: {key!r}")
    return key


def require_unused(host: libvirt.virConnect, pool: libvirt.virStoragePool, disks: re.Pattern[str], key: str) -> None:
    """Raise `Unusable` where a disk stands on a base, or a guest boots its kernel. `disks`: the names of disks."""
    users = [
        volume.name()
        for volume in pool.listAllVolumes(0)
        if disks.fullmatch(volume.name()) and Path(backing_path(volume) or "").name == f"base-{key}.qcow2"
    ]
    if users:
        raise Unusable(f"The base image {key} is in use by the disks {', '.join(sorted(users)[:5])}.")
    booted = [domain.name() for domain in host.listAllDomains(0) if _kernel(domain) == f"base-{key}.kernel"]
    if booted:
        raise Unusable(f"The guests {', '.join(sorted(booted)[:5])} boot the kernel of the base image {key}.")


def _kernel(domain: libvirt.virDomain) -> str | None:
    """The name of the kernel that a guest boots; None if its own disk brings it, or the guest has gone meanwhile."""
    try:
        return Path(Xml.fromstring(domain.XMLDesc(0)).findtext("os/kernel") or "").name or None  # noqa: S314
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise
