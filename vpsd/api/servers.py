"""The servers section."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, get, patch, post, put
from litestar.params import FromPath, JSONBody, Parameter

from vpsd.api.carrying import DryRun, DryRunQuery, Placement, Price, carry_out
from vpsd.api.cloud import CloudRequest, Listing, cloud_of, neighbours
from vpsd.billing import prices
from vpsd.billing import service as billing
from vpsd.core import money
from vpsd.core.db import Tx
from vpsd.core.forms import Form
from vpsd.core.pages import Page, PageQuery
from vpsd.errors import Busy, OverQuota, PaymentRequired, Protected, Unavailable, WrongStatus
from vpsd.hosts import service as hosts
from vpsd.servers import service
from vpsd.servers.lifecycle import Command
from vpsd.servers.schemas import (
    ActionAccepted,
    DeleteQuery,
    OperationView,
    Power,
    ServerCreate,
    ServerCreated,
    ServerDetail,
    ServerPatch,
    ServerPower,
    ServerQuery,
    ServerRebuild,
    ServerRebuilt,
    ServerResize,
    ServerSummary,
    ServerUpdate,
)


class ServerList(Listing):
    """A page of servers."""

    results: list[ServerSummary]


class OperationList(Listing):
    """A page of operations."""

    results: list[OperationView]


ServerId = FromPath[Annotated[int, Parameter(description="Id of the server")]]

_COMMAND = {"needs": "servers:*", "raises": (WrongStatus, Busy), "query": DryRunQuery}
_NEEDS_CREDIT = {**_COMMAND, "raises": (WrongStatus, Busy, PaymentRequired)}


@get("/", operation_id="server_list", summary="List all servers", opt={"needs": "servers:read", "query": ServerQuery})
async def list_servers(request: CloudRequest) -> ServerList:
    """All servers of the account, newest last."""
    asked = request.query_form()
    async with cloud_of(request).database.read() as tx:
        count, results = await service.list_servers(tx, request.user, asked)
    return ServerList(count, *neighbours(request, Page.of(asked), count), results)


@post(
    "/",
    operation_id="server_create",
    summary="Create a server",
    opt={
        "needs": "servers:*",
        "raises": (PaymentRequired, OverQuota, Unavailable),
        "query": DryRunQuery,
    },
)
async def create(request: CloudRequest, data: JSONBody[Form[ServerCreate]]) -> Response[ServerCreated]:
    """Deploy a server with the given configuration; it is `provisioning` until it answers."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> ServerCreated:
        return await service.create(tx, request.user, cloud.ids, cloud.clock, cloud.settings, data)

    async def preview(tx: Tx, created: ServerCreated) -> DryRun:
        answer = msgspec.to_builtins(created)
        return await shown(request, tx, created.id, {**answer, "id": None, "uuid": None, "password": None})

    return await carry_out(request, work, 201, preview)


async def shown(request: CloudRequest, tx: Tx, server_id: int, answer: dict[str, Any]) -> DryRun:
    """What a request to a server would come to, in rehearsal."""
    settings = cloud_of(request).settings
    server = await service.get(tx, request.user, cloud_of(request).clock, server_id)
    monthly = await billing.price_of(tx, cloud_of(request).clock, server_id)
    return DryRun(
        dry_run=True,
        answer=answer,
        price=Price(money.amount(monthly), money.amount(prices.price_hourly(monthly)), settings.currency),
        placement=Placement(server.location, (await hosts.room(tx, settings)).host),
    )


@get("/{server_id:int}/", operation_id="server_get", summary="Get a server", opt={"needs": "servers:read"})
async def detail(request: CloudRequest, server_id: ServerId) -> ServerDetail:
    """One server in full, with what it uses."""
    cloud = cloud_of(request)
    async with cloud.database.read() as tx:
        return await service.get(tx, request.user, cloud.clock, server_id)


_CHANGE = {"needs": "servers:*", "raises": (WrongStatus, Busy)}


@put("/{server_id:int}/", operation_id="server_update", summary="Update a server", opt=_CHANGE)
async def replace(request: CloudRequest, server_id: ServerId, data: JSONBody[Form[ServerUpdate]]) -> ServerDetail:
    """Change name, hostname, backups, tags and protection; a new hostname reaches the guest at its next boot."""
    return await _change(request, server_id, data)


@patch("/{server_id:int}/", operation_id="server_patch", summary="Update parts of a server", opt=_CHANGE)
async def change(request: CloudRequest, server_id: ServerId, data: JSONBody[Form[ServerPatch]]) -> ServerDetail:
    """Change only what is sent."""
    return await _change(request, server_id, data)


async def _change(request: CloudRequest, server_id: int, data: Form[ServerUpdate] | Form[ServerPatch]) -> ServerDetail:
    cloud = cloud_of(request)
    async with cloud.database.write() as tx:
        await service.change(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id, data)
        return await service.get(tx, request.user, cloud.clock, server_id)


@delete(
    "/{server_id:int}/",
    operation_id="server_delete",
    summary="Delete a server",
    opt={"needs": "servers:*", "raises": (Protected,), "query": DeleteQuery},
)
async def remove(request: CloudRequest, server_id: ServerId) -> None:
    """Delete a server, whatever its status. A protected one is left alone.

    It is gone for ever, unless the operator gives a time to undo it: then it is shut down, keeps disk and address,
    costs as before, and is gone at its `delete_at`.
    """
    cloud = cloud_of(request)
    asked: Form[DeleteQuery] = request.query_form()
    asked.done()
    at_once = asked.get("now", False)
    async with cloud.database.write() as tx:
        await service.delete(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id, at_once=at_once)


@post(
    "/{server_id:int}/undelete/",
    operation_id="server_undelete",
    summary="Undelete a server",
    status_code=200,
    opt=_NEEDS_CREDIT,
)
async def undelete(request: CloudRequest, server_id: ServerId) -> Response[ActionAccepted]:
    """Bring a deleted server back, until its `delete_at`: to what it was before, running or stopped."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> ActionAccepted:
        return await service.undelete(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id)

    return await _act(request, server_id, work)


@post(
    "/{server_id:int}/start/",
    operation_id="server_start",
    summary="Start a server",
    status_code=200,
    opt=_NEEDS_CREDIT,
)
async def start(request: CloudRequest, server_id: ServerId) -> Response[ActionAccepted]:
    """Power on a stopped server."""
    return await _tell(request, server_id, Command.START)


@post("/{server_id:int}/stop/", operation_id="server_stop", summary="Stop a server", status_code=200, opt=_COMMAND)
async def stop(request: CloudRequest, server_id: ServerId) -> Response[ActionAccepted]:
    """Shut a running server down gracefully; after a time limit its plug is pulled."""
    return await _tell(request, server_id, Command.STOP)


@post(
    "/{server_id:int}/reboot/",
    operation_id="server_reboot",
    summary="Reboot a server",
    status_code=200,
    opt=_NEEDS_CREDIT,
)
async def reboot(request: CloudRequest, server_id: ServerId) -> Response[ActionAccepted]:
    """Shut a running server down gracefully and power it on again."""
    return await _tell(request, server_id, Command.REBOOT)


async def _tell(request: CloudRequest, server_id: int, command: Command) -> Response[ActionAccepted]:
    cloud = cloud_of(request)

    async def work(tx: Tx) -> ActionAccepted:
        return await service.tell(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id, command)

    return await _act(request, server_id, work)


async def _act(request: CloudRequest, server_id: int, work: Callable[[Tx], Awaitable[ActionAccepted]]) -> Response[Any]:
    async def preview(tx: Tx, accepted: ActionAccepted) -> DryRun:
        answer = msgspec.to_builtins(accepted)
        return await shown(request, tx, server_id, answer | ({"password": None} if "password" in answer else {}))

    return await carry_out(request, work, 200, preview)


_POWER = {Power.START: Command.START, Power.STOP: Command.STOP, Power.RESTART: Command.REBOOT}
_POWER |= {Power.HARD_STOP: Command.HARD_STOP}


@post(
    "/{server_id:int}/power/",
    operation_id="server_power",
    summary="Start, stop, restart or power off a server",
    status_code=200,
    opt=_NEEDS_CREDIT,
)
async def power(
    request: CloudRequest, server_id: ServerId, data: JSONBody[Form[ServerPower]]
) -> Response[ActionAccepted]:
    """The power actions in one place, as the official client asks for them; `hard_stop` pulls the plug at once."""
    data.done()
    return await _tell(request, server_id, _POWER[data.get("action")])


@post(
    "/{server_id:int}/resize/",
    operation_id="server_resize",
    summary="Resize a server",
    status_code=200,
    opt={**_COMMAND, "raises": (WrongStatus, Busy, PaymentRequired, OverQuota, Unavailable)},
)
async def resize(
    request: CloudRequest, server_id: ServerId, data: JSONBody[Form[ServerResize]]
) -> Response[ActionAccepted]:
    """Give a server another plan. A disk never shrinks.

    One that runs reboots once, unless only its disk grows; the answer says which it is.
    """
    cloud = cloud_of(request)

    async def work(tx: Tx) -> ActionAccepted:
        return await service.resize(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id, data)

    return await _act(request, server_id, work)


@post(
    "/{server_id:int}/rebuild/",
    operation_id="server_rebuild",
    summary="Rebuild a server",
    status_code=200,
    opt=_NEEDS_CREDIT,
)
async def rebuild(
    request: CloudRequest, server_id: ServerId, data: JSONBody[Form[ServerRebuild]]
) -> Response[ServerRebuilt]:
    """Make a server anew: a new disk, the same id, address, plan and name. Everything on the old disk is lost."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> ServerRebuilt:
        return await service.rebuild(tx, request.user, cloud.ids, cloud.clock, cloud.settings, server_id, data)

    return await _act(request, server_id, work)


@get(
    "/{server_id:int}/operations/",
    operation_id="server_operations",
    summary="List a server's operations",
    opt={"needs": "servers:read", "query": PageQuery},
)
async def operations(request: CloudRequest, server_id: ServerId) -> OperationList:
    """What was done with the server and how far what is being done has come, oldest first."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        count, found = await service.history(tx, request.user, server_id, wanted)
    return OperationList(
        count, *neighbours(request, wanted, count), [OperationView.of(operation) for operation in found]
    )


router = Router(
    "/servers",
    route_handlers=[
        list_servers,
        create,
        detail,
        replace,
        change,
        remove,
        undelete,
        start,
        stop,
        reboot,
        power,
        resize,
        rebuild,
    ]
    + [operations],
    tags=["Servers"],
)
