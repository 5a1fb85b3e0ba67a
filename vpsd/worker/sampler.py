"""Samples running servers, for `resource_usage` and the cost of transfer."""

import logging

from vpsd.core.clock import every
from vpsd.core.db import UniqueViolation
from vpsd.errors import DatabaseUnavailable, Unavailable, Unusable
from vpsd.hypervisor.protocol import guest_name
from vpsd.lifecycle import Status
from vpsd.metrics import samples
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 15.0


class Sampler:
    """Samples all active servers periodically."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.sample)

    async def sample(self) -> None:
        """Sample all active servers once."""
        async with self._runtime.read() as ctx:
            active = [
                server for server in await servers.present(ctx, self._runtime.host_id) if server.status == Status.ACTIVE
            ]
        for server in active:
            asked_at_ms = self._runtime.clock.now_ms()
            try:
                stats = await self._runtime.hypervisor.stats(guest_name(self._runtime.instance, server.id))
                async with self._runtime.write() as ctx:
                    if (await servers.lock(ctx, server.id)).deleted_at_ms is None:  # else its transfer may be charged
                        await samples.save(ctx, server.id, server.vcpus, stats, asked_at_ms)
            except (Unavailable, Unusable) as error:
                log.debug("server %s could not be measured: %s", server.id, error)
            except UniqueViolation:
                continue  # another worker stored the first sample at the same time
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("server %s could not be measured; the others are measured", server.id)
