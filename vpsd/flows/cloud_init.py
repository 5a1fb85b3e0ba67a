"""Asks a guest, through its agent, whether its cloud-init sets up what is made from it."""

from vpsd.flows.job import Job
from vpsd.images import clones
from vpsd.images.clones import CloudInit


async def ask(job: Job) -> CloudInit | None:
    """What the guest says; None where it is off, has no agent, or its agent may not run programs."""
    done = await job.runtime.hypervisor.run_in_guest(job.name, clones.ask_command(), timeout_seconds=30)
    return None if done is None or done.exit_code else clones.read_answer(done.stdout)
