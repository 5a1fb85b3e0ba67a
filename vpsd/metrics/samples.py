"""Samples: a guest's statistics become its latest figures and its transfer."""

import msgspec
from sqlalchemy import bindparam, insert, select, update

from vpsd.core.clock import lies_ahead, month_name
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.units import MINUTE_MS
from vpsd.hypervisor.protocol import GuestStats
from vpsd.metrics import traffic
from vpsd.metrics.models import Sample, usage

_COLUMNS = [column.name for column in usage.c]
_LAST = Statement(select(usage).where(usage.c.server_id == bindparam("server_id")), into=Sample)
_ADD = Statement(insert(usage), _COLUMNS)
_CHANGE = Statement(update(usage).where(usage.c.server_id == bindparam("server_id")), _COLUMNS[1:])


async def save(ctx: Ctx, server_id: int, vcpus: int, stats: GuestStats, at_ms: int) -> None:
    """Store the statistics of a guest with that many vCPUs, requested at a time, and add what it transferred.

    The caller has locked the server. Raises `UniqueViolation` if another worker stored its first sample meanwhile.
    """
    last = await ctx.tx.first(_LAST, server_id=server_id)
    if last is not None and (last.sampled_at_ms == at_ms or lies_ahead(last.sampled_at_ms, at_ms, MINUTE_MS)):
        return  # another worker asked later and was faster: its counters are ahead of these
    sample = Sample(
        server_id,
        at_ms,
        cpu_percent(last, stats.cpu_seconds, at_ms, vcpus),
        stats.memory_used_mb,
        stats.disk_used_bytes,
        stats.cpu_seconds,
        _kept(stats.received_bytes, None if last is None else last.received_bytes),
        _kept(stats.sent_bytes, None if last is None else last.sent_bytes),
    )
    values = msgspec.structs.asdict(sample)
    await ctx.tx.run(_ADD if last is None else _CHANGE, **values)
    if stats.received_bytes is not None and stats.sent_bytes is not None:
        before = (0, 0) if last is None else (last.received_bytes or 0, last.sent_bytes or 0)
        await traffic.add(ctx, server_id, month_name(at_ms), *gained(before, (stats.received_bytes, stats.sent_bytes)))


def _kept(present: int | None, last: int | None) -> int | None:
    """A guest that once did not answer has not restarted: its counter continues from its last value."""
    return last if present is None else present


def cpu_percent(last: Sample | None, cpu_seconds: float | None, now_ms: int, vcpus: int) -> float | None:
    """How busy the vCPUs were since the last sample; None if a value is missing or the guest was powered on since."""
    if last is None or last.cpu_seconds is None or cpu_seconds is None or cpu_seconds < last.cpu_seconds:
        return None
    elapsed_ms = now_ms - last.sampled_at_ms
    if elapsed_ms <= 0:
        return None
    return round(min(100.0, (cpu_seconds - last.cpu_seconds) * 100_000 / elapsed_ms / vcpus), 1)


def gained(last: tuple[int, int], present: tuple[int, int]) -> tuple[int, int]:
    """The increments of two counters (in, out); both restart at each boot, which shows when either has decreased."""
    if present[0] < last[0] or present[1] < last[1]:
        return present
    return present[0] - last[0], present[1] - last[1]
