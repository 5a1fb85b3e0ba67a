"""The operator's section, which no token of a customer opens: it reaches the servers of every account."""

from litestar import Router
from msgspec import UNSET

from vpsd.api.http.forms import Form
from vpsd.api.http.routes import get, post
from vpsd.api.vps_org import dry_run
from vpsd.api.vps_org.dry_run import DryRun
from vpsd.api.vps_org.schemas.operations import OperationView
from vpsd.api.vps_org.schemas.operator import ServerMigrate, ServerMigration
from vpsd.core.context import Ctx
from vpsd.errors import Busy, Unavailable, WrongStatus
from vpsd.operations import history
from vpsd.servers import moving, queries


async def _preview(ctx: Ctx, answer: ServerMigration) -> DryRun:
    """What would be answered, and where the server would be."""
    account = ctx.in_account(await queries.account_of(ctx, answer.server.id))
    return await dry_run.preview(account, answer, host=answer.to_host)


@post(
    "/servers/{server_id:int}/migrate/",
    "server_migrate",
    "Move a server to another host",
    needs="operator:*",
    status_code=200,
    raises=(WrongStatus, Busy, Unavailable),
    preview=_preview,
    body_required=False,
)
async def migrate(ctx: Ctx, server_id: int, form: Form[ServerMigrate]) -> ServerMigration:
    """Have a server of any account moved to another host: while it runs, where both hosts can do that.

    One that is off is moved as it is. Its owner sees it as it was, with a `status_detail`, and has to wait with
    commands. The body may be left out.
    """
    wanted = form.validate()
    host = None if (name := wanted.get("host", UNSET)) is UNSET else name
    return ServerMigration.of_move(
        await moving.migrate(ctx, server_id, host, form.faults, cold=wanted.get("cold", False))
    )


@get("/operations/{operation_id:int}/", "operation_get", "Get an operation", needs="operator:*")
async def get_operation(ctx: Ctx, operation_id: int) -> OperationView:
    """How far an operation of any account has come."""
    return OperationView.of(await history.get(ctx, operation_id))


router = Router("/operator", route_handlers=[migrate, get_operation], tags=["Operator"])
