"""Measures what running servers use, for `resource_usage`."""

import asyncio
import logging

import msgspec
from sqlalchemy import bindparam, insert, or_, select, update

from vpsd.core.clock import iso_utc
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import GuestStats, guest_name
from vpsd.servers import rows
from vpsd.servers.jobs import World
from vpsd.servers.lifecycle import Status
from vpsd.servers.models import Server, traffic, usage

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 15.0

_COLUMNS = [column.name for column in usage.c]
_LAST = Statement(select(usage).where(usage.c.server_id == bindparam("the_server")))
_ADD = Statement(insert(usage), _COLUMNS)
_CHANGE = Statement(update(usage).where(usage.c.server_id == bindparam("the_server")), _COLUMNS[1:])
_OF_MONTH = (traffic.c.server_id == bindparam("the_server"), traffic.c.month == bindparam("the_month"))
_IS_THERE = Statement(select(traffic.c.server_id).where(*_OF_MONTH))
_ADD_TRAFFIC = Statement(insert(traffic), ("server_id", "month", "received_bytes", "sent_bytes"))
_MORE_TRAFFIC = Statement(
    update(traffic)
    .where(*_OF_MONTH, or_(traffic.c.settled_at_ms.is_(None), traffic.c.settled_at_ms == 0))
    .values(
        received_bytes=traffic.c.received_bytes + bindparam("b_received"),
        sent_bytes=traffic.c.sent_bytes + bindparam("b_sent"),
    )
)


class Sample(msgspec.Struct, frozen=True):
    """What was measured of a server at a moment; a row of `usage`, field for column."""

    server_id: int
    sampled_at_ms: int
    cpu_percent: float | None
    memory_used_mb: int | None
    disk_used_bytes: int | None
    cpu_seconds: float | None
    received_bytes: int | None
    sent_bytes: int | None


class Sampler:
    """Looks at every active server now and then."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self.sample()
            except Unavailable as error:
                log.debug("nothing could be measured: %s", error)
            except Exception:
                log.exception("the sampler met an error; it goes on")
            await asyncio.sleep(_PERIOD_SECONDS)

    async def sample(self) -> None:
        """One look at every active server."""
        async with self._world.database.read() as tx:
            servers = [server for server in await rows.present(tx) if server.status == Status.ACTIVE]
        for server in servers:
            asked_at_ms = self._world.clock.now_ms()
            try:
                measured = await self._world.hypervisor.stats(guest_name(self._world.instance, server.id))
                async with self._world.database.write() as tx:
                    if (await rows.lock(tx, server.id)).deleted_at_ms is None:  # its transfer may be charged by now
                        await self._save(tx, server, measured, asked_at_ms)
            except (Unavailable, Unusable) as error:
                log.debug("server %s could not be measured: %s", server.id, error)
            except UniqueViolation:
                continue  # another worker wrote the first row at the same moment
            except Exception:
                log.exception("server %s could not be measured; the others are", server.id)

    async def _save(self, tx: Tx, server: Server, measured: GuestStats, now: int) -> None:
        last = await tx.first(Sample, _LAST, the_server=server.id)
        if last is not None and last.sampled_at_ms >= now:
            return  # another worker has asked later and was quicker: its counters are ahead of these
        sample = Sample(
            server.id,
            now,
            cpu_percent(last, measured.cpu_seconds, now, server.vcpus),
            measured.memory_used_mb,
            measured.disk_used_bytes,
            measured.cpu_seconds,
            _kept(measured.received_bytes, None if last is None else last.received_bytes),
            _kept(measured.sent_bytes, None if last is None else last.sent_bytes),
        )
        values = msgspec.structs.asdict(sample)
        if last is None:
            await tx.run(_ADD, **values)
        else:
            del values["server_id"]
            await tx.run(_CHANGE, the_server=server.id, **values)
        if measured.received_bytes is not None and measured.sent_bytes is not None:
            before = (0, 0) if last is None else (last.received_bytes or 0, last.sent_bytes or 0)
            moved = since(before, (measured.received_bytes, measured.sent_bytes))
            await _add_traffic(tx, server.id, iso_utc(now)[:7], *moved)


async def _add_traffic(tx: Tx, server_id: int, month: str, received: int, sent: int) -> None:
    if await tx.run(_MORE_TRAFFIC, the_server=server_id, the_month=month, b_received=received, b_sent=sent):
        return
    if await tx.first(int, _IS_THERE, the_server=server_id, the_month=month) is None:  # else it is charged, for good
        await tx.run(_ADD_TRAFFIC, server_id=server_id, month=month, received_bytes=received, sent_bytes=sent)


def _kept(present: int | None, last: int | None) -> int | None:
    """A guest that says nothing for once has not begun anew: what it said last is where its counter goes on."""
    return last if present is None else present


def cpu_percent(last: Sample | None, cpu_seconds: float | None, now_ms: int, vcpus: int) -> float | None:
    """How busy the vCPUs were since the last sample; None where one is missing or it was powered on since."""
    if last is None or last.cpu_seconds is None or cpu_seconds is None or cpu_seconds < last.cpu_seconds:
        return None
    elapsed_ms = now_ms - last.sampled_at_ms
    if elapsed_ms <= 0:
        return None
    return round(min(100.0, (cpu_seconds - last.cpu_seconds) * 100_000 / elapsed_ms / vcpus), 1)


def since(last: tuple[int, int], present: tuple[int, int]) -> tuple[int, int]:
    """What two counters (in, out) have gained; both begin anew at each boot, which shows when either has fallen."""
    if present[0] < last[0] or present[1] < last[1]:
        return present
    return present[0] - last[0], present[1] - last[1]
