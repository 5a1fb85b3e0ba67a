"""The backups and snapshots sections: two words for one thing."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from litestar import Router

from vpsd.api.http.forms import Form, Query
from vpsd.api.http.routes import delete, get, post
from vpsd.api.vps_org.dry_run import preview
from vpsd.api.vps_org.schemas import backups as wire
from vpsd.backups import commands, queries
from vpsd.backups.commands import NewBackup
from vpsd.backups.models import Kind
from vpsd.backups.queries import BACKUPS, SNAPSHOTS
from vpsd.core.context import Ctx
from vpsd.errors import Busy, NotFound, PaymentRequired, Protected, Unavailable, WrongStatus

make = partial(post, needs="servers:*", raises=(WrongStatus, Busy, NotFound, Unavailable))
_read = partial(get, needs="servers:read")
_restore = partial(
    post,
    status_code=200,
    needs="servers:*",
    raises=(WrongStatus, Busy, PaymentRequired, Protected, Unavailable),
    preview=preview,
)


def _section(
    kinds: Sequence[Kind],
    summary: str,
    text: str,
    asked: Any,
    body: Any,
    view: Any,
    page: Any,
    made: Any,
    restored: Any,
) -> Router:
    """The routes of one of the two. The first of its kinds is what customers make; `summary` and `text` are of that."""
    noun = queries.noun(kinds)
    path = f"/{{{noun}_id:int}}/"

    @_read("/", f"{noun}_list", f"List all {noun}s", hints={"query": Query[asked], "return": page}, noun=noun)
    async def list_copies(ctx: Ctx, query: Query[wire.BackupQuery]) -> Any:
        """All {noun}s of all servers, deleted servers too, newest first."""
        query.validate()
        wanted = [Kind(query.get("backup_type"))] if query.has("backup_type") else kinds
        part = await queries.list_backups(ctx, wanted, query.page, query.get("server_id"))
        return page.of(query, part, [view.of(backup) for backup in part.rows])

    @make("/", f"{noun}_create", summary, hints={"form": Form[body], "return": made}, text=text)
    async def create(ctx: Ctx, form: Form[Any]) -> Any:
        return made.of_new(await commands.create(ctx, kinds[0], form.plain(NewBackup), form.faults))

    @_read(path, f"{noun}_get", f"Get a {noun}", hints={"return": view}, noun=noun)
    async def get_copy(ctx: Ctx, backup_id: int) -> Any:
        """One {noun}; its status tells when it is completed."""
        return view.of(await queries.get(ctx, kinds, backup_id))

    @_restore(f"{path}restore/", f"{noun}_restore", f"Restore a server from a {noun}", hints={"return": restored})
    async def restore(ctx: Ctx, backup_id: int) -> Any:
        """Put the server back to how it was: it is stopped for it and started again, id and address stay.

        All its present data is overwritten; a protected server is left alone.
        """
        return restored.of_backup(*await commands.restore(ctx, kinds, backup_id))

    @delete(path, f"{noun}_delete", f"Delete a {noun}", needs="servers:*", raises=(Busy,), noun=noun)
    async def remove(ctx: Ctx, backup_id: int) -> None:
        """Delete a {noun} for ever. The others of the server stay whole."""
        await commands.delete(ctx, kinds, backup_id)

    handlers = [list_copies, create, get_copy, restore, remove]
    return Router(f"/{noun}s", route_handlers=handlers, tags=[f"{noun.capitalize()}s"])


routers = (
    _section(
        BACKUPS,
        "Create a manual backup",
        "Back a server up while it runs. A manual backup does not expire.",
        *(wire.BackupQuery, wire.BackupCreate, wire.BackupView, wire.BackupList, wire.BackupCreated),
        wire.BackupRestore,
    ),
    _section(
        SNAPSHOTS,
        "Create a snapshot",
        "Make a point-in-time copy of a whole server while it runs. A server may have a few at a time.",
        *(wire.SnapshotQuery, wire.SnapshotCreate, wire.SnapshotView, wire.SnapshotList, wire.SnapshotCreated),
        wire.SnapshotRestore,
    ),
)
