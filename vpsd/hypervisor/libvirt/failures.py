"""Translates libvirt's errors into vpsd's."""

import re

import libvirt

from vpsd.errors import Unavailable, Unusable, VpsdError
from vpsd.hypervisor.protocol import PortsTaken

_FORWARDING = re.compile(r"[Cc]ould not set up host forwarding rule '?([^'\n]*)'?")

_FIRMWARE = re.compile(r"[Uu]nable to find any (firmware|master var store)")

# Errors that a retry does not fix.
_FINAL = {
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_OPERATION_DENIED,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_OS_TYPE,
}

_ABSENT = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_STORAGE_POOL}


def translate(error: libvirt.libvirtError, action: str) -> VpsdError:
    """The vpsd error for a libvirt error; `doing` completes "The host could not …"."""
    text = str(error)
    forwarding = _FORWARDING.search(text)
    if forwarding:
        rule = forwarding.group(1).strip()
        return PortsTaken(f"The host cannot open a port of the server, which is in use or privileged: {rule}")
    if _FIRMWARE.search(text):
        return Unusable(
            "The operating system boots by UEFI, which the host lacks: install Debian's package ovmf there.",
            "The operating system boots by UEFI, which the host lacks.",
        )
    kind = Unusable if error.get_error_code() in _FINAL else Unavailable
    return kind(f"The host could not {action}: {_shorten(text)}")


def is_absent(error: libvirt.libvirtError) -> bool:
    """Whether the domain, volume or pool does not exist."""
    return error.get_error_code() in _ABSENT


def _shorten(text: str) -> str:
    """One line, without libvirt's preamble; QEMU's last line is the most helpful one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0].removeprefix("internal error: ") if lines else "no reason was given"
    return first if len(lines) < 2 else f"{first} … {lines[-1]}"
