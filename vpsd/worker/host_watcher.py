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
_STORAGE_MB = 1024  # by which free space has changed that is put down at once; `HostKeeper` puts down the rest


class HostWatcher:
    """Asks the host now and then what it is, and says what is new."""

    def __init__(
        self,
        runtime: HostRuntime,
        say: Callable[[str], None],
        greet: Callable[[HostFacts], None],
        is_back: Callable[[], None] = lambda: None,
    ) -> None:
        """`greet` is called once, as soon as the host is known; `is_back` whenever it answers again."""
        self._runtime = runtime
        self._say = say
        self._greet: Callable[[HostFacts], None] | None = greet
        self._is_back = is_back

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
        is_new = host.recorded_facts is None or _is_other(host.recorded_facts, facts)
        is_new_storage = host.recorded_storage != host.storage or host.facts is None
        was_away, host.facts = host.status is not HostHealth.OK, facts
        if was_away or is_new or is_new_storage or _free_space_differs(host.recorded_facts, facts):
            storage = host.storage or "ok"
            async with self._runtime.write() as ctx:
                await hosts.record_facts(ctx, self._runtime.host_id, facts, storage)
            host.status, host.error, host.recorded_facts, host.recorded_storage = HostHealth.OK, None, facts, storage
        if was_away:
            self._is_back()
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


def _is_other(one: HostFacts, facts: HostFacts) -> bool:
    """Whether anything but its storage differs."""
    return msgspec.structs.replace(one, storage_gb=facts.storage_gb, storage_free_mb=facts.storage_free_mb) != facts


def _free_space_differs(one: HostFacts | None, facts: HostFacts) -> bool:
    if one is None or one.storage_gb != facts.storage_gb or one.storage_free_mb is None:
        return one is None or (one.storage_gb, one.storage_free_mb) != (facts.storage_gb, facts.storage_free_mb)
    return facts.storage_free_mb is None or abs(facts.storage_free_mb - one.storage_free_mb) >= _STORAGE_MB
