"""libvirt's state and reason of a domain as vpsd's `Power`."""

import libvirt

from vpsd.hypervisor.protocol import Power

_ASKED_FOR = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,  # from inside, or by the power button
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED,  # somebody pulled the plug
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED,
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
}
_PASSING = {  # paused by libvirt itself on the way to something
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
}


def power_of(state: int, reason: int) -> Power:
    """What the host says of a guest.

    An unknown reason is what a guest has that was never on, and each one that was off when libvirtd started. That
    includes a reboot of the host under running guests, so it reads as a crash; for a guest that shall be off it does
    not matter.
    """
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return Power.OFF if reason in _ASKED_FOR else Power.CRASHED
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return Power.CRASHED
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED or (state == libvirt.VIR_DOMAIN_PAUSED and reason not in _PASSING):
        return Power.PAUSED
    return Power.RUNNING
