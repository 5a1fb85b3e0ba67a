"""What becomes of a boot. SSH is not life: a guest that is silent may be slow, or listen elsewhere, and is left alone.

Only what a guest says itself (a panic, an emergency shell, nothing to boot) or that it does nothing at all counts as
getting nowhere. What is told of it goes into the operation, and into the server's `error` or `status_detail`.
"""

from enum import StrEnum

import msgspec

from vpsd.flows.job import Job
from vpsd.hypervisor.protocol import BootSigns, Guest, GuestPaused, PowerState

_LOOK_SECONDS = 1
_SSH_SECONDS = 10  # for SSH, once there are other signs of life: whoever sees `active` wants to log in
_NO_ANSWER = "The guest did not answer"


class Outcome(StrEnum):
    """How far a guest has come."""

    UP = "up"
    SLOW = "slow"  # it is under way, or well and out of reach: nothing speaks against it
    STUCK = "stuck"  # it runs and gets nowhere
    DIED = "died"  # its QEMU is gone
    OFF = "off"  # it powered itself off


class Boot(msgspec.Struct, frozen=True):
    """What became of a boot."""

    outcome: Outcome
    why: str = ""  # it got nowhere
    within: str = ""  # the time that it had, where that is over
    last_lines: str = ""

    def describe(self, end: str, *, twice: bool = False) -> str:
        """What there is to say, how it ended, and the end of what the guest wrote to its serial console."""
        told = f"{_NO_ANSWER}{self.within}{', twice' if twice else ''}{': ' if self.why else ''}{self.why}. {end}"
        return f"{told} Its serial console ends with: {self.last_lines}" if self.last_lines else told


async def watch_boot(job: Job) -> Boot:
    """Wait until the guest is up, gets nowhere or goes down; `boot_timeout_seconds` at most.

    Raises `GuestPaused`.
    """
    try:
        return await _watch(job)
    finally:
        await job.runtime.hypervisor.end_probe(job.name)


async def _watch(job: Job) -> Boot:
    clock, hypervisor = job.runtime.clock, job.runtime.hypervisor
    timeout_seconds = job.runtime.settings.boot_timeout_seconds
    until = clock.monotonic() + timeout_seconds
    look_at, alive_since, signs = clock.monotonic() + _LOOK_SECONDS, None, BootSigns()
    while clock.monotonic() < until:
        if await hypervisor.is_up(job.name):
            return Boot(Outcome.UP)
        if clock.monotonic() >= look_at:
            look_at = clock.monotonic() + _LOOK_SECONDS
            if (gone := await _gone(job, signs)) is not None:
                return gone
            signs = await hypervisor.boot_signs(job.name)
            if signs.stuck is not None:
                return Boot(Outcome.STUCK, signs.stuck, "", signs.last_lines)
            alive_since = None if not signs.is_up else alive_since or clock.monotonic()
            if alive_since is not None and clock.monotonic() - alive_since >= _SSH_SECONDS:
                return Boot(Outcome.UP)
        await job.pause()
    if (gone := await _gone(job, signs)) is not None:
        return gone
    if signs.is_up:
        return Boot(Outcome.UP)
    within = f" within {timeout_seconds} seconds of power-on"
    if signs.is_idle:
        return Boot(Outcome.STUCK, "it neither read its disk nor wrote to its serial console", within)
    return Boot(Outcome.SLOW, "", within, signs.last_lines)


async def _gone(job: Job, signs: BootSigns) -> Boot | None:
    guest = await find_unpaused(job)
    if guest is not None and guest.power is PowerState.PAUSED:
        await job.runtime.hypervisor.power_on(job.name)  # somebody has suspended it: whoever boots it wants it to run
    if guest is not None and guest.power is PowerState.OFF:
        return Boot(Outcome.OFF)
    if guest is None or guest.power is PowerState.CRASHED:
        return Boot(Outcome.DIED, "its QEMU process ended", "", signs.last_lines)
    return None


async def find_unpaused(job: Job) -> Guest | None:
    """The guest; raises `GuestPaused` where the host holds it: then nothing that it does not do is its fault."""
    guest = await job.runtime.hypervisor.guest(job.name)
    if guest is not None and guest.paused_by is not None:
        raise GuestPaused(guest.paused_by)
    return guest


def is_boot_note(status_detail: str | None) -> bool:
    """Whether this was said of a boot, and is over once the guest is seen to be up."""
    return status_detail is not None and status_detail.startswith(_NO_ANSWER)
