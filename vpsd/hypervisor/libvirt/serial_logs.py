"""What guests write to their serial consoles, as libvirt records it: a file per guest, begun anew at each power-on.

The files are volumes of a pool of their own, in a folder of vpsd's pool, so that they can be read on a remote host as
well. A pool of their own, since libvirt guesses a volume's format by its content, and this is content that guests
choose: whatever libvirt makes of it, the pool with the disks is not concerned. virtlogd rotates them: `.0` is older.
"""

import logging
import re
import threading

import libvirt

from vpsd.hypervisor.libvirt.moves import redefine, target
from vpsd.hypervisor.libvirt.storage import SERIAL_FOLDER, Pool
from vpsd.hypervisor.libvirt.volumes import delete, find, open_pool, receive, refresh, volume_xml
from vpsd.hypervisor.owner import Owner

log = logging.getLogger(__name__)

_TAIL_BYTES = 16 * 1024
_MAX_BYTES = 4 << 20  # twice what virtlogd lets a file grow to unless it is told otherwise


class SerialLogs:
    """The logs of one vpsd's guests; calls block, and a log that cannot be had is no reason for anything to fail."""

    def __init__(self, instance: str, pool: Pool) -> None:
        self._pool = pool
        self._name = f"vpsd-{instance}-serial"
        self._lock = threading.Lock()
        self._file = re.compile(rf"(vpsd-{re.escape(instance)}-\d+)\.log(?:\.\d+)?")

    def prepare(self, host: libvirt.virConnect, name: str) -> str | None:
        """Have a log for the guest; its path on the host."""
        try:
            pool = self._open(host)
            if find(pool, f"{name}.log") is None:
                refresh(pool)
            if find(pool, f"{name}.log") is None:
                pool.createXML(volume_xml(f"{name}.log", 0, "raw"), 0)
        except libvirt.libvirtError as error:
            log.warning("the serial console of %s is not recorded: %s", name, error)
            return None
        return str(self._pool.path(host) / SERIAL_FOLDER / f"{name}.log")

    def tail(self, host: libvirt.virConnect, name: str) -> bytes | None:
        """The last of what the guest wrote since it was powered on; None where it is not known."""
        try:
            volume = find(self._open(host), f"{name}.log")
            if volume is None:
                return None
            # From its start: libvirt's word on how large a volume is comes out of what the guest wrote.
            return receive(volume, 0, _MAX_BYTES)[-_TAIL_BYTES:]
        except libvirt.libvirtError as error:
            log.debug("the serial log of %s cannot be read: %s", name, error)
            return None

    def names(self, host: libvirt.virConnect) -> frozenset[str]:
        """The guests that have a log."""
        return frozenset(match[1] for match in self._files(host))

    def delete(self, host: libvirt.virConnect, name: str, owner: Owner) -> None:
        """Delete the guest's log and what was rotated."""
        for match in self._files(host):
            if match[1] == name:
                delete(self._open(host), match[0], owner)

    def _files(self, host: libvirt.virConnect) -> list[re.Match[str]]:
        try:
            pool = self._open(host)
            refresh(pool)
            volumes = pool.listAllVolumes(0)
        except libvirt.libvirtError as error:
            log.warning("the serial logs cannot be listed: %s", error)
            return []
        return [match for match in (self._file.fullmatch(volume.name()) for volume in volumes) if match]

    def _open(self, host: libvirt.virConnect) -> libvirt.virStoragePool:
        folder = self._pool.path(host) / SERIAL_FOLDER
        with self._lock:
            pool = open_pool(host, self._name, folder)
            if target(pool) == str(folder):
                return pool
            redefine(pool, folder)  # it has moved with the other
            return open_pool(host, self._name, folder)
