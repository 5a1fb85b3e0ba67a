"""A simulated host as one process reaches it: every call takes a while, and may be the last thing that it does."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from vpsd.errors import Unavailable
from vpsd.hypervisor.owner import ANYBODY, Owner
from vpsd.hypervisor.protocol import HostFacts
from vpsd.hypervisor.simulator import Simulator

if TYPE_CHECKING:
    from tests.storm.machine import Machine

CPUS, MEMORY_MB, STORAGE_GB = 4, 8192, 400
_QUIET = {
    "guests",
    "guest",
    "volumes",
    "facts",
    "is_up",
    "boot_signs",
    "has_base",
    "stats",
    "run_in_guest",
    "end_probe",
    "move_progress",
    "disk_layout",
}  # they change nothing
# What a stopped worker still makes of a server that was deleted meanwhile is for `vpsd check` (docs/decisions/0013).
_MAKES = {
    "ensure_base",
    "ensure_disk",
    "write_disk",
    "write_seed",
    "define",
    "export_disk",
    "prepare_disk",
    "copy_disk",
}


class Connection(Simulator):
    """The same host, seen by one process, on behalf of one owner."""

    __slots__ = ("_machine", "_name", "_owner")

    def __init__(self, host: Simulator, name: str, machine: "Machine", owner: Owner = ANYBODY) -> None:
        self.__dict__ = host.__dict__
        self._name = name
        self._machine = machine
        self._owner = owner

    def held_by(self, owner: Owner) -> "Connection":
        return Connection(self, self._name, self._machine, owner)

    @asynccontextmanager
    async def _call(self, call: str) -> AsyncIterator[None]:
        machine, name = self._machine, f"{self._name}.{call}"
        is_quiet = call in _QUIET
        await machine.call(name, is_quiet=is_quiet, is_of_job=self._owner.uuid is not None)
        for look in tuple(self.due):  # a move ends by itself, whoever can see it
            look()
        if machine.world.is_cut(self._name):
            raise Unavailable(f"{self._name} does not answer.")
        self._owner.check()
        if not is_quiet and self._owner.term is not None:
            machine.world.findings.look_at_lease(self._owner.term, f"{machine.name} {name}")
        if not is_quiet and call not in _MAKES:  # stopped here it goes on with what it was about to do, however late
            await machine.point(f"{name} (sent)")
        yield
        if not is_quiet:
            await machine.point(f"{name} (done)")
        if machine.world.is_cut(self._name):  # it was done, and nobody hears of it
            raise Unavailable(f"{self._name} does not answer.")

    async def facts(self) -> HostFacts:
        facts = await super().facts()
        return msgspec.structs.replace(facts, name=self._name, cpus=CPUS, memory_mb=MEMORY_MB, storage_gb=STORAGE_GB)

    def watch(
        self,
        changed: Callable[[str], None],
        rebooted: Callable[[str], None] | None = None,
        missed: Callable[[], None] | None = None,
    ) -> None:
        """Hear what happens, as far as the storm lets one."""
        deliver = self._machine.deliver
        super().watch(
            lambda name: deliver(self._name, changed, name),
            None if rebooted is None else lambda name: deliver(self._name, rebooted, name),
            missed,
        )

    async def close(self) -> None:
        """The host goes on."""
