"""The host and its capacity: recorded by the worker, read by requests."""

import msgspec
from sqlalchemy import bindparam, insert, select, update

from vpsd.catalog.models import Plan
from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.hosts.models import Host, hosts
from vpsd.hypervisor.protocol import HostFacts, storage_reserve_mb
from vpsd.settings import Settings

_FACTS = ("name", "cpus", "memory_mb", "storage_gb", "storage_free_mb")
_HOST = Statement(select(hosts), into=Host)
_LOCK = Statement(select(hosts).with_for_update(), into=Host)
_ADD = Statement(insert(hosts), ("id", *_FACTS, "seen_at_ms", "created_at_ms"))
_CHANGE = Statement(update(hosts).where(hosts.c.id == bindparam("id")), (*_FACTS, "seen_at_ms"))


class Resources(msgspec.Struct, frozen=True):
    """What servers use in total."""

    vcpus: int = 0
    memory_mb: int = 0
    storage_gb: int = 0


class Capacity(msgspec.Struct, frozen=True):
    """What is free on a host, including overcommitment. None: not known, so anything fits."""

    host: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    storage_gb: int | None = None
    storage_full: bool = False  # what is left of the pool is for servers that run

    def lacks(self, plan: Plan, instead_of: Plan | None = None) -> list[str]:
        """The resources that are insufficient for a server of a plan, which may replace another plan."""
        names = ("vcpus", "memory_mb", "storage_gb")
        more = {name: getattr(plan, name) - (getattr(instead_of, name) if instead_of else 0) for name in names}
        left = {name: getattr(self, name) for name in names}
        if self.storage_full:
            left["storage_gb"] = 0
        return [name for name in names if left[name] is not None and more[name] > max(0, left[name])]


async def record_facts(ctx: Ctx, facts: HostFacts) -> None:
    """Store what a host reported."""
    values = {name: getattr(facts, name) for name in _FACTS}
    if await ctx.tx.run(_CHANGE, id=1, **values, seen_at_ms=ctx.now_ms):
        return
    try:
        await ctx.tx.run(_ADD, id=1, **values, seen_at_ms=ctx.now_ms, created_at_ms=ctx.now_ms)
    except UniqueViolation:
        return  # another worker stored the same at the same time


async def find_host(ctx: Ctx, *, lock: bool = False) -> Host | None:
    """The host, None before it is known; with `lock`, locked until the transaction ends."""
    return await ctx.tx.first(_LOCK if lock else _HOST)


def capacity(host: Host, in_use: Resources, settings: Settings) -> Capacity:
    """What is free on a host of which servers use that much."""
    return Capacity(
        host.name,
        _free(host.cpus, host.cpu_ratio or settings.vcpu_overcommit, in_use.vcpus),
        _free(host.memory_mb, host.memory_ratio or settings.memory_overcommit, in_use.memory_mb),
        _free(host.storage_gb, host.storage_ratio or settings.storage_overcommit, in_use.storage_gb),
        host.storage_free_mb is not None and host.storage_free_mb < reserve_mb(host, settings),
    )


def _free(has: int | None, ratio: float, used: int) -> int | None:
    return None if has is None else int(has * ratio) - used


def reserve_mb(host: Host | HostFacts, settings: Settings) -> int:
    """The space of a host's pool that is left for servers that run."""
    return storage_reserve_mb(settings.storage_reserve_mb, host.storage_gb)


def storage_low_text(free_mb: int, reserve_mb: int) -> str:
    """What the operator is told of a pool that has too little left."""
    return (
        f"{free_mb} MB are free in the pool, less than the {reserve_mb} MB that are left for servers that run: nothing "
        "begins that takes more (VPSD_STORAGE_RESERVE_MB)"
    )
