"""The servers section."""

from functools import partial

from litestar import Response, Router
from msgspec import UNSET

from vpsd.api.http.forms import Form, PageQuery, Query
from vpsd.api.http.routes import delete, get, patch, post, put
from vpsd.api.vps_org.dry_run import preview
from vpsd.api.vps_org.schemas.operations import OperationList, OperationView
from vpsd.api.vps_org.schemas.server_forms import (
    DeleteQuery,
    Power,
    ServerCreate,
    ServerPatch,
    ServerPower,
    ServerQuery,
    ServerRebuild,
    ServerResize,
    ServerUpdate,
)
from vpsd.api.vps_org.schemas.servers import (
    ActionAccepted,
    ServerCreated,
    ServerDetail,
    ServerId,
    ServerList,
    ServerRebuilt,
    ServerSummary,
)
from vpsd.backups.queries import BACKUPS, SNAPSHOTS, lock_source
from vpsd.core.context import Ctx
from vpsd.errors import Busy, OverQuota, PaymentRequired, Protected, Unavailable, WrongStatus
from vpsd.lifecycle import Command
from vpsd.servers import commands, creation, deletion, queries
from vpsd.servers.commands import ServerChanges
from vpsd.servers.creation import BackupSource, NewServer
from vpsd.servers.queries import ServerFilter

OPERATION_HEADER = "X-Operation-ID"

_SOURCES = {"os_id": None, "backup_id": BACKUPS, "snapshot_id": SNAPSHOTS}
_POWER = {Power.START: Command.START, Power.STOP: Command.STOP, Power.RESTART: Command.REBOOT}
_POWER |= {Power.HARD_STOP: Command.HARD_STOP}

_REFUSED = (WrongStatus, Busy)
_action = partial(post, status_code=200, needs="servers:*", raises=_REFUSED, preview=preview)
_paid_action = partial(_action, raises=(*_REFUSED, PaymentRequired))  # what makes a server run needs credit


@get("/", "server_list", "List all servers", needs="servers:read")
async def list_servers(ctx: Ctx, query: Query[ServerQuery]) -> ServerList:
    """All servers of the account, newest last."""
    count, found = await queries.list_servers(ctx, query.plain(ServerFilter), query.page, query.faults)
    return ServerList.of(query, count, [ServerSummary.of(server) for server in found])


@post(
    "/",
    "server_create",
    "Create a server",
    needs="servers:*",
    raises=(PaymentRequired, OverQuota, Unavailable),
    preview=preview,
)
async def create(ctx: Ctx, form: Form[ServerCreate]) -> ServerCreated:
    """Deploy a server with the given configuration; it is `provisioning` until it answers."""
    source = await _lock_source(ctx, form)
    return ServerCreated.of(await creation.create(ctx, form.plain(NewServer), source, form.faults))


async def _lock_source(ctx: Ctx, form: Form[ServerCreate]) -> BackupSource | None:
    """The backup or snapshot that the server begins with, where that is not an operating system."""
    given = [name for name in _SOURCES if form.has(name)]
    if len(given) > 1 and not form.faults.has(*_SOURCES):
        form.add_error("os_id", f"Give one of {', '.join(_SOURCES)}.")
    kinds = _SOURCES[given[0]] if len(given) == 1 else None
    return kinds and await lock_source(ctx, kinds, form.get(given[0]), given[0], form.faults)


@get("/{server_id:int}/", "server_get", "Get a server", needs="servers:read")
async def get_server(ctx: Ctx, server_id: ServerId) -> ServerDetail:
    """One server in full, with what it uses."""
    return ServerDetail.of(await queries.get(ctx, server_id))


@put("/{server_id:int}/", "server_update", "Update a server", needs="servers:*", raises=_REFUSED)
async def replace(ctx: Ctx, server_id: ServerId, form: Form[ServerUpdate]) -> ServerDetail:
    """Change name, hostname, backups, tags and protection; a new hostname reaches the guest at its next boot."""
    await commands.change(ctx, server_id, form.plain(ServerChanges), form.faults)
    return ServerDetail.of(await queries.get(ctx, server_id))


@patch("/{server_id:int}/", "server_patch", "Update parts of a server", needs="servers:*", raises=_REFUSED)
async def change(ctx: Ctx, server_id: ServerId, form: Form[ServerPatch]) -> ServerDetail:
    """Change only what is sent."""
    await commands.change(ctx, server_id, form.plain(ServerChanges), form.faults)
    return ServerDetail.of(await queries.get(ctx, server_id))


@delete(
    "/{server_id:int}/",
    "server_delete",
    "Delete a server",
    needs="servers:*",
    raises=(Protected,),
    headers={OPERATION_HEADER: "Id of the operation that does it; missing where there is nothing to do on the host"},
)
async def remove(ctx: Ctx, server_id: ServerId, query: Query[DeleteQuery]) -> Response[None]:
    """Delete a server, whatever its status. A protected one is left alone.

    It is gone for ever, unless the operator gives a time to undo it: then it is shut down, keeps disk and address,
    costs as before, and is gone at its `delete_at`.
    """
    operation = await deletion.delete(ctx, server_id, at_once=query.validate().get("now", False))
    return Response(None, headers={} if operation is None else {OPERATION_HEADER: str(operation.id)})


@_paid_action("/{server_id:int}/undelete/", "server_undelete", "Undelete a server")
async def undelete(ctx: Ctx, server_id: ServerId) -> ActionAccepted:
    """Bring a deleted server back, until its `delete_at`: to what it was before, running or stopped."""
    return ActionAccepted.of(await deletion.undelete(ctx, server_id))


@_paid_action("/{server_id:int}/start/", "server_start", "Start a server")
async def start(ctx: Ctx, server_id: ServerId) -> ActionAccepted:
    """Power on a stopped server."""
    return ActionAccepted.of(await commands.run_command(ctx, server_id, Command.START))


@_action("/{server_id:int}/stop/", "server_stop", "Stop a server")
async def stop(ctx: Ctx, server_id: ServerId) -> ActionAccepted:
    """Shut a running server down gracefully; after a time limit its plug is pulled."""
    return ActionAccepted.of(await commands.run_command(ctx, server_id, Command.STOP))


@_paid_action("/{server_id:int}/reboot/", "server_reboot", "Reboot a server")
async def reboot(ctx: Ctx, server_id: ServerId) -> ActionAccepted:
    """Shut a running server down gracefully and power it on again."""
    return ActionAccepted.of(await commands.run_command(ctx, server_id, Command.REBOOT))


@_paid_action("/{server_id:int}/power/", "server_power", "Start, stop, restart or power off a server")
async def power(ctx: Ctx, server_id: ServerId, form: Form[ServerPower]) -> ActionAccepted:
    """The power actions in one place, as the official client asks for them; `hard_stop` pulls the plug at once."""
    command = _POWER[form.validate().get("action")]
    return ActionAccepted.of(await commands.run_command(ctx, server_id, command))


@_paid_action(
    "/{server_id:int}/resize/",
    "server_resize",
    "Resize a server",
    raises=(*_REFUSED, PaymentRequired, OverQuota, Unavailable),
)
async def resize(ctx: Ctx, server_id: ServerId, form: Form[ServerResize]) -> ActionAccepted:
    """Give a server another plan. A disk never shrinks.

    One that runs reboots once, unless only its disk grows; the answer says which it is.
    """
    wanted = form.get("plan_id", UNSET), form.get("plan", UNSET)
    return ActionAccepted.of(await commands.resize(ctx, server_id, *wanted, form.faults))


@_paid_action("/{server_id:int}/rebuild/", "server_rebuild", "Rebuild a server")
async def rebuild(ctx: Ctx, server_id: ServerId, form: Form[ServerRebuild]) -> ServerRebuilt:
    """Make a server anew: a new disk, the same id, address, plan and name. Everything on the old disk is lost."""
    accepted = await commands.rebuild(ctx, server_id, form.get("os_id", UNSET), form.faults)
    return ServerRebuilt.of(accepted, password=accepted.password or UNSET)


@get("/{server_id:int}/operations/", "server_operations", "List a server's operations", needs="servers:read")
async def operations(ctx: Ctx, server_id: ServerId, query: Query[PageQuery]) -> OperationList:
    """What was done with the server and how far what is being done has come, oldest first."""
    count, found = await queries.history(ctx, server_id, query.validate().page)
    return OperationList.of(query, count, [OperationView.of(operation) for operation in found])


router = Router(
    "/servers",
    route_handlers=[
        *(list_servers, create, get_server, replace, change, remove, undelete, start, stop, reboot, power, resize),
        *(rebuild, operations),
    ],
    tags=["Servers"],
)
