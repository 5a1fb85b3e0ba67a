"""Debian's kernel prepared for direct boot, and the initramfs that goes with it."""

import gzip
import lzma
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

_SIGNED = b"~Module signature appended~\n"


async def extract_vmlinux(bzimage: Path, vmlinux: Path, unlz4: Callable[[Path, Path], Awaitable[object]]) -> bool:
    """Write the uncompressed kernel, which QEMU starts by PVH, with nothing to unpack inside the guest.

    `unlz4` unpacks one file into another. Returns False for an unknown compression: boot the bzImage then.
    """
    payload = _payload(bzimage.read_bytes())
    if payload.startswith(b"\x02\x21\x4c\x18"):
        packed = vmlinux.with_suffix(".lz4")
        # the kernel's build appends the unpacked size: four bytes that are not an LZ4 block
        packed.write_bytes(payload[:-4])
        await unlz4(packed, vmlinux)
        packed.unlink()
    elif payload.startswith(b"\xfd7zXZ"):
        vmlinux.write_bytes(lzma.LZMADecompressor().decompress(payload))
    elif payload.startswith(b"\x1f\x8b"):
        vmlinux.write_bytes(gzip.decompress(payload[:-4]))
    else:
        return False
    with vmlinux.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _payload(image: bytes) -> bytes:
    """The compressed kernel in a bzImage: offsets from the x86 boot protocol, 2.08."""
    real_mode = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    return image[real_mode + offset : real_mode + offset + length]


def unsigned(module: bytes) -> bytes:
    """A kernel module without its signature: checking one costs an emulated CPU tens of milliseconds."""
    if not module.endswith(_SIGNED):
        return module
    trailer = module[: -len(_SIGNED)][-12:]
    length = int.from_bytes(trailer[8:], "big")
    return module[: -len(_SIGNED) - 12 - length]


def cpio(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    """An initramfs (cpio newc) of executable files and symbolic links, owned by root; folders are created as needed."""
    folders = sorted({str(parent) for name in (*files, *links) for parent in Path(name).parents} - {"."})
    entries = [(folder, 0o040755, b"") for folder in folders]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    entries += [(name, 0o120777, target.encode()) for name, target in links.items()]
    output = b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))
    return output + _entry(0, "TRAILER!!!", 0, b"")


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    links = 2 if mode & 0o170000 == 0o040000 else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)
