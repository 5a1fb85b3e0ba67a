"""The first boot of a server that is made from a backup: nobody is to be left without a way in.

cloud-init gives a new server its network, login, hostname and host keys. Where it was disabled or removed the disk has
those of the server that was backed up, and its network is for a card with another address: vpsd sets that right through
the guest's agent.
"""

from vpsd.backups import queries
from vpsd.backups.models import Backup, Kind
from vpsd.core.ids import mac_address
from vpsd.errors import Unusable
from vpsd.flows import cloud_init
from vpsd.flows.boot import find_unpaused
from vpsd.flows.job import Job
from vpsd.flows.steps import power_on, shut_down
from vpsd.images import clones
from vpsd.images.clones import CloudInit, Identity
from vpsd.servers import queries as servers
from vpsd.servers import updates

_ASK_SECONDS = 2  # between two questions
_BOOTS = 2  # as long as two may take: nothing else than the agent can help
_AGENT_SECONDS = 10  # how much later than SSH an agent answers
_SET_SECONDS = 120  # making host keys is slow under emulation


def needs_setting_right(job: Job) -> bool:
    """Whether the server comes from a backup and was never up."""
    return job.server.source_backup_id is not None and job.server.provisioned_at_ms is None


async def set_right(job: Job) -> None:
    """Have network, login, hostname and host keys set through the agent where no cloud-init does, before the first use.

    Raises `Unusable` where that cannot be done; the guest is off then.
    """
    assert job.server.source_backup_id is not None
    async with job.runtime.read() as ctx:
        backup = await queries.row(ctx, job.server.source_backup_id)
        source = await servers.row(ctx, backup.server_id)
    if backup.cloud_init == CloudInit.ENABLED or source.id == job.server.id:  # of itself: it is who it was
        return
    found = await _until_asked(job, backup)
    if found is None:
        await _say_unknown(job, backup)
    if found in (None, CloudInit.ENABLED):
        return
    identity = Identity(
        mac=mac_address(job.server.uuid),
        old_mac=mac_address(source.uuid),
        hostname=job.server.hostname,
        key=job.server.authorized_key,
        password_hash=job.server.root_password_hash,
    )
    await job.report(0.3, f"cloud-init is {found} in the guest: set up through its agent")
    argv, stdin = clones.set_right_command(identity)
    done = await job.runtime.hypervisor.run_in_guest(job.name, argv, stdin=stdin, timeout_seconds=_SET_SECONDS)
    if done is None or done.exit_code:
        said = "it did not answer" if done is None else done.stderr.strip()[-200:] or f"exit status {done.exit_code}"
        await _give_up(job, f"cloud-init is {found} in it, and its agent could not set up network and login: {said}")
    await shut_down(job)
    job.result = None  # the shutdown was only a part of it
    await power_on(job)
    await _await_network(job, found)


async def _until_asked(job: Job, backup: Backup) -> CloudInit | None:
    """What the guest says of its cloud-init, once it is up; None where SSH answers and nobody can be asked.

    Its power is not cut while it may still be booting: that makes a slow host slower still.
    """
    clock, timeout_seconds = job.runtime.clock, _BOOTS * job.runtime.settings.boot_timeout_seconds
    until, answers_since = clock.monotonic() + timeout_seconds, None
    while clock.monotonic() < until:
        found = await cloud_init.ask(job)
        if found is not None:
            return found
        if backup.cloud_init is None and await job.runtime.hypervisor.is_up(job.name):
            answers_since = answers_since or clock.monotonic()
            if clock.monotonic() - answers_since >= _AGENT_SECONDS:
                return None
        await find_unpaused(job)
        await job.pause(_ASK_SECONDS)
    known = "cloud-init may not run in it" if backup.cloud_init is None else f"cloud-init is {backup.cloud_init} in it"
    await _give_up(job, f"{known}, and its agent did not answer within {timeout_seconds} seconds of power-on")
    return None


async def _await_network(job: Job, found: CloudInit) -> None:
    clock = job.runtime.clock
    until = clock.monotonic() + job.runtime.settings.boot_timeout_seconds
    while clock.monotonic() < until:
        done = await job.runtime.hypervisor.run_in_guest(job.name, clones.has_network_command())
        if done is not None and done.exit_code == 0:
            return
        await job.pause(_ASK_SECONDS)
    await _give_up(job, f"cloud-init is {found} in it, and it has no network although its agent set that up")


async def _say_unknown(job: Job, backup: Backup) -> None:
    what = queries.noun((Kind(backup.kind),))
    text = (
        f"Nobody could be asked whether cloud-init runs in the {what} {backup.id}. If the new login does not work, log "
        "in as on the server that was backed up."
    )
    async with job.write() as ctx:
        await updates.set_status_detail(ctx, job.server.id, text)
    job.result = text


async def _give_up(job: Job, why: str) -> None:
    """Nobody could log in: it is left off."""
    await find_unpaused(job)
    await job.runtime.hypervisor.power_off(job.name)
    raise Unusable.plain(f"The server made from the backup {job.server.source_backup_id} has no way in: {why}.")
