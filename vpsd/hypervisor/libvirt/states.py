"""Maps libvirt's domain states to `PowerState`."""

import libvirt

from vpsd.hypervisor.protocol import PowerState

_ORDERLY = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,  # by the guest itself, or by the power button
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED,  # somebody powered it off
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED,
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
}
_TRANSIENT = {  # paused by libvirt for a moment
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
}


def power_state(state: int, reason: int) -> PowerState:
    """The power state for a domain's state and reason.

    The reason is unknown for a guest that was never on, and for all that were off when libvirtd started. That includes
    a reboot of the host under running guests, so it counts as a crash; for a guest that should be off it does not
    matter.
    """
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return PowerState.OFF if reason in _ORDERLY else PowerState.CRASHED
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return PowerState.CRASHED
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED or (state == libvirt.VIR_DOMAIN_PAUSED and reason not in _TRANSIENT):
        return PowerState.PAUSED
    return PowerState.RUNNING


def is_moving(state: int, reason: int) -> bool:
    """Whether libvirt has paused a guest to move it: it arrives from another host, or is about to leave."""
    return (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
