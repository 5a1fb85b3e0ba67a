"""What a file is by its first bytes, whatever it is called."""

from pathlib import Path

HEAD_BYTES = 64 * 1024  # an ISO 9660 image says so at 32 KiB
_FOOTER_BYTES = 512

PACKED = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}  # magic: how it is unpacked

_CONVERT = "convert it to qcow2 with qemu-img convert first"
_UNPACK = "unpack it first"

# Where, what, and its name; those that cannot be used.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (257, b"ustar", f"a tar archive; {_UNPACK}"),
    (0, b"PK\x03\x04", f"a zip archive; {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (0, b"Rar!", f"a RAR archive; {_UNPACK}"),
    (0, b"BZh", f"packed with bzip2; {_UNPACK}"),
    (0, b"\x04\x22\x4d\x18", f"packed with lz4; {_UNPACK}"),
    (0, b"LZIP", f"packed with lzip; {_UNPACK}"),
    (0, b"KDMV", f"a VMDK image; {_CONVERT}"),
    (0, b"# Disk DescriptorFile", f"a VMDK image; {_CONVERT}"),
    (0, b"vhdxfile", f"a VHDX image; {_CONVERT}"),
    (0, b"conectix", f"a VHD image; {_CONVERT}"),
    (64, b"\x7f\x10\xda\xbe", f"a VDI image; {_CONVERT}"),
    (0, b"QED\0", f"a QED image; {_CONVERT}"),
    (32769, b"CD001", "an ISO 9660 image, as of an installer; a disk with an installed system is needed"),
    (0, b"hsqs", "a squashfs file system, not a disk"),
    (0, b"\x7fELF", "a program, not a disk"),
    (0, b"!<arch>\n", "a Debian package or another ar archive, not a disk"),
    (0, b"-----BEGIN PGP MESSAGE", "an encrypted or signed PGP message"),
)
_TEXTS = {b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"<?xml": "an XML document"}
_TEXTS |= {b"{": "a text (JSON)"}


def name_of(head: bytes) -> str | None:
    """What a file is called that cannot be a list of checksums or a disk; None where it may be."""
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    start = head[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((name for magic, name in _TEXTS.items() if start.startswith(magic)), None)


def refusal(path: Path) -> str | None:
    """Why a file is no disk, as the rest of a sentence after its name; None where it may be one."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(path.stat().st_size - _FOOTER_BYTES, 0))
        footer = file.read(_FOOTER_BYTES)
    if not head:
        return "is empty"
    if footer.startswith(b"conectix"):
        return f"is a VHD image; {_CONVERT}"
    name = name_of(head)
    return None if name is None else f"is {name}"


def packing(path: Path) -> str | None:
    """How a file is packed: xz, gz, zst; None where it is not."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for magic, name in PACKED.items() if head.startswith(magic)), None)
