"""Removes images from a host, or from the pool that it shares, that nothing has needed there for some time.

Whether one is needed is asked twice: to know since when it is not, and again once it is claimed, when nobody can begin
to use it unseen (`hosts.base_images`). The host has the last word: it keeps what a disk stands on.
"""

import logging
from functools import partial

from vpsd.backups.needed_images import needed
from vpsd.core.clock import Clock, every
from vpsd.core.units import HOUR_MS
from vpsd.errors import Unusable
from vpsd.hosts import base_images
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostHealth, HostState
from vpsd.hypervisor.owner import Owner, TakenOver
from vpsd.runtime import HostRuntime

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 600.0
_CLAIM_SECONDS = 60  # that nobody else touches an image, ...
_WORK_SECONDS = 30  # ... of which it is removed in the first half, or not


class ImageCollector:
    """Looks now and then; with `VPSD_IMAGE_KEEP_HOURS=0` it does nothing."""

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.collect)

    async def collect(self) -> None:
        """One look at all images of the host; of a shared pool one of its hosts does that."""
        runtime, hours = self._runtime, self._runtime.settings.image_keep_hours
        runtime.jumps.look()
        if not hours or runtime.jumps.unsettled or not await self._is_first():
            return
        keys = (await runtime.hypervisor.volumes()).bases
        kept = await self._needed(keys)
        for key in sorted(keys):
            since_ms = await base_images.note(runtime, runtime.place, key, needed=key in kept)
            if since_ms is not None and since_ms <= runtime.clock.now_ms() - hours * HOUR_MS:
                await self._remove(key)
        await base_images.forget_all_but(runtime, runtime.place, keys)

    async def _remove(self, key: str) -> None:
        runtime = self._runtime
        until = runtime.clock.monotonic() + _WORK_SECONDS
        async with base_images.claimed(runtime, runtime.place, key, seconds=_CLAIM_SECONDS) as has_it:
            if not has_it or await self._needed({key}):
                return
            owner = Owner(check=partial(_check_time, runtime.clock, until))
            try:
                await runtime.hypervisor.held_by(owner).delete_base(key)
            except Unusable as error:
                log.info("the image %s stays: %s", key, error)
            except TakenOver:
                log.info("the image %s stays: its removal took too long", key)
            else:
                log.info("the image %s was removed: nothing has needed it for %s hours", key, self._hours)

    @property
    def _hours(self) -> int:
        return self._runtime.settings.image_keep_hours

    async def _needed(self, keys: frozenset[str] | set[str]) -> set[str]:
        runtime = self._runtime
        async with runtime.read() as ctx:
            return await needed(ctx, runtime.images.current, keys, runtime.host_id, runtime.hypervisor.shared_pool)

    async def _is_first(self) -> bool:
        """Whether this is the first of the hosts of its pool that answer."""
        is_alone = self._runtime.hypervisor.shared_pool is None
        async with self._runtime.read() as ctx:
            known = [await hosts.row(ctx, self._runtime.host_id)] if is_alone else await hosts.list_hosts(ctx)
        off = (HostHealth.UNREACHABLE, HostState.FENCED)
        ids = [h.id for h in known if h.place == self._runtime.place and h.health not in off and h.state not in off]
        return self._runtime.host_id == min(ids, default=0)


def _check_time(clock: Clock, until: float) -> None:
    if clock.monotonic() > until:
        raise TakenOver
