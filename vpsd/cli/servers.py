"""Servers, as the operator sees them: all accounts', with what customers no longer see."""

import typer

from vpsd.accounts import service as accounts
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, writing
from vpsd.core.context import Ctx
from vpsd.hypervisor.protocol import guest_name
from vpsd.servers import queries
from vpsd.servers.models import Server

app = typer.Typer(no_args_is_help=True, help="Servers of all accounts.")


@app.command("list")
def list_servers(json: Json = False) -> None:
    """List every server of which something is on the host, deleted ones whose clean-up goes on included.

    Example: `vpsd server list --json`. The guest is its name for libvirt; `vpsd check` says whether all is in order.
    """

    async def work(ctx: Ctx) -> tuple[str, list[Server]]:
        return await accounts.instance(ctx), await queries.present(ctx)

    instance, found = writing(work)
    listed = [
        {
            "id": server.id,
            "account_id": server.account_id,
            "name": server.name,
            "status": server.status,
            "ip_address": server.ip_address,
            "guest": guest_name(instance, server.id),
            "error": server.error,
        }
        for server in found
    ]
    if json:
        print_json(listed)
    else:
        columns = ("id", "account_id", "name", "status", "ip_address", "guest", "error")
        print_rows(columns, [list(row.values()) for row in listed], "There are no servers.")
