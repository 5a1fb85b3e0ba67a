"""Which base images in a place have to stay: what servers stand on, what new ones get, what is just being made."""

from collections.abc import Callable, Collection

import msgspec
from sqlalchemy import bindparam, or_, select

from vpsd.backups.models import backups
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.hosts.models import hosts
from vpsd.lifecycle import Command
from vpsd.operations.models import operations
from vpsd.servers.models import BootSource, servers

_s, _o, _b = servers.c, operations.c, backups.c


class _Use(msgspec.Struct, frozen=True):
    base: str | None
    previous_boot: str | None


class _Making(msgspec.Struct, frozen=True):
    os_id: int
    argument: int | None
    command: str


_is_open = _o.finished_at_ms.is_(None)
_at_place = select(hosts.c.id).where(
    or_(hosts.c.shared_pool == bindparam("shared_pool"), hosts.c.id == bindparam("host_id"))
)
# A server that is being moved needs its image at a host that its row does not name yet.
_USES = Statement(
    select(_s.base, _s.previous_boot).where(
        _s.purged_at_ms.is_(None),
        or_(_s.host_id.in_(_at_place), _s.id.in_(select(_o.server_id).where(_is_open))),
    ),
    into=_Use,
)
_MADE = Statement(
    select(_s.os_id, _o.argument, _o.command)
    .select_from(operations.join(servers, _s.id == _o.server_id))
    .where(_is_open, _s.host_id.in_(_at_place)),
    into=_Making,
)
_restored = select(_o.argument).where(_is_open, _o.command == Command.RESTORE)
_copied = select(_s.source_backup_id).where(_s.provisioned_at_ms.is_(None), _s.source_backup_id.is_not(None))
_BROUGHT_BACK = Statement(
    select(_b.base).where(_b.base.is_not(None), or_(_b.id.in_(_restored), _b.id.in_(_copied))), into=str
)


async def needed(
    ctx: Ctx,
    current: Callable[[OperatingSystem], str | None],
    keys: Collection[str],
    host_id: int,
    shared_pool: str | None,
) -> set[str]:
    """Those of the images at a host, or in the pool that it shares, that have to stay there.

    `current`: the key of the image that new servers with a system get, None where there is none here yet, to compare
    with: then all of its images stay. So do those of systems that something at the place is just made of: its operation
    may have found one of them there, and its row does not say so yet.
    """
    where = {"host_id": host_id, "shared_pool": shared_pool}
    found = set(await ctx.tx.all(_BROUGHT_BACK))
    for use in await ctx.tx.all(_USES, **where):
        found.add(use.base or "")
        if use.previous_boot is not None:
            found.add(msgspec.json.decode(use.previous_boot, type=BootSource).base or "")
    systems = {system.id: system for system in await catalog.list_operating_systems(ctx)}
    slugs = set()
    for making in await ctx.tx.all(_MADE, **where):
        made_of = {making.os_id, making.argument if making.command == Command.REBUILD else None}
        slugs |= {systems[os_id].slug for os_id in made_of if os_id in systems}
    for system in systems.values():
        key = current(system) if system.available else ""
        if key is None:
            slugs.add(system.slug)
        else:
            found.add(key)
    return {key for key in keys if key in found or key.rpartition("-")[0] in slugs}
