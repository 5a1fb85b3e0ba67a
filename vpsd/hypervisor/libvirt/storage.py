"""The pool of one vpsd: base images, disks on top of them, seeds. Through libvirt's API alone; calls block.

A base image is up to four volumes: `base-KEY.kernel`, `.initrd`, `.qcow2`, and an empty `base-KEY.whole` that is made
last. Without that mark a base counts as unfinished, whatever else is there, so an upload that was cut off at any point
(vpsd killed, libvirtd killed, disk full) is never taken for a whole one: the next one starts over.

A disk that a restore writes gets its first cluster last: before that it is no qcow2 file, and so no disk.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as Xml

import libvirt

from vpsd.errors import Misconfigured, Unusable
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.volumes import (
    backing_path,
    delete,
    find,
    is_half_made,
    is_qcow2,
    refresh,
    send_bytes,
    send_file,
    volume_xml,
)
from vpsd.hypervisor.protocol import Image, Volumes

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BASE_VOLUME = re.compile(r"base-(.+)\.(qcow2|kernel|initrd|whole)")

_KEPT_FREE_BYTES = 1 << 30

Report = Callable[[float, str], None]


class Bases(NamedTuple):
    """Paths on the host of a whole base image."""

    disk: str
    kernel: str
    initrd: str | None


class Pool:
    """The pool `vpsd-<instance>`, defined and started when it is first used."""

    def __init__(self, instance: str, path: Path, path_is_wanted: bool) -> None:
        self._name = f"vpsd-{instance}"
        self._path = path
        self._path_is_wanted = path_is_wanted
        self._lock = threading.Lock()
        guest = rf"vpsd-{re.escape(instance)}-\d+"
        self._disk = re.compile(rf"({guest}(?:\.\d+)?)\.qcow2")
        self._seed = re.compile(rf"({guest})-seed\.iso")
        self._copy = re.compile(rf"({guest})-copy")

    def open(self, host: libvirt.virConnect) -> libvirt.virStoragePool:
        """The pool, active."""
        with self._lock:
            try:
                pool = host.storagePoolLookupByName(self._name)
            except libvirt.libvirtError as error:
                if not is_absent(error):
                    raise
                pool = self._define(host)
            if not pool.isActive():
                pool.build(0)
                pool.create(0)
            return pool

    def path(self, host: libvirt.virConnect) -> Path:
        """The pool's folder on the host; raises `Misconfigured` when it is another than the wanted one."""
        text = Xml.fromstring(self.open(host).XMLDesc(0)).findtext("target/path")  # noqa: S314
        present = Path(text or self._path)
        if self._path_is_wanted and present != self._path:
            raise Misconfigured(
                f"The disks of this vpsd lie in {present} on the host, and VPSD_POOL_DIR says {self._path}. "
                f"Set it to {present}, or unset it."
            )
        return present

    def capacity_gb(self, host: libvirt.virConnect) -> int | None:
        """Size of the file system that the pool lies in; None while there is no pool yet. Makes none."""
        try:
            pool = host.storagePoolLookupByName(self._name)
            capacity: int = pool.info()[1]
        except libvirt.libvirtError as error:
            if is_absent(error):
                return None
            raise
        return capacity >> 30 or None  # nothing is known of a pool that was never started

    def require_room(self, host: libvirt.virConnect, needed_bytes: int) -> None:
        """Raise `Unusable` where that much would fill the pool: its guests have to be able to write."""
        pool = self.open(host)
        refresh(pool)
        _, capacity, _, free = pool.info()
        if free - needed_bytes < min(_KEPT_FREE_BYTES, capacity // 20):
            mb = [f"{size >> 20} MB" for size in (needed_bytes, free)]
            raise Unusable(f"The host has no room for it: it may need {mb[0]}, and {mb[1]} are free in the pool.")

    def copy_bytes(self, host: libvirt.virConnect, name: str) -> int:
        """What a whole copy of a guest's disk may need: what its disk takes, and what that stands on."""
        pool, needed = self.open(host), 0
        for volume in pool.listAllVolumes(0):
            match = self._disk.fullmatch(volume.name())
            if match and match[1].partition(".")[0] == name:
                backing = backing_path(volume)
                needed += volume.info()[2] + (host.storageVolLookupByPath(backing).info()[2] if backing else 0)
        return needed

    def list(self, host: libvirt.virConnect) -> Volumes:
        """Everything in the pool, as the host's file system has it."""
        pool = self.open(host)
        refresh(pool)
        names = {volume.name() for volume in pool.listAllVolumes(0)}
        kinds: dict[str, set[str]] = {kind: set() for kind in ("disk", "seed", "copy", "whole", "base", "stranger")}
        for name in names:
            if match := self._disk.fullmatch(name):
                kinds["disk"].add(match[1])
            elif match := self._seed.fullmatch(name):
                kinds["seed"].add(match[1])
            elif match := self._copy.fullmatch(name):
                kinds["copy"].add(match[1])
            elif match := _BASE_VOLUME.fullmatch(name):
                kinds["whole" if match[2] == "whole" else "base"].add(match[1])
            else:
                kinds["stranger"].add(name)
        whole = {key for key in kinds["whole"] if f"base-{key}.qcow2" in names}
        return Volumes(
            disks=frozenset(kinds["disk"]),
            seeds=frozenset(kinds["seed"]),
            bases=frozenset(whole),
            strangers=frozenset(kinds["stranger"]),
            unfinished=frozenset((kinds["base"] | kinds["whole"]) - whole),
            copies=frozenset(kinds["copy"]),
        )

    def has_base(self, host: libvirt.virConnect, key: str) -> bool:
        """Whether the base is there, whole."""
        pool = self.open(host)
        return all(find(pool, f"base-{check_key(key)}.{part}") is not None for part in ("whole", "qcow2"))

    def upload_base(self, host: libvirt.virConnect, image: Image, report: Report, stop: threading.Event) -> None:
        """Put the image's files into the pool; `stop` breaks it off."""
        if self.has_base(host, image.key):
            return
        self.delete_base(host, image.key)
        pool = self.open(host)
        files = [
            (source, f"base-{image.key}.{part}")
            for source, part in ((image.kernel, "kernel"), (image.initrd, "initrd"), (image.disk, "qcow2"))
            if source is not None
        ]
        total = sum(source.stat().st_size for source, _ in files)
        done = 0
        for source, name in files:

            def said(sent: int, name: str = name, before: int = done) -> None:
                report((before + sent) / max(total, 1), f"sending {name} to the host")

            qcow2 = name.endswith(".qcow2")
            size = image.virtual_size_bytes if qcow2 else source.stat().st_size
            volume = pool.createXML(volume_xml(name, size, "qcow2" if qcow2 else "raw"), 0)
            done += send_file(volume, source, said, stop)
        pool.createXML(volume_xml(f"base-{image.key}.whole", 0, "raw"), 0)

    def delete_base(self, host: libvirt.virConnect, key: str) -> None:
        """Delete a base or what there is of it; raises `Unusable` while a disk stands on it."""
        pool = self.open(host)
        disk = find(pool, f"base-{check_key(key)}.qcow2")
        if disk is not None:
            self._refuse_if_used(pool, key, disk.path())
        for part in ("whole", "qcow2", "initrd", "kernel"):
            delete(pool, f"base-{key}.{part}")

    def base_paths(self, host: libvirt.virConnect, key: str) -> Bases:
        """Where a base's files lie; no question asked about whether they do."""
        folder = self.path(host)
        initrd = find(self.open(host), f"base-{check_key(key)}.initrd")
        return Bases(
            disk=str(folder / f"base-{key}.qcow2"),
            kernel=str(folder / f"base-{key}.kernel"),
            initrd=None if initrd is None else str(folder / f"base-{key}.initrd"),
        )

    def make_disk(self, host: libvirt.virConnect, name: str, base: str, size_bytes: int) -> None:
        """Have the disk of a guest; a whole one is left as it is."""
        pool = self.open(host)
        if not self.has_base(host, base):
            raise Unusable(f"The base image {base} is not on the host.")
        volume = find(pool, f"{name}.qcow2")
        if volume is not None:
            if not is_half_made(volume):
                return
            volume.delete(0)
        backing = find(pool, f"base-{base}.qcow2")
        if backing is None:
            raise Unusable(f"The base image {base} is not on the host.")
        size = max(size_bytes, backing.info()[1])
        pool.createXML(volume_xml(f"{name}.qcow2", size, "qcow2", backing=backing.path()), 0)

    def begin_disk(self, host: libvirt.virConnect, disk: str, file_bytes: int) -> libvirt.virStorageVol | None:
        """An empty file for a disk that is written byte by byte; None where the disk is there, whole."""
        pool = self.open(host)
        refresh(pool)
        volume = find(pool, f"{disk}.qcow2")
        if volume is not None:
            if is_qcow2(volume):
                return None
            volume.delete(0)
        self.require_room(host, file_bytes)
        return pool.createXML(volume_xml(f"{disk}.qcow2", file_bytes, "raw"), 0)

    def delete_disk(self, host: libvirt.virConnect, disk: str) -> None:
        """Delete a disk, whole or not."""
        delete(self.open(host), f"{disk}.qcow2")

    def disk_bytes(self, host: libvirt.virConnect, disk: str) -> int:
        """The size of a disk, as its guest sees it; raises `Unusable` where there is none."""
        size: int = self._disk_of(host, disk).info()[1]
        return size

    def grow_disk(self, host: libvirt.virConnect, disk: str, size_bytes: int) -> None:
        """Grow a disk that no guest has open."""
        self._disk_of(host, disk).resize(size_bytes, 0)

    def _disk_of(self, host: libvirt.virConnect, disk: str) -> libvirt.virStorageVol:
        pool = self.open(host)
        refresh(pool)  # QEMU may have grown it behind libvirt's back
        volume = find(pool, f"{disk}.qcow2")
        if volume is None:
            raise Unusable(f"There is no disk {disk}.")
        return volume

    def disk_path(self, host: libvirt.virConnect, disk: str) -> str:
        """Where a disk lies."""
        return str(self.path(host) / f"{disk}.qcow2")

    def copy_path(self, host: libvirt.virConnect, name: str) -> str:
        """Where the copy of a guest's disk lies."""
        return str(self.path(host) / f"{name}-copy")

    def copy_of(self, host: libvirt.virConnect, name: str, *, look: bool = False) -> libvirt.virStorageVol:
        """The copy of a guest's disk; raises `Unusable` where there is none. `look`: QEMU has just made it."""
        pool = self.open(host)
        if look:
            refresh(pool)
        volume = find(pool, f"{name}-copy")
        if volume is None:
            raise Unusable(f"There is no copy of the disk of {name} on the host.")
        return volume

    def delete_copy(self, host: libvirt.virConnect, name: str) -> None:
        """Delete the copy of a guest's disk."""
        pool = self.open(host)
        refresh(pool)
        delete(pool, f"{name}-copy")

    def write_seed(self, host: libvirt.virConnect, name: str, content: bytes) -> None:
        """Put the seed there; one of the same size is written over in place, so that a running guest sees it."""
        pool = self.open(host)
        volume = find(pool, f"{name}-seed.iso")
        if volume is not None and volume.info()[1] != len(content):
            volume.delete(0)
            volume = None
        if volume is None:
            volume = pool.createXML(volume_xml(f"{name}-seed.iso", len(content), "raw"), 0)
        send_bytes(volume, content)

    def delete_guest(self, host: libvirt.virConnect, name: str) -> None:
        """Delete disks, copy and seed of a guest, be they known to libvirt or only lie in the folder."""
        pool = self.open(host)
        refresh(pool)
        disks = [volume.name() for volume in pool.listAllVolumes(0) if self._disk.fullmatch(volume.name())]
        written = [disk for disk in disks if disk.startswith(f"{name}.")]
        for volume in (f"{name}.qcow2", *written, f"{name}-copy", f"{name}-seed.iso"):
            delete(pool, volume)

    def _define(self, host: libvirt.virConnect) -> libvirt.virStoragePool:
        root = Xml.Element("pool", type="dir")
        Xml.SubElement(root, "name").text = self._name
        Xml.SubElement(Xml.SubElement(root, "target"), "path").text = str(self._path)
        pool = host.storagePoolDefineXML(Xml.tostring(root, encoding="unicode"), 0)
        pool.setAutostart(1)
        return pool

    def _refuse_if_used(self, pool: libvirt.virStoragePool, key: str, path: str) -> None:
        users = [
            volume.name()
            for volume in pool.listAllVolumes(0)
            if self._disk.fullmatch(volume.name()) and backing_path(volume) == path
        ]
        if users:
            raise Unusable(f"Disks stand on the base image {key}: {', '.join(sorted(users)[:5])}.")


def check_key(key: str) -> str:
    """The key, if it may be part of a file's name."""
    if not _KEY.fullmatch(key):
        raise Unusable(f"An image's key holds letters, digits, dots, hyphens and underscores only: {key!r}")
    return key
