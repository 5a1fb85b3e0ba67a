"""How guests run on a host: by KVM or by emulation."""

import threading

import libvirt

from vpsd.hypervisor.probe import probe_kvm


class Virtualization:
    """What a host can do, found out once."""

    def __init__(self, chosen: str | None) -> None:
        """`chosen`: kvm | qemu, set by the operator; None: what is detected."""
        self._found = None if chosen is None else (chosen, "set by VPSD_VIRT_TYPE")
        self._lock = threading.Lock()

    def find(self, host: libvirt.virConnect, *, local: bool) -> tuple[str, str]:
        """The type, and why."""
        with self._lock:
            if self._found is None:
                self._found = probe_kvm() if local else _detect_kvm(host)
            return self._found


def _detect_kvm(host: libvirt.virConnect) -> tuple[str, str]:
    """Whether a remote host has KVM, according to its libvirt."""
    try:
        host.getDomainCapabilities(None, "x86_64", None, "kvm")
    except libvirt.libvirtError:
        return "qemu", "emulation: the host's libvirt offers no KVM"
    return "kvm", "the host's libvirt offers KVM"
