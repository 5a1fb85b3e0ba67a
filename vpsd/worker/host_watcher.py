"""Keeps what is known of the host true: for /health, for the capacity that requests ask for, for who reads along."""

import logging
from collections.abc import Callable

import msgspec

from vpsd.core.clock import every
from vpsd.errors import DatabaseUnavailable, Unavailable
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostHealth
from vpsd.hypervisor.names import server_id_of
from vpsd.hypervisor.protocol import HostFacts
from vpsd.runtime import HostRuntime
from vpsd.servers import creation

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 5.0
_RECORD_SECONDS = 60.0


class HostWatcher:
    """Asks the host now and then what it is, and says what is new."""

    def __init__(self, runtime: HostRuntime, say: Callable[[str], None], greet: Callable[[HostFacts], None]) -> None:
        """`greet` is called once, as soon as the host is known."""
        self._runtime = runtime
        self._say = say
        self._greet: Callable[[HostFacts], None] | None = greet
        self._record_at = 0.0

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.look)

    async def look(self) -> None:
        """Ask once; a failure is said once, and becomes the host's status."""
        host = self._runtime.host
        try:
            await self._update()
        except DatabaseUnavailable:  # says nothing of the host
            raise
        except Exception as error:
            if host.error == str(error):
                return
            self._say(f"hypervisor: {error}")
            if not isinstance(error, Unavailable):
                log.debug("the hypervisor cannot be used", exc_info=error)
            async with self._runtime.write() as ctx:
                await hosts.record_unreachable(ctx, self._runtime.host_id, str(error))
            host.status, host.error = HostHealth.UNREACHABLE, str(error)

    async def _update(self) -> None:
        host, facts = self._runtime.host, await self._runtime.hypervisor.facts()
        if host.status is not HostHealth.OK:
            await self._raise_ids()
        self._tell_storage(facts)
        grown = {"storage_gb": facts.storage_gb, "storage_free_mb": facts.storage_free_mb}
        is_new = host.facts is None or msgspec.structs.replace(host.facts, **grown) != facts
        is_new_storage = host.recorded_storage != host.storage or host.facts is None
        # Now and then also what is not new: whoever looked after the host before may have written later.
        is_due = self._runtime.clock.monotonic() >= self._record_at
        if host.status is not HostHealth.OK or host.facts != facts or is_new_storage or is_due:
            storage = "ok" if host.storage is None else host.storage  # known from now on
            async with self._runtime.write() as ctx:
                await hosts.record_facts(ctx, self._runtime.host_id, facts, storage)
            self._record_at = self._runtime.clock.monotonic() + _RECORD_SECONDS
            host.status, host.error, host.facts, host.recorded_storage = HostHealth.OK, None, facts, storage
        if is_new:
            self._say(f"hypervisor: {facts.driver} {facts.version} at {facts.uri}")
            self._say(f"guests: {facts.virt_type} ({facts.virt_reason})")
        if self._greet is not None:
            self._greet(facts)
            self._greet = None

    async def _raise_ids(self) -> None:
        """Have new servers get ids that nothing on the host is named after.

        It may have more than the database knows of: after an older copy of that was put back.
        """
        guests, volumes = await self._runtime.hypervisor.guests(), await self._runtime.hypervisor.volumes()
        last = max(map(server_id_of, {*guests, *volumes.guests}), default=0)
        async with self._runtime.write() as ctx:
            if last and await creation.give_ids_above(ctx, last):
                log.warning(
                    "the host has something of a server %s, younger than all that the database knows: was an older "
                    "copy of it put back? New servers get ids above that; `vpsd check` says what is there",
                    last,
                )

    def _tell_storage(self, facts: HostFacts) -> None:
        host, free_mb = self._runtime.host, facts.storage_free_mb
        reserve_mb = hosts.reserve_mb(facts, self._runtime.settings)
        was_low, host.storage_low = host.storage_low, free_mb is not None and free_mb < reserve_mb
        if free_mb is not None and host.storage_low and not was_low:
            log.error("storage: %s", hosts.storage_low_text(free_mb, reserve_mb))
        elif was_low and not host.storage_low:
            log.warning("storage: there is room again")
