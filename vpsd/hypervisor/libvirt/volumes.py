"""Operations on single volumes of a pool, through libvirt's API; calls block."""

import contextlib
import threading
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree as Xml

import libvirt

from vpsd.core.units import MIB
from vpsd.errors import Unavailable
from vpsd.hypervisor.libvirt.failures import is_absent
from vpsd.hypervisor.owner import ANYBODY, Owner

_CHUNK_BYTES = 256 * 1024  # the maximum size of a stream message in libvirt
_INCOMPLETE_BYTES = MIB  # a smaller overlay without backing store was interrupted while it was created


def open_pool(host: libvirt.virConnect, name: str, path: Path) -> libvirt.virStoragePool:
    """The active pool of that name: it is defined, and its folder made, where there is none."""
    try:
        pool = host.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if not is_absent(error):
            raise
        root = Xml.Element("pool", type="dir")
        Xml.SubElement(root, "name").text = name
        Xml.SubElement(Xml.SubElement(root, "target"), "path").text = str(path)
        pool = host.storagePoolDefineXML(Xml.tostring(root, encoding="unicode"), 0)
        pool.setAutostart(1)
    if not pool.isActive():
        pool.build(0)
        pool.create(0)
    return pool


def refresh(pool: libvirt.virStoragePool) -> None:
    """Rescan the pool's folder; libvirt refuses while it creates a volume, and then its present view has to do."""
    try:
        pool.refresh(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise


def find(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    """The volume of that name, or None."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise


def delete(pool: libvirt.virStoragePool, name: str, owner: Owner = ANYBODY) -> None:
    """Delete a volume, if any; also succeeds if somebody removed the file."""
    volume = find(pool, name)
    if volume is None:
        return
    owner.check()
    try:
        volume.delete(0)
    except libvirt.libvirtError:
        refresh(pool)
        if find(pool, name) is not None:
            raise


def have_empty(pool: libvirt.virStoragePool, name: str, *, present: bool) -> None:
    """Have an empty volume of that name, or none."""
    if not present:
        delete(pool, name)
    elif find(pool, name) is None:
        pool.createXML(volume_xml(name, 0, "raw"), 0)


def send_file(
    volume: libvirt.virStorageVol, source: Path, on_progress: Callable[[int], None], stop: threading.Event
) -> int:
    """Upload a file, reporting the bytes sent so far; returns its size once the host has confirmed it.

    The stream is not sparse: qcow2 files and kernels have no holes worth skipping.
    """
    size = source.stat().st_size
    sent = 0
    with source.open("rb") as file, Upload(volume, size) as upload:
        while chunk := file.read(_CHUNK_BYTES):
            if stop.is_set():
                raise Unavailable("The upload of the image was aborted.")
            upload.send(chunk)
            sent += len(chunk)
            on_progress(sent)
    if sent != size:
        raise Unavailable(f"{source} changed while it was being uploaded.")
    return size


def send_bytes(volume: libvirt.virStorageVol, content: bytes) -> None:
    """Overwrite the start of a volume's file, whatever its format."""
    with Upload(volume, len(content)) as upload:
        upload.send(content)


def receive(volume: libvirt.virStorageVol, offset: int, length: int) -> bytes:
    """Read bytes of the volume's file; fewer at its end."""
    stream = volume.connect().newStream(0)
    volume.download(stream, offset, length, 0)
    parts = []
    try:
        while part := stream.recv(_CHUNK_BYTES):
            parts.append(part)
        stream.finish()
    except libvirt.libvirtError:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
    return b"".join(parts)


class Upload:
    """An upload stream to a volume; as a context manager, it is finished on success and aborted on errors."""

    def __init__(self, volume: libvirt.virStorageVol, size_bytes: int, offset: int = 0) -> None:
        self._stream = volume.connect().newStream(0)
        volume.upload(self._stream, offset, size_bytes, 0)

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        view = memoryview(data)
        while view:
            view = view[self._stream.send(bytes(view[:_CHUNK_BYTES])) :]

    def finish(self) -> None:
        """Wait until the host has confirmed everything."""
        self._stream.finish()

    def abort(self) -> None:
        """Abort the stream; what was sent is to be ignored."""
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.abort()


def is_incomplete(volume: libvirt.virStorageVol) -> bool:
    """Whether creating the disk was interrupted: it is not a qcow2 file yet, or has no backing store and no data."""
    if not is_qcow2(volume):
        return True
    return backing_path(volume) is None and volume.info()[2] < _INCOMPLETE_BYTES


def is_qcow2(volume: libvirt.virStorageVol) -> bool:
    """Whether the file has a qcow2 header."""
    kind = Xml.fromstring(volume.XMLDesc(0)).find("target/format")  # noqa: S314
    return kind is not None and kind.get("type") == "qcow2"


def backing_path(volume: libvirt.virStorageVol) -> str | None:
    try:
        return Xml.fromstring(volume.XMLDesc(0)).findtext("backingStore/path")  # noqa: S314
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise


def volume_xml(name: str, capacity_bytes: int, format: str, backing: str | None = None) -> str:  # noqa: A002
    """The XML of a new volume; `backing` is the name of a volume beside it, so that they may move together."""
    root = Xml.Element("volume")
    Xml.SubElement(root, "name").text = name
    Xml.SubElement(root, "capacity", unit="bytes").text = str(capacity_bytes)
    target = Xml.SubElement(root, "target")
    Xml.SubElement(target, "format", type=format)
    if format == "qcow2":
        Xml.SubElement(target, "compat").text = "1.1"  # can hold bitmaps, for incremental exports
    if backing is not None:
        store = Xml.SubElement(root, "backingStore")
        Xml.SubElement(store, "path").text = backing
        Xml.SubElement(store, "format", type="qcow2")
    return Xml.tostring(root, encoding="unicode")


def clock_ms(pool: libvirt.virStoragePool) -> int | None:
    """What the clock of the pool's machine says, in milliseconds since 1970, as the time of a file that is made now.

    None for a pool whose volumes have no times. https://libvirt.org/formatstorage.html, `timestamps`
    """
    name = f"clock-{uuid.uuid4()}"
    volume = pool.createXML(volume_xml(name, 1, "raw"), 0)
    try:
        seconds = Xml.fromstring(volume.XMLDesc(0)).findtext("target/timestamps/mtime")  # noqa: S314
        return None if seconds is None else int(Decimal(seconds) * 1000)
    finally:
        delete(pool, name)
