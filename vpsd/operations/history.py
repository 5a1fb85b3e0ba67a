"""Operations of the past and of now, read."""

from sqlalchemy import bindparam, func, select

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.pages import Page, PagedList, Part
from vpsd.errors import NotFound
from vpsd.lifecycle import Command
from vpsd.operations.models import Operation, operations

_LATEST_SHOWN = 50

_c = operations.c
_OF_SERVER = _c.server_id == bindparam("server_id")
_HISTORY = PagedList(select(operations).where(_OF_SERVER), _c.id, into=Operation)
_LATEST = Statement(select(operations).where(_OF_SERVER).order_by(_c.id.desc()).limit(_LATEST_SHOWN), into=Operation)
_LAST = Statement(select(operations).where(_OF_SERVER).order_by(_c.id.desc()).limit(1), into=Operation)
_FIND = Statement(select(operations).where(_c.id == bindparam("operation_id")), into=Operation)
_SINCE = Statement(
    select(func.count())
    .select_from(operations)
    .where(
        *(_OF_SERVER, _c.command == bindparam("command"), _c.argument.is_(None)),
        _c.created_at_ms.between(bindparam("since_ms"), bindparam("now_ms")),
    ),
    into=int,
)


async def get(ctx: Ctx, operation_id: int) -> Operation:
    """For the operator: an operation of any account; raises `NotFound`."""
    found = await ctx.tx.first(_FIND, operation_id=operation_id)
    if found is None:
        raise NotFound("operation", operation_id)
    return found


async def history(ctx: Ctx, server_id: int, page: Page) -> Part[Operation]:
    """How many operations a server had, and a page of them, oldest first."""
    return await _HISTORY.read(ctx, page, server_id=server_id)


async def latest(ctx: Ctx, server_id: int) -> list[Operation]:
    """For the operator: the latest operations of a server of any account, newest first."""
    return await ctx.tx.all(_LATEST, server_id=server_id)


async def count_since(ctx: Ctx, server_id: int, command: Command, since_ms: int) -> int:
    """How often a server was told a command without an argument since a time."""
    times = {"since_ms": since_ms, "now_ms": ctx.now_ms}
    return await ctx.tx.first(_SINCE, server_id=server_id, command=command, **times) or 0


async def last(ctx: Ctx, server_id: int) -> Operation | None:
    """What a server was told last."""
    return await ctx.tx.first(_LAST, server_id=server_id)
