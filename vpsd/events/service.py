"""Records and lists events. Who acts, with which token and from which address, is the context's actor."""

from sqlalchemy import bindparam, insert, select

from vpsd.core.context import SYSTEM, Ctx
from vpsd.core.db import Statement
from vpsd.core.pages import Page, PagedList, Part
from vpsd.events.models import Event, events

_LATEST_EVENTS = 50

_ADD = Statement(insert(events), [column.name for column in events.c if column.name != "id"])
_OWN = events.c.account_id == bindparam("account_id")
_LIST = PagedList(select(events).where(_OWN), events.c.id, into=Event, newest_first=True)
_NEWEST = Statement(select(events.c.at_ms).order_by(events.c.id.desc()).limit(1), into=int)
_LATEST = Statement(select(events).where(_OWN).order_by(events.c.id.desc()).limit(_LATEST_EVENTS), into=Event)


async def record(
    ctx: Ctx,
    action: str,
    target: str | None = None,
    target_id: int | None = None,
    detail: str | None = None,
    *,
    status_before: str | None = None,
    status_after: str | None = None,
) -> None:
    """Record what the actor does; `target` and `target_id` name what it is done to, like "server" and 12."""
    await ctx.tx.run(
        _ADD,
        account_id=ctx.account_id,
        at_ms=ctx.now_ms,
        actor=ctx.actor.kind,
        token_id=ctx.actor.token_id,
        address=ctx.actor.address,
        request_id=ctx.actor.request_id,
        action=action,
        target=target,
        target_id=target_id,
        detail=detail,
        status_before=status_before,
        status_after=status_after,
    )


async def list_events(ctx: Ctx, page: Page) -> Part[Event]:
    """How many events the account has, and a page of them, newest first."""
    return await _LIST.read(ctx, page)


async def newest_ms(ctx: Ctx) -> int | None:
    """When the latest event of all accounts was recorded."""
    return await ctx.tx.first(_NEWEST)


async def was_recorded(ctx: Ctx, action: str, target_id: int, within_ms: int) -> bool:
    """Whether vpsd has recorded this by itself just now, as far as the account's latest events tell."""
    return any(
        (event.actor, event.action, event.target_id) == (SYSTEM.kind, action, target_id)
        and abs(ctx.now_ms - event.at_ms) <= within_ms
        for event in await ctx.tx.all(_LATEST, account_id=ctx.account_id)
    )
