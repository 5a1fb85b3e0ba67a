"""The storage pool of one vpsd: base images, disks on top of them, seeds, exports. Uses libvirt's API; calls block.

A base image consists of up to four volumes: `base-KEY.kernel`, `.initrd`, `.qcow2`, and an empty `base-KEY.whole` that
is created last. Without that marker a base counts as unfinished, so an upload that was interrupted at any point (vpsd
killed, libvirtd killed, disk full) is never mistaken for a complete one: the next upload starts over.

The first cluster of a restored disk is written last: before that it is not a qcow2 file, and so not a disk.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import libvirt

from vpsd.core.units import GIB, MIB
from vpsd.errors import Misconfigured, Unusable
from vpsd.hypervisor.libvirt import domains, moves
from vpsd.hypervisor.libvirt.bases import BasePaths, check_key, require_unused
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.libvirt.volumes import (
    backing_path,
    delete,
    find,
    have_empty,
    is_incomplete,
    is_qcow2,
    open_pool,
    refresh,
    send_bytes,
    send_file,
    volume_xml,
)
from vpsd.hypervisor.moving import DiskLayout
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.owner import ANYBODY, Owner
from vpsd.hypervisor.protocol import Image, NoSpace, Volumes, storage_reserve_mb

_BASE_VOLUME = re.compile(r"base-(.+)\.(qcow2|kernel|initrd|whole)")

SERIAL_FOLDER = "serial"  # the folder in the pool's that `serial_logs` has a pool of its own in
Report = Callable[[float, str], None]


class Pool:
    """The pool `vpsd-<instance>`, defined and started on first use."""

    def __init__(
        self, instance: str, path: Path, path_is_explicit: bool, reserve_mb: int | None = None, *, shared: bool = False
    ) -> None:
        """`reserve_mb` is left for guests that run; None: what `storage_reserve_mb` says.

        Where it is `shared`, other libvirtd write to the folder too, of which this one knows after a refresh.
        """
        self._name = f"vpsd-{instance}"
        self._path = path
        self._path_is_explicit = path_is_explicit
        self._reserve_mb = reserve_mb
        self._shared = shared
        self._followed = False
        self._lock = threading.Lock()
        guest = rf"vpsd-{re.escape(instance)}-\d+"
        self._disk = re.compile(rf"({guest}(?:\.(?:\d+|[0-9a-f]{{8}}-[0-9a-f]{{8}}))?)\.qcow2")
        self._seed = re.compile(rf"({guest})-seed\.iso")
        self._export = re.compile(rf"({guest})-copy")
        self._own = re.compile(rf"{guest}[.-].+|base-.+\.qcow2")
        self._nvram = re.compile(rf"{guest}-nvram\.fd")
        self._mark = re.compile(rf"{self._name}-mark-([0-9a-f]{{8}})")

    def open(self, host: libvirt.virConnect) -> libvirt.virStoragePool:
        """The active pool."""
        with self._lock:
            if not self._followed:
                moves.follow(host, self._name, self._path, self._own)
                self._followed = True
            return open_pool(host, self._name, self._path)

    def _fresh(self, host: libvirt.virConnect) -> libvirt.virStoragePool:
        """The active pool, with what other hosts have made and deleted there."""
        pool = self.open(host)
        if self._shared:
            refresh(pool)
        return pool

    def _find(self, pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
        """The volume of that name, or None."""
        found = find(pool, name)
        if found is None and self._shared:
            refresh(pool)
            found = find(pool, name)
        return found

    def put_mark(self, host: libvirt.virConnect, mark: str, *, present: bool) -> None:
        """Have an empty volume named after that, or not."""
        have_empty(self._fresh(host), f"{self._name}-mark-{mark}", present=present)

    def path(self, host: libvirt.virConnect) -> Path:
        """The pool's folder on the host; raises `Misconfigured` if it is not the configured one."""
        present = Path(moves.target(self.open(host)) or self._path)
        if self._path_is_explicit and not moves.is_same(host, present, self._path):
            raise Misconfigured(
                f"The disks of this vpsd are in {present} on the host, but VPSD_POOL_DIR is {self._path}. "
                f"Set it to {present}, or stop vpsd and move that folder to {self._path} while no server runs."
            )
        return present

    def capacity_gb(self, host: libvirt.virConnect) -> int | None:
        """Size of the file system of the pool; None if there is no pool yet. Does not create one."""
        try:
            pool = host.storagePoolLookupByName(self._name)
            capacity: int = pool.info()[1]
        except libvirt.libvirtError as error:
            if is_absent(error):
                return None
            raise
        return capacity >> 30 or None  # unknown for a pool that was never started

    def free_mb(self, host: libvirt.virConnect, *, local: bool) -> int | None:
        """Free space of the file system of the pool; None if there is no pool yet. Does not create one."""
        try:
            pool = host.storagePoolLookupByName(self._name)
            if not pool.isActive():
                return None
            if local:  # a refresh reads every volume, and this is asked often
                with contextlib.suppress(OSError):
                    found = os.statvfs(moves.target(pool) or self._path)
                    return found.f_bavail * found.f_frsize // MIB
            refresh(pool)
            free: int = pool.info()[3]
        except libvirt.libvirtError as error:
            if is_absent(error):
                return None
            raise
        return free // MIB

    def require_space(self, host: libvirt.virConnect, needed_bytes: int) -> None:
        """Raise `NoSpace` if that much would fill the pool: guests have to be able to write."""
        pool = self.open(host)
        refresh(pool)
        _, capacity, _, free = pool.info()
        reserve_mb = storage_reserve_mb(self._reserve_mb, capacity // GIB)
        if free - needed_bytes < reserve_mb * MIB:
            needed = f"up to {needed_bytes // MIB} MB may be needed, " if needed_bytes else ""
            raise NoSpace(
                f"Not enough space on the host: {needed}{free // MIB} MB are free in the pool, of which {reserve_mb} "
                "MB are left for servers that run."
            )

    def max_export_bytes(self, host: libvirt.virConnect, name: str) -> int:
        """The space that a full export of a guest's disk may need: the size of its disks and of their bases."""
        pool, needed = self.open(host), 0
        for volume in pool.listAllVolumes(0):
            match = self._disk.fullmatch(volume.name())
            if match and guest_of(match[1]) == name:
                base = self._find(pool, Path(backing_path(volume) or "none").name)
                needed += volume.info()[2] + (0 if base is None else base.info()[2])
        return needed

    def list(self, host: libvirt.virConnect) -> Volumes:
        """Everything in the pool, as found in the host's file system."""
        pool = self.open(host)
        refresh(pool)
        names = {volume.name() for volume in pool.listAllVolumes(0)} - {SERIAL_FOLDER}
        kinds: dict[str, set[str]] = {
            kind: set() for kind in ("disk", "seed", "export", "whole", "base", "mark", "unknown")
        }
        for name in names:
            if match := self._disk.fullmatch(name):
                kinds["disk"].add(match[1])
            elif match := self._seed.fullmatch(name):
                kinds["seed"].add(match[1])
            elif match := self._export.fullmatch(name):
                kinds["export"].add(match[1])
            elif match := _BASE_VOLUME.fullmatch(name):
                kinds["whole" if match[2] == "whole" else "base"].add(match[1])
            elif match := self._mark.fullmatch(name):
                kinds["mark"].add(match[1])
            elif not self._nvram.fullmatch(name):  # it goes with its guest
                kinds["unknown"].add(name)
        complete = {key for key in kinds["whole"] if f"base-{key}.qcow2" in names}
        return Volumes(
            disks=frozenset(kinds["disk"]),
            seeds=frozenset(kinds["seed"]),
            bases=frozenset(complete),
            unknown=frozenset(kinds["unknown"]),
            unfinished=frozenset((kinds["base"] | kinds["whole"]) - complete),
            exports=frozenset(kinds["export"]),
            marks=frozenset(kinds["mark"]),
        )

    def has_base(self, host: libvirt.virConnect, key: str) -> bool:
        """Whether the base is complete."""
        pool = self._fresh(host)
        return all(find(pool, f"base-{check_key(key)}.{part}") is not None for part in ("whole", "qcow2"))

    def upload_base(
        self, host: libvirt.virConnect, image: Image, report: Report, stop: threading.Event, owner: Owner = ANYBODY
    ) -> None:
        """Upload the image's files unless they are complete; `stop` aborts it."""
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
        self.require_space(host, total)
        done = 0
        for source, name in files:

            def on_progress(sent: int, name: str = name, before: int = done) -> None:
                report((before + sent) / max(total, 1), f"uploading {name} to the host")

            owner.check()  # after a pause that was too long another one may have sent it, and be using it
            qcow2 = name.endswith(".qcow2")
            size = image.virtual_size_bytes if qcow2 else source.stat().st_size
            volume = pool.createXML(volume_xml(name, size, "qcow2" if qcow2 else "raw"), 0)
            done += send_file(volume, source, on_progress, stop)
        owner.check()
        pool.createXML(volume_xml(f"base-{image.key}.whole", 0, "raw"), 0)

    def delete_base(self, host: libvirt.virConnect, key: str, owner: Owner = ANYBODY) -> None:
        """Delete a base, complete or not; raises `Unusable` while a disk uses it."""
        pool = self._fresh(host)
        disk = self._find(pool, f"base-{check_key(key)}.qcow2")
        if disk is not None:
            require_unused(host, pool, self._disk, key)
        for part in ("whole", "qcow2", "initrd", "kernel"):
            delete(pool, f"base-{key}.{part}", owner)

    def base_paths(self, host: libvirt.virConnect, key: str) -> BasePaths:
        """The paths of a base's files, whether or not they exist."""
        folder = self.path(host)
        initrd = self._find(self.open(host), f"base-{check_key(key)}.initrd")
        return BasePaths(
            disk=str(folder / f"base-{key}.qcow2"),
            kernel=str(folder / f"base-{key}.kernel"),
            initrd=None if initrd is None else str(folder / f"base-{key}.initrd"),
        )

    def make_disk(self, host: libvirt.virConnect, name: str, base: str, size_bytes: int, owner: Owner) -> None:
        """Create the disk of a guest, unless there is a complete one."""
        pool = self.open(host)
        if not self.has_base(host, base):
            raise Unusable(f"The base image {base} is not on the host.")
        volume = self._find(pool, f"{name}.qcow2")
        if volume is not None:
            if not is_incomplete(volume):
                return
            owner.check()
            volume.delete(0)
        backing = self._find(pool, f"base-{base}.qcow2")
        if backing is None:
            raise Unusable(f"The base image {base} is not on the host.")
        if size_bytes < backing.info()[1]:
            raise Unusable(
                f"The base image {base} is larger than the disk: {backing.info()[1]} bytes, not {size_bytes}."
            )
        self.require_space(host, 0)
        owner.check()
        pool.createXML(volume_xml(f"{name}.qcow2", size_bytes, "qcow2", backing=backing.name()), 0)

    def make_empty_disk(self, host: libvirt.virConnect, disk: str, layout: DiskLayout, owner: Owner) -> None:
        """Create a disk anew, with nothing in it but its base, if it has one."""
        self.delete_disk(host, disk, owner)
        self.require_space(host, layout.used_bytes)
        if layout.base is not None:
            self.make_disk(host, disk, layout.base, layout.size_bytes, owner)
            return
        owner.check()
        self.open(host).createXML(volume_xml(f"{disk}.qcow2", layout.size_bytes, "qcow2"), 0)

    def layout(self, host: libvirt.virConnect, disk: str) -> DiskLayout | None:
        """What a disk is made of; None if there is none."""
        pool = self.open(host)
        refresh(pool)
        volume = self._find(pool, f"{disk}.qcow2")
        if volume is None or not is_qcow2(volume):
            return None
        backing = backing_path(volume)
        base = None if backing is None else Path(backing).name.removeprefix("base-").removesuffix(".qcow2")
        _, size_bytes, used_bytes = volume.info()
        return DiskLayout(size_bytes, base, used_bytes)

    def disk_volume(self, host: libvirt.virConnect, disk: str) -> libvirt.virStorageVol:
        """The file of a disk; raises `Unusable` if there is none."""
        pool = self.open(host)
        refresh(pool)  # QEMU may have grown it without libvirt knowing
        volume = self._find(pool, f"{disk}.qcow2")
        if volume is None:
            raise Unusable(f"There is no disk {disk}.")
        return volume

    def disk_file_bytes(self, host: libvirt.virConnect, disk: str) -> int:
        """The length of a disk's file."""
        length: int = self.disk_volume(host, disk).infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]
        return length

    def has_seed(self, host: libvirt.virConnect, name: str) -> bool:
        """Whether the guest has a seed."""
        return self._find(self.open(host), f"{name}-seed.iso") is not None

    def begin_disk(
        self, host: libvirt.virConnect, disk: str, file_bytes: int, owner: Owner
    ) -> libvirt.virStorageVol | None:
        """Create an empty file for a disk whose content is uploaded; None if the disk exists and is complete."""
        pool = self.open(host)
        refresh(pool)
        volume = self._find(pool, f"{disk}.qcow2")
        if volume is not None:
            if is_qcow2(volume):
                return None
            owner.check()
            volume.delete(0)
        self.require_space(host, file_bytes)
        owner.check()
        return pool.createXML(volume_xml(f"{disk}.qcow2", file_bytes, "raw"), 0)

    def delete_disk(self, host: libvirt.virConnect, disk: str, owner: Owner = ANYBODY) -> None:
        """Delete a disk, complete or not."""
        delete(self._fresh(host), f"{disk}.qcow2", owner)

    def disk_bytes(self, host: libvirt.virConnect, disk: str) -> int:
        """The virtual size of a disk; raises `Unusable` if there is none."""
        size: int = self.disk_volume(host, disk).info()[1]
        return size

    def grow_disk(self, host: libvirt.virConnect, disk: str, size_bytes: int, owner: Owner) -> None:
        """Grow a disk that is not in use."""
        volume = self.disk_volume(host, disk)
        owner.check()
        volume.resize(size_bytes, 0)

    def disk_path(self, host: libvirt.virConnect, disk: str) -> str:
        """The path of a disk."""
        return str(self.path(host) / f"{disk}.qcow2")

    def export_path(self, host: libvirt.virConnect, name: str) -> str:
        """The path of the export of a guest's disk."""
        return str(self.path(host) / f"{name}-copy")

    def export_volume(self, host: libvirt.virConnect, name: str, *, refreshed: bool = False) -> libvirt.virStorageVol:
        """The export of a guest's disk; raises `Unusable` if there is none. `refreshed`: QEMU has just written it."""
        pool = self.open(host)
        if refreshed:
            refresh(pool)
        volume = self._find(pool, f"{name}-copy")
        if volume is None:
            raise Unusable(f"There is no export of the disk of {name} on the host.")
        return volume

    def delete_export(self, host: libvirt.virConnect, name: str, owner: Owner) -> None:
        """Delete the export of a guest's disk."""
        pool = self.open(host)
        refresh(pool)
        delete(pool, f"{name}-copy", owner)

    def write_seed(self, host: libvirt.virConnect, name: str, content: bytes, owner: Owner) -> None:
        """Write the seed; one of the same size is overwritten in place, so that a running guest sees the new one."""
        pool = self.open(host)
        volume = self._find(pool, f"{name}-seed.iso")
        owner.check()
        if volume is not None and volume.info()[1] != len(content):
            volume.delete(0)
            volume = None
        if volume is None:
            volume = pool.createXML(volume_xml(f"{name}-seed.iso", len(content), "raw"), 0)
        send_bytes(volume, content)

    def delete_guest(self, host: libvirt.virConnect, name: str, owner: Owner) -> None:
        """Delete export, seed and firmware's variables, including files that libvirt did not know yet."""
        pool = self.open(host)
        refresh(pool)
        for volume in (f"{name}-copy", f"{name}-seed.iso", f"{name}-nvram.fd"):
            delete(pool, volume, owner)

    def delete_disks(self, host: libvirt.virConnect, name: str, disks: Collection[str] | None, owner: Owner) -> None:
        """Delete these disks; None: all that are named after a guest."""
        if disks is None:
            disks = [disk for disk in self.list(host).disks if guest_of(disk) == name]
        for disk in sorted(disks):
            self.delete_disk(host, disk, owner)

    def make_portable(self, host: libvirt.virConnect, name: str, disk: str, owner: Owner) -> None:
        """Have the disk of a guest that is off, if any, name its base without a path, which earlier vpsd did not."""

        def may_write() -> bool:
            domain = domains.find(host, name)
            return domain is not None and not domain.isActive() and domains.is_own(domain, owner)

        volume = self._find(self.open(host), f"{disk}.qcow2")
        if volume is not None and may_write():
            moves.make_portable(volume, may_write)
