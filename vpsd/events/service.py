"""Recording and reading events. Who, from which token and address, is the context's actor."""

from sqlalchemy import bindparam, func, insert, select

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.pages import Page
from vpsd.events.models import Event, events

_ADD = Statement(insert(events), [column.name for column in events.c if column.name != "id"])
_OWN = events.c.account_id == bindparam("account_id")
_COUNT = Statement(select(func.count()).select_from(events).where(_OWN), into=int)
_PAGE = Statement(
    select(events).where(_OWN).order_by(events.c.id.desc()).limit(bindparam("limit")).offset(bindparam("offset")),
    into=Event,
)


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
    """Note what the actor does; `target` and `target_id` say to what, like "server" and 12."""
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


async def list_events(ctx: Ctx, page: Page) -> tuple[int, list[Event]]:
    """How many events the account has, and a page of them, newest first."""
    count = await ctx.tx.first(_COUNT, account_id=ctx.account_id)
    return count or 0, await ctx.tx.all(_PAGE, account_id=ctx.account_id, limit=page.size, offset=page.offset)
