"""Single volumes of a pool, through libvirt's API; calls block."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import libvirt

from vpsd.errors import Unavailable
from vpsd.hypervisor.libvirt.failures import is_absent

_CHUNK_BYTES = 256 * 1024  # the most that libvirt puts into one message of a stream
_HALF_MADE_BYTES = 1 << 20  # an overlay without backing store and smaller than that was cut off while it was made


def refresh(pool: libvirt.virStoragePool) -> None:
    """Let the host look into the folder; while it makes a volume it will not, and then what it knows must do."""
    try:
        pool.refresh(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise


def find(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    """A volume by name."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if is_absent(error):
            return None
        raise


def delete(pool: libvirt.virStoragePool, name: str) -> None:
    """Delete a volume that may be there; a file that somebody took away counts as deleted."""
    volume = find(pool, name)
    if volume is None:
        return
    try:
        volume.delete(0)
    except libvirt.libvirtError:
        refresh(pool)
        if find(pool, name) is not None:
            raise


def send_file(volume: libvirt.virStorageVol, source: Path, said: Callable[[int], None], stop: threading.Event) -> int:
    """Send a file into a volume, telling the bytes sent so far; returns its size once the host has confirmed it.

    No sparse stream: qcow2 files and kernels have no holes worth naming.
    """
    size = source.stat().st_size
    sent = 0
    with source.open("rb") as file, Upload(volume, size) as upload:
        while chunk := file.read(_CHUNK_BYTES):
            if stop.is_set():
                raise Unavailable("Sending the image to the host was broken off.")
            upload.send(chunk)
            sent += len(chunk)
            said(sent)
    if sent != size:
        raise Unavailable(f"{source} changed while it was sent to the host.")
    return size


def send_bytes(volume: libvirt.virStorageVol, content: bytes) -> None:
    """Write over the start of a volume, of its file whatever its format."""
    with Upload(volume, len(content)) as upload:
        upload.send(content)


def receive(volume: libvirt.virStorageVol, offset: int, length: int) -> bytes:
    """Bytes of the volume's file; fewer where it ends."""
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
    """A stream into a volume that is finished when all went well, and aborted otherwise."""

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
        """Put all of it into the stream."""
        view = memoryview(data)
        while view:
            view = view[self._stream.send(bytes(view[:_CHUNK_BYTES])) :]

    def finish(self) -> None:
        """The host has it all."""
        self._stream.finish()

    def abort(self) -> None:
        """Let go of the stream; what was sent counts for nothing."""
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.abort()


def is_half_made(volume: libvirt.virStorageVol) -> bool:
    """Whether making the disk was cut off: it is no qcow2 yet, or has no backing store and nothing in it."""
    if not is_qcow2(volume):
        return True
    return backing_path(volume) is None and volume.info()[2] < _HALF_MADE_BYTES


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
    root = Xml.Element("volume")
    Xml.SubElement(root, "name").text = name
    Xml.SubElement(root, "capacity", unit="bytes").text = str(capacity_bytes)
    target = Xml.SubElement(root, "target")
    Xml.SubElement(target, "format", type=format)
    if format == "qcow2":
        Xml.SubElement(target, "compat").text = "1.1"  # keeps a record of what is written, for copies of the changes
    if backing is not None:
        store = Xml.SubElement(root, "backingStore")
        Xml.SubElement(store, "path").text = backing
        Xml.SubElement(store, "format", type="qcow2")
    return Xml.tostring(root, encoding="unicode")
