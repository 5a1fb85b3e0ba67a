"""Hosts: recorded by the workers that look after them, read by requests."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.tables import total
from vpsd.errors import Misconfigured, NotFound
from vpsd.hosts.models import Host, HostHealth, HostState, hosts, takes_servers
from vpsd.hosts.placement import RESOURCES, Room
from vpsd.hosts.status import StorageState
from vpsd.hypervisor.protocol import HostFacts, storage_reserve_mb
from vpsd.settings import Settings

_FACTS = ("cpus", "memory_mb", "storage_gb", "storage_free_mb", "version", "virt_type")
_c = hosts.c
_PRESENT = _c.removed_at_ms.is_(None)
_IS_LOCAL = _c.uri.is_(None)

# As an UPDATE locks it, in the order of the ids.
_LOCK = Statement(
    select(_c.id)
    .where(or_(_c.id == bindparam("id"), _c.id == bindparam("other_id"), _c.shared_pool == bindparam("shared_pool")))
    .order_by(_c.id)
    .with_for_update(key_share=True),
    into=int,
)
_ALL = Statement(select(hosts).where(_PRESENT).order_by(_c.id), into=Host)
_ROW = Statement(select(hosts).where(_c.id == bindparam("id")), into=Host)
_BY_NAME = Statement(select(hosts).where(_c.name == bindparam("name"), _PRESENT), into=Host)
_LOCAL = Statement(select(hosts).where(_IS_LOCAL, _PRESENT).order_by(_c.id).limit(1), into=Host)
_COUNT_LOCAL = Statement(select(func.count()).select_from(hosts).where(_IS_LOCAL), into=int)
_COUNT_PRESENT = Statement(select(func.count()).select_from(hosts).where(_PRESENT), into=int)
_COUNT = Statement(select(func.count()).select_from(hosts), into=int)
_ADD = Statement(
    insert(hosts).returning(hosts),
    ("name", "driver", "uri", "pool", "shared_pool", "location", "created_at_ms"),
    into=Host,
)
_RECORD_FACTS = Statement(
    update(hosts).where(_c.id == bindparam("id")).values(health=HostHealth.OK, error=None, unreachable_since_ms=None),
    ("driver", *_FACTS, "storage", "seen_at_ms"),
)
_RECORD_UNREACHABLE = Statement(
    update(hosts)
    .where(_c.id == bindparam("id"))
    .values(
        health=HostHealth.UNREACHABLE,
        unreachable_since_ms=func.coalesce(_c.unreachable_since_ms, bindparam("now_ms")),
    ),
    ("error",),
)


class HostHealthRow(msgspec.Struct, frozen=True):
    """How a host is, for /health."""

    driver: str
    virt_type: str | None
    health: HostHealth
    storage: StorageState | None
    lease_until_ms: int | None


_HEALTH = Statement(
    select(_c.driver, _c.virt_type, _c.health, _c.storage, _c.lease_until_ms)
    .where(_PRESENT, _c.state != HostState.FENCED)
    .order_by(_c.id),
    into=HostHealthRow,
)


class Resources(msgspec.Struct, frozen=True):
    """How much of a host."""

    vcpus: int = 0
    memory_mb: int = 0
    storage_gb: int = 0


class Used(msgspec.Struct, frozen=True):
    """What of a host is handed out."""

    id: int
    used_servers: int
    used_vcpus: int
    used_memory_mb: int
    used_storage_gb: int


_ROOM = select(*(_c[field] for field in Room.__struct_fields__)).order_by(_c.id)
_ROOMS = Statement(_ROOM.where(_PRESENT), into=Room)
_FEW = 8  # of the emptiest: however many hosts there are, placing a server costs the same


def _emptiest(where: ColumnElement[bool]) -> Select[Any]:
    return select(_ROOM.where(takes_servers, where).order_by(None).order_by(_c.fullness).limit(_FEW).subquery())


_EMPTIEST = Statement(
    union_all(_emptiest(_c.location == bindparam("location")), _emptiest(_c.location.is_(None))), into=Room
)
_ROOM_OF = Statement(_ROOM.where(_c.id == bindparam("host_id")), into=Room)
_USED_OF_POOL = Statement(select(total(_c.used_storage_gb)).where(_c.shared_pool == bindparam("shared_pool")), into=int)
_MORE = {"used_servers": "servers", **{f"used_{name}": name for name in RESOURCES}}


def _more(name: str) -> BindParameter[int]:
    return bindparam(f"more_{name}", type_=BigInteger)


_of_pool = hosts.alias()
_LOCK_POOL = Statement(
    select(_c.id).where(_c.shared_pool == bindparam("shared_pool")).order_by(_c.id).with_for_update(key_share=True),
    into=int,
)
_POOL_USED = select(total(_of_pool.c.used_storage_gb)).where(_of_pool.c.shared_pool == _c.shared_pool).scalar_subquery()
_USED = {
    **{name: _c[f"used_{name}"] for name in RESOURCES},
    "storage_gb": case((_c.shared_pool.is_(None), _c.used_storage_gb), else_=_POOL_USED),
}
_CHANGE_USED = Statement(
    update(hosts)
    .where(
        _c.id == bindparam("host_id"),
        or_(_more("servers") <= 0, and_(_PRESENT, _c.state == HostState.ENABLED)),
        *(or_(_more(name) <= 0, used + _more(name) <= bindparam(f"most_{name}")) for name, used in _USED.items()),
    )
    .values({used: _c[used] + _more(name) for used, name in _MORE.items()})
)
_NO_LIMIT = 1 << 40


async def add_host(
    ctx: Ctx,
    name: str,
    driver: str,
    *,
    uri: str | None = None,
    pool: str | None = None,
    shared_pool: str | None = None,
    location: str | None = None,
) -> Host:
    """Add a host; raises `UniqueViolation` where one has that name."""
    values = {"name": name, "driver": driver, "uri": uri, "pool": pool, "shared_pool": shared_pool}
    host = await ctx.tx.first(_ADD, **values, location=location, created_at_ms=ctx.now_ms)
    assert host is not None
    return host


async def ensure_local(
    ctx: Ctx, name: str, driver: str, machine: str, *, is_sole_user: bool = False, only_if_first: bool = False
) -> None:
    """Have a row for this machine's own host, unless there ever was one: the operator may have removed it.

    `machine` is the mark of the data folder; `is_sole_user`: nobody else works with the database. `only_if_first`: not
    where there are other hosts either. Raises `Misconfigured` where the own host is another machine's: this one would
    be taken for it, and has none of its servers.
    """
    local_host = await local(ctx)
    if local_host is not None and (local_host.machine is None or is_sole_user):
        await change_host(ctx, local_host.id, machine=machine)
    elif local_host is not None and local_host.machine != machine:
        raise Misconfigured(
            f"the host {local_host.name} is the own one of another data folder, and cannot be reached from here. Give "
            f"it an address (vpsd host set {local_host.name} --uri qemu+ssh://…), or start vpsd with that folder"
        )
    elif local_host is None and not await ctx.tx.first(_COUNT if only_if_first else _COUNT_LOCAL):
        if await find_by_name(ctx, name) is not None:
            name = f"{name}-local"
        host = await add_host(ctx, name, driver)
        await change_host(ctx, host.id, machine=machine)


@cache
def _change(columns: tuple[str, ...]) -> Statement[Any]:
    return Statement(update(hosts).where(_c.id == bindparam("id")), columns)


async def change_host(ctx: Ctx, host_id: int, **values: Any) -> None:
    """Change columns of a host that are the operator's."""
    if values:
        await ctx.tx.run(_change(tuple(values)), id=host_id, **values)


async def find_host_named(ctx: Ctx, name: str) -> Host:
    """The host of that name; raises `NotFound`."""
    found = await find_by_name(ctx, name)
    if found is None:
        raise NotFound("host", name)
    return found


async def list_hosts(ctx: Ctx) -> list[Host]:
    """All hosts, oldest first."""
    return await ctx.tx.all(_ALL)


async def row(ctx: Ctx, host_id: int) -> Host:
    """A host that must exist; it may have been removed."""
    found = await ctx.tx.first(_ROW, id=host_id)
    assert found is not None
    return found


async def lock(ctx: Ctx, host_id: int, other_id: int, shared_pool: str | None = None) -> None:
    """Keep two hosts from others until the transaction ends, and those of a shared pool, in which room is to be had.

    The lower id comes first: so no two wait for each other.
    """
    await ctx.tx.all(_LOCK, id=host_id, other_id=other_id, shared_pool=shared_pool)


async def find_by_name(ctx: Ctx, name: str) -> Host | None:
    """The host of that name, if there is one."""
    return await ctx.tx.first(_BY_NAME, name=name)


async def local(ctx: Ctx) -> Host | None:
    """This machine's own host."""
    return await ctx.tx.first(_LOCAL)


async def record_facts(ctx: Ctx, host_id: int, facts: HostFacts, storage: str | None) -> None:
    """Store what a host that answers has said of itself, and how its storage is."""
    await record_all_facts(ctx, {host_id: (facts, storage)})


async def record_all_facts(ctx: Ctx, found: Mapping[int, tuple[HostFacts, str | None]]) -> None:
    """The same for several hosts, by id."""
    if found:
        rows = [
            {
                "id": host_id,
                "driver": facts.driver,
                "storage": storage,
                "seen_at_ms": ctx.now_ms,
                **{name: getattr(facts, name) for name in _FACTS},
            }
            for host_id, (facts, storage) in sorted(found.items())
        ]
        await ctx.tx.many(_RECORD_FACTS, rows)


async def record_unreachable(ctx: Ctx, host_id: int, error: str) -> None:
    """Put down that a host does not answer, and why."""
    await ctx.tx.run(_RECORD_UNREACHABLE, id=host_id, error=error, now_ms=ctx.now_ms)


async def health(ctx: Ctx) -> list[HostHealthRow]:
    """How every host is that the operator has not said to be off."""
    return await ctx.tx.all(_HEALTH)


async def rooms(ctx: Ctx) -> list[Room]:
    """What placement knows of every host."""
    found = await ctx.tx.all(_ROOMS)
    pools: Counter[str] = Counter()
    for room in found:
        if room.shared_pool is not None:
            pools[room.shared_pool] += room.used_storage_gb
    return [_in_pool(room, pools[room.shared_pool]) if room.shared_pool else room for room in found] if pools else found


async def emptiest(ctx: Ctx, location: str) -> list[Room]:
    """The same of a few of the emptiest hosts that take servers of a location.

    Where none of these has room another may have: they are told by what is handed out of the scarcest resource.
    """
    found = await ctx.tx.all(_EMPTIEST, location=location)
    pools = sorted({room.shared_pool for room in found if room.shared_pool is not None})
    used = {pool: await ctx.tx.first(_USED_OF_POOL, shared_pool=pool) or 0 for pool in pools}
    return [_in_pool(room, used[room.shared_pool]) if room.shared_pool else room for room in found]


def _in_pool(room: Room, used_gb: int) -> Room:
    return msgspec.structs.replace(room, used_storage_gb=used_gb)


async def count_present(ctx: Ctx) -> int:
    """How many hosts there are."""
    return await ctx.tx.first(_COUNT_PRESENT) or 0


async def had_any(ctx: Ctx) -> bool:
    """Whether there is a host, or ever was one."""
    return (await ctx.tx.first(_COUNT) or 0) > 0


async def room(ctx: Ctx, host_id: int) -> Room:
    """What placement knows of a host."""
    found = await ctx.tx.first(_ROOM_OF, host_id=host_id)
    assert found is not None
    if found.shared_pool is None:
        return found
    return _in_pool(found, await ctx.tx.first(_USED_OF_POOL, shared_pool=found.shared_pool) or 0)


async def change_used(
    ctx: Ctx,
    host_id: int,
    more: Resources,
    less: Resources,
    *,
    servers: int,
    limits: Mapping[str, int | None] | None = None,
    shared_pool: str | None = None,
) -> bool:
    """Hand out more of a host and take back what is less; False, and nothing is changed, beyond a limit.

    Nor does a host get another server that was disabled, fenced or removed since it was looked at. Nobody else can hand
    out of the same host until the transaction ends. A resource of which no more is handed out than before is not held
    against its limit. What the hosts of a shared pool have of that is one sum: they wait for each other.
    """
    if shared_pool is not None and more.storage_gb > less.storage_gb:
        await ctx.tx.all(_LOCK_POOL, shared_pool=shared_pool)
    values: dict[str, int] = {"more_servers": servers}
    for name in RESOURCES:
        limit = None if limits is None else limits[name]
        values[f"more_{name}"] = getattr(more, name) - getattr(less, name)
        values[f"most_{name}"] = _NO_LIMIT if limit is None else limit
    return bool(await ctx.tx.run(_CHANGE_USED, host_id=host_id, **values))


def reserve_mb(host: Host | HostFacts, settings: Settings) -> int:
    """The space of a host's pool that is left for servers that run."""
    return storage_reserve_mb(settings.storage_reserve_mb, host.storage_gb)


def storage_low_text(free_mb: int, reserve_mb: int) -> str:
    """What the operator is told of a pool that has too little left."""
    return (
        f"{free_mb} MB are free in the pool, less than the {reserve_mb} MB that are left for servers that run: nothing "
        "begins that takes more (VPSD_STORAGE_RESERVE_MB)"
    )
