"""Who did what, when, from which token and address. Rows are added in the transaction of what they tell, and stay."""

from sqlalchemy import bindparam, func, insert, select

from vpsd.accounts.models import Actor, Event, events, tokens
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx
from vpsd.core.pages import Page

_ADD = Statement(
    insert(events),
    ("account_id", "at_ms", "actor", "token_id", "address", "request_id", "action", "target", "target_id", "detail"),
)
_OWN = events.c.account_id == bindparam("the_account")
_COUNT = Statement(select(func.count()).select_from(events).where(_OWN))
_PAGE = Statement(
    select(
        *(events.c.id, events.c.at_ms, events.c.actor, events.c.token_id, tokens.c.name, events.c.address),
        *(events.c.request_id, events.c.action, events.c.target, events.c.target_id, events.c.detail),
    )
    .select_from(events.outerjoin(tokens, tokens.c.id == events.c.token_id))
    .where(_OWN)
    .order_by(events.c.id.desc())
    .limit(bindparam("the_limit"))
    .offset(bindparam("the_offset"))
)


async def add(
    tx: Tx,
    clock: Clock,
    actor: Actor,
    action: str,
    target: str | None = None,
    target_id: int | None = None,
    detail: str | None = None,
) -> None:
    """Note what an actor does; `target` and `target_id` say to what, like "server" and 12."""
    await tx.run(
        _ADD,
        account_id=actor.account_id,
        at_ms=clock.now_ms(),
        actor=actor.kind,
        token_id=actor.token_id,
        address=actor.address,
        request_id=actor.request_id,
        action=action,
        target=target,
        target_id=target_id,
        detail=detail,
    )


async def list_events(tx: Tx, account_id: int, page: Page) -> tuple[int, list[Event]]:
    """How many events an account has, and a page of them, newest first."""
    count = await tx.first(int, _COUNT, the_account=account_id)
    return count or 0, await tx.all(Event, _PAGE, the_account=account_id, the_limit=page.size, the_offset=page.offset)
