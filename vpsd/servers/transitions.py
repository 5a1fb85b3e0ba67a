"""The one place that writes a server's status, and with it the event that tells of the change."""

import msgspec
from sqlalchemy import bindparam, update

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.events import service as events
from vpsd.lifecycle import FOUND, Command, Status, may_begin, may_end
from vpsd.servers.models import LockedServer, servers

STATUS_EVENT = "server.status"  # of a change that no request caused
_SET_STATUS = Statement(
    update(servers).where(servers.c.id == bindparam("id")), ("status", "error", "status_detail", "updated_at_ms")
)


class Cause(msgspec.Struct, frozen=True):
    """Why a status changes: a command that is given or has ended, or (no command) what was found on the host.

    A request has one event of its own, which carries the change: `event`. Without one the change is a `server.status`.
    """

    command: Command | None = None
    has_ended: bool = False
    event: str = STATUS_EVENT
    detail: str | None = None

    def allows(self, before: Status, to: Status) -> bool:
        """Whether the table has this change."""
        if self.command is None:
            return to in FOUND.get(before, ())
        return (may_end if self.has_ended else may_begin)(self.command, before, to)


def given(command: Command, *, event: str = STATUS_EVENT, detail: str | None = None) -> Cause:
    """A command was given."""
    return Cause(command, event=event, detail=detail)


def ended(command: Command, detail: str | None = None) -> Cause:
    """The operation of a command has come to its end."""
    return Cause(command, has_ended=True, detail=f"{command}: {detail or 'done'}")


def found(detail: str) -> Cause:
    """vpsd found the server like this."""
    return Cause(detail=detail)


async def transition(ctx: Ctx, server: LockedServer, to: Status, cause: Cause, *, error: str | None = None) -> None:
    """Give a server another status; `error` is why, where it is to rest in `error`.

    `status_detail` is forgotten, but for what the steps of a command that ends well have just written.

    Raises ValueError for a change that the table does not have: that is a mistake of vpsd's own.
    """
    before = Status(server.status)
    if not cause.allows(before, to):
        raise ValueError(f"server {server.id}: {cause} does not lead from {before} to {to}")
    told = server.status_detail if cause.has_ended and error is None else None
    values = {"status": to, "error": error, "status_detail": told, "updated_at_ms": ctx.now_ms}
    await ctx.tx.run(_SET_STATUS, id=server.id, **values)
    if to is not before:
        changed = {"status_before": before, "status_after": to}
    elif cause.event == STATUS_EVENT:
        return  # there is nothing to tell
    else:
        changed = {}
    ctx = ctx.in_account(server.account_id)
    await events.record(ctx, cause.event, "server", server.id, cause.detail, **changed)
