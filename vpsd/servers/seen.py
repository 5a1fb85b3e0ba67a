"""As much of servers as whoever compares them with their guests has to know: read for all of a host, or for a few."""

import msgspec
from sqlalchemy import bindparam, select, union_all

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.operations.models import operations
from vpsd.servers.models import servers

BATCH = 500  # rows of one statement: whoever reads many hosts' servers lets others go on in between

_c, _o = servers.c, operations.c


class SeenServer(msgspec.Struct, frozen=True):
    """What a look at a server's row tells."""

    id: int
    uuid: str
    account_id: int
    status: str
    status_detail: str | None
    hostname: str
    seed_hostname: str | None
    user_data_status: str | None
    unthawed_backup_id: int | None
    updated_at_ms: int
    deleted_at_ms: int | None
    under_way: str | None  # the command of the operation that is open on it


class RecentOperation(msgspec.Struct, frozen=True):
    """An operation that is open, or was added lately."""

    id: int
    server_id: int
    finished_at_ms: int | None


_FIELDS = [field for field in SeenServer.__struct_fields__ if field != "under_way"]
_UNDER_WAY = (
    select(_o.command)
    .where(_o.server_id == _c.id, _o.finished_at_ms.is_(None), _o.waits_for.is_(None))
    .scalar_subquery()
    .label("under_way")
)
_ON_HOST = select(*(_c[field] for field in _FIELDS), _UNDER_WAY).where(
    _c.host_id == bindparam("host_id"), _c.purged_at_ms.is_(None)
)
_PAGE = Statement(
    _ON_HOST.where(_c.id > bindparam("after_id")).order_by(_c.id).limit(bindparam("limit")), into=SeenServer
)
_ONE = Statement(_ON_HOST.where(_c.id == bindparam("id")), into=SeenServer)
_HOST_OF = Statement(select(_c.host_id).where(_c.id == bindparam("id"), _c.host_id.is_not(None)), into=int)
_recent = select(_o.id, _o.server_id, _o.finished_at_ms)
_RECENT = Statement(  # two in one, each of which is answered from an index of its own
    union_all(
        _recent.where(_o.id > bindparam("after_id")),
        _recent.where(_o.finished_at_ms.is_(None)),
    ),
    into=RecentOperation,
)
_NEWEST = Statement(select(_o.id).order_by(_o.id.desc()).limit(1), into=int)


async def page(ctx: Ctx, host_id: int, after_id: int = 0) -> list[SeenServer]:
    """The next of the servers of which something may be on a host, by id: a `BATCH`, or fewer where they end."""
    return await ctx.tx.all(_PAGE, host_id=host_id, after_id=after_id, limit=BATCH)


async def one(ctx: Ctx, host_id: int, server_id: int) -> SeenServer | None:
    """A server of which something may be on a host; None where it is elsewhere, or gone."""
    return await ctx.tx.first(_ONE, host_id=host_id, id=server_id)


async def host_of(ctx: Ctx, server_id: int) -> int | None:
    """The host that a server is on."""
    return await ctx.tx.first(_HOST_OF, id=server_id)


async def recent_operations(ctx: Ctx, after_id: int) -> list[RecentOperation]:
    """The operations that are open, and all that were added after the one of that id: none while everything rests.

    One that is both is in it twice.
    """
    return await ctx.tx.all(_RECENT, after_id=after_id)


async def newest_operation(ctx: Ctx) -> int:
    """The id of the operation that was added last; 0 where there never was one."""
    return await ctx.tx.first(_NEWEST) or 0
