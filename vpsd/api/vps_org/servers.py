"""The servers section."""

from functools import partial

from litestar import Response, Router
from msgspec import UNSET

from vpsd.api.http.forms import Form, PageQuery, Query
from vpsd.api.http.routes import delete, get, patch, post, put
from vpsd.api.vps_org.dry_run import preview
from vpsd.api.vps_org.schemas import backups as backup_wire
from vpsd.api.vps_org.schemas import server_forms as forms
from vpsd.api.vps_org.schemas import servers as wire
from vpsd.api.vps_org.schemas.operations import OperationList, OperationView
from vpsd.backups import commands as backups
from vpsd.backups.commands import NewBackup
from vpsd.backups.models import Kind
from vpsd.backups.queries import choose_source
from vpsd.core.context import Actor, Ctx, Transactions
from vpsd.errors import Busy, OverQuota, PaymentRequired, Protected, Unavailable, WrongStatus
from vpsd.lifecycle import Command
from vpsd.servers import commands, creation, deletion, listing, queries
from vpsd.servers.commands import ServerChanges
from vpsd.servers.creation import NewServer
from vpsd.servers.listing import ServerFilter

OPERATION_HEADER = "X-Operation-ID"

_POWER = {forms.Power.START: Command.START, forms.Power.STOP: Command.STOP, forms.Power.RESTART: Command.REBOOT}
_POWER |= {forms.Power.HARD_STOP: Command.HARD_STOP}

_REFUSED = (WrongStatus, Busy)
_action = partial(post, status_code=200, needs="servers:*", raises=_REFUSED, preview=preview)
_paid_action = partial(_action, raises=(*_REFUSED, PaymentRequired))  # what makes a server run needs credit
_copy = partial(post, needs="servers:*", raises=(*_REFUSED, Unavailable), body_required=False)


async def _check_user_data(transactions: Transactions, actor: Actor, form: Form[forms.ServerCreate]) -> None:
    await creation.check_user_data(transactions, actor, form.plain(NewServer), form.faults)


@get("/", "server_list", "List all servers", needs="servers:read")
async def list_servers(ctx: Ctx, query: Query[forms.ServerQuery]) -> wire.ServerList:
    """All servers of the account, newest last unless `sort` says otherwise."""
    sort = query.get("sort", "id")
    part = await listing.list_servers(ctx, query.plain(ServerFilter), sort, query.page, query.faults)
    return wire.ServerList.of(query, part, [wire.ServerSummary.of(server) for server in part.rows])


@post(
    "/",
    "server_create",
    "Create a server",
    needs="servers:*",
    raises=(PaymentRequired, OverQuota, Unavailable),
    preview=preview,
    before=_check_user_data,
)
async def create(ctx: Ctx, form: Form[forms.ServerCreate]) -> wire.ServerCreated:
    """Deploy a server with the given configuration; it is `provisioning` until it answers."""
    os_id, backup_id, snapshot_id = (form.get(name, UNSET) for name in ("os_id", "backup_id", "snapshot_id"))
    source = await choose_source(ctx, os_id, backup_id, snapshot_id, form.faults)
    return wire.ServerCreated.of(await creation.create(ctx, form.plain(NewServer), source, form.faults))


@get("/{server_id:int}/", "server_get", "Get a server", needs="servers:read")
async def get_server(ctx: Ctx, server_id: int) -> wire.ServerDetail:
    """One server in full, with what it uses."""
    return wire.ServerDetail.of(await queries.get(ctx, server_id))


@put("/{server_id:int}/", "server_update", "Update a server", needs="servers:*", raises=_REFUSED)
async def replace(ctx: Ctx, server_id: int, form: Form[forms.ServerUpdate]) -> wire.ServerDetail:
    """Change name, hostname, backups, tags and protection; a new hostname reaches the guest at its next boot."""
    await commands.change(ctx, server_id, form.plain(ServerChanges), form.faults)
    return wire.ServerDetail.of(await queries.get(ctx, server_id))


@patch("/{server_id:int}/", "server_patch", "Update parts of a server", needs="servers:*", raises=_REFUSED)
async def change(ctx: Ctx, server_id: int, form: Form[forms.ServerPatch]) -> wire.ServerDetail:
    """Change only what is sent."""
    await commands.change(ctx, server_id, form.plain(ServerChanges), form.faults)
    return wire.ServerDetail.of(await queries.get(ctx, server_id))


@delete(
    "/{server_id:int}/",
    "server_delete",
    "Delete a server",
    needs="servers:*",
    raises=(Protected,),
    headers={OPERATION_HEADER: "Id of the operation that does it; missing where there is nothing to do on the host"},
)
async def remove(ctx: Ctx, server_id: int, query: Query[forms.DeleteQuery]) -> Response[None]:
    """Delete a server, whatever its status. A protected one is left alone.

    It is gone for ever, unless the operator gives a time to undo it: then it is shut down, keeps disk and address,
    costs as before, and is gone at its `delete_at`.
    """
    operation = await deletion.delete(ctx, server_id, at_once=query.validate().get("now", False))
    return Response(None, headers={} if operation is None else {OPERATION_HEADER: str(operation.id)})


@_paid_action("/{server_id:int}/undelete/", "server_undelete", "Undelete a server")
async def undelete(ctx: Ctx, server_id: int) -> wire.ActionAccepted:
    """Bring a deleted server back, until its `delete_at`: to what it was before, running or stopped."""
    return wire.ActionAccepted.of(await deletion.undelete(ctx, server_id))


@_paid_action("/{server_id:int}/start/", "server_start", "Start a server")
async def start(ctx: Ctx, server_id: int) -> wire.ActionAccepted:
    """Power on a stopped server."""
    return wire.ActionAccepted.of(await commands.run_command(ctx, server_id, Command.START))


@_copy("/{server_id:int}/backup/", "backup_of_server", "Back a server up")
async def back_up(ctx: Ctx, server_id: int, form: Form[backup_wire.CopyLabel]) -> backup_wire.BackupCreated:
    """A manual backup, as the official client asks for it; the body may be left out."""
    new = NewBackup(server_id, description=form.get("label"))
    return backup_wire.BackupCreated.of_new(await backups.create(ctx, Kind.MANUAL, new, form.faults))


@_action("/{server_id:int}/stop/", "server_stop", "Stop a server")
async def stop(ctx: Ctx, server_id: int) -> wire.ActionAccepted:
    """Shut a running server down gracefully; after a time limit its plug is pulled."""
    return wire.ActionAccepted.of(await commands.run_command(ctx, server_id, Command.STOP))


@_paid_action("/{server_id:int}/reboot/", "server_reboot", "Reboot a server")
async def reboot(ctx: Ctx, server_id: int) -> wire.ActionAccepted:
    """Shut a running server down gracefully and power it on again."""
    return wire.ActionAccepted.of(await commands.run_command(ctx, server_id, Command.REBOOT))


@_copy("/{server_id:int}/snapshot/", "snapshot_of_server", "Snapshot a server")
async def take_snapshot(ctx: Ctx, server_id: int, form: Form[backup_wire.CopyLabel]) -> backup_wire.SnapshotCreated:
    """A snapshot, as the official client asks for it: its name is made of the label; the body may be left out."""
    new = NewBackup(server_id, description=form.get("label"))
    return backup_wire.SnapshotCreated.of_new(await backups.create(ctx, Kind.SNAPSHOT, new, form.faults))


@_paid_action("/{server_id:int}/power/", "server_power", "Start, stop, restart or power off a server")
async def power(ctx: Ctx, server_id: int, form: Form[forms.ServerPower]) -> wire.ActionAccepted:
    """The power actions in one place, as the official client asks for them; `hard_stop` pulls the plug at once."""
    command = _POWER[form.validate().get("action")]
    return wire.ActionAccepted.of(await commands.run_command(ctx, server_id, command))


@_paid_action(
    "/{server_id:int}/resize/",
    "server_resize",
    "Resize a server",
    raises=(*_REFUSED, PaymentRequired, OverQuota, Unavailable),
)
async def resize(ctx: Ctx, server_id: int, form: Form[forms.ServerResize]) -> wire.ActionAccepted:
    """Give a server another plan. A disk never shrinks.

    One that runs reboots once, unless only its disk grows; the answer says which it is.
    """
    wanted = form.get("plan_id", UNSET), form.get("plan", UNSET)
    return wire.ActionAccepted.of(await commands.resize(ctx, server_id, *wanted, form.faults))


@_paid_action(
    "/{server_id:int}/rebuild/",
    "server_rebuild",
    "Rebuild a server",
    raises=(*_REFUSED, PaymentRequired, Protected),
)
async def rebuild(ctx: Ctx, server_id: int, form: Form[forms.ServerRebuild]) -> wire.ServerRebuilt:
    """Make a server anew: a new disk, the same id, address, plan and name. Everything on the old disk is lost.

    A protected server is left alone.
    """
    accepted = await commands.rebuild(ctx, server_id, form.get("os_id", UNSET), form.faults)
    return wire.ServerRebuilt.of(accepted, password=accepted.password or UNSET)


@get("/{server_id:int}/operations/", "server_operations", "List a server's operations", needs="servers:read")
async def operations(ctx: Ctx, server_id: int, query: Query[PageQuery]) -> OperationList:
    """What was done with the server and how far what is being done has come, oldest first."""
    part = await queries.history(ctx, server_id, query.validate().page)
    return OperationList.of(query, part, [OperationView.of(operation) for operation in part.rows])


router = Router(
    "/servers",
    route_handlers=[
        *(list_servers, create, get_server, replace, change, remove, undelete, start, back_up, stop, reboot),
        *(take_snapshot, power, resize, rebuild, operations),
    ],
    tags=["Servers"],
)
