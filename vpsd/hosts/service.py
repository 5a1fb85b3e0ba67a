"""The room that a host has: noted by the worker, asked by requests. Whether a plan fits is a pure function."""

import msgspec
from sqlalchemy import bindparam, func, insert, select, update

from vpsd.catalog.models import Plan, plans
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.hosts.models import Host, hosts
from vpsd.hypervisor.protocol import HostFacts
from vpsd.servers.models import servers
from vpsd.settings import Settings

_COLUMNS = ("name", "cpus", "memory_mb", "storage_gb", "seen_at_ms")
_HOST = Statement(select(hosts))
_LOCK = Statement(select(hosts).with_for_update())
_ADD = Statement(insert(hosts), ("id", *_COLUMNS))
_CHANGE = Statement(update(hosts).where(hosts.c.id == bindparam("the_id")), _COLUMNS)
_present = (
    select(servers.c.plan_id, func.count().label("count"))
    .where(servers.c.gone_at_ms.is_(None))
    .group_by(servers.c.plan_id)
    .subquery()
)
_USED = Statement(
    select(
        func.coalesce(func.sum(_present.c.count * plans.c.vcpus), 0),
        func.coalesce(func.sum(_present.c.count * plans.c.memory_mb), 0),
        func.coalesce(func.sum(_present.c.count * plans.c.storage_gb), 0),
    ).select_from(_present.join(plans, plans.c.id == _present.c.plan_id))
)


class Room(msgspec.Struct, frozen=True):
    """What is still to be had of a host, overcommitment included; None: as much as anybody asks for, nothing is
    known."""

    host: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    storage_gb: int | None = None

    def lacks(self, plan: Plan, instead_of: Plan | None = None) -> list[str]:
        """What there is too little of for a server of that plan, which may give another plan's room back."""
        names = ("vcpus", "memory_mb", "storage_gb")
        more = {name: getattr(plan, name) - (getattr(instead_of, name) if instead_of else 0) for name in names}
        left = {name: getattr(self, name) for name in names}
        return [name for name in names if left[name] is not None and more[name] > max(0, left[name])]


async def note(tx: Tx, clock: Clock, facts: HostFacts) -> None:
    """Write down what a host said of itself."""
    values = {name: getattr(facts, name) for name in _COLUMNS[:-1]}
    if await tx.run(_CHANGE, the_id=1, **values, seen_at_ms=clock.now_ms()):
        return
    try:
        await tx.run(_ADD, id=1, **values, seen_at_ms=clock.now_ms())
    except UniqueViolation:
        return  # another worker noted the same at the same moment


async def room(tx: Tx, settings: Settings, *, reserve: bool = False) -> Room:
    """What is left of the host: servers that are stopped or being deleted still hold what is theirs.

    With `reserve`, nobody else may hand out of the same room until the transaction ends.
    """
    host = await tx.first(Host, _LOCK if reserve else _HOST)
    if host is None:
        return Room()
    used = await tx.first(lambda *sums: tuple(map(int, sums)), _USED) or (0, 0, 0)
    return Room(
        host.name,
        int(host.cpus * settings.vcpu_overcommit) - used[0],
        int(host.memory_mb * settings.memory_overcommit) - used[1],
        None if host.storage_gb is None else int(host.storage_gb * settings.storage_overcommit) - used[2],
    )
