"""libvirt's errors in vpsd's words, in one place."""

import re

import libvirt

from vpsd.errors import Unavailable, Unusable, VpsdError
from vpsd.hypervisor.protocol import PortsTaken

_FORWARDING = re.compile(r"[Cc]ould not set up host forwarding rule '?([^'\n]*)'?")

# Answers that stay the same however often one asks.
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


def translate(error: libvirt.libvirtError, doing: str) -> VpsdError:
    """What the error means for vpsd; `doing` completes "The host could not …"."""
    text = str(error)
    forwarding = _FORWARDING.search(text)
    if forwarding:
        rule = forwarding.group(1).strip()
        return PortsTaken(f"The host cannot open a port of the server, it is in use or needs privilege: {rule}")
    kind = Unusable if error.get_error_code() in _FINAL else Unavailable
    return kind(f"The host could not {doing}: {_shorten(text)}")


def is_absent(error: libvirt.libvirtError) -> bool:
    """Whether the thing asked for does not exist."""
    return error.get_error_code() in _ABSENT


def _shorten(text: str) -> str:
    """One line, without libvirt's own preamble; QEMU's last line tells most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0].removeprefix("internal error: ") if lines else "it gave no reason"
    return first if len(lines) < 2 else f"{first} … {lines[-1]}"
