"""Servers of all accounts, as the operator sees them."""

import typer

from vpsd.accounts import service as accounts
from vpsd.cli.output import print_list
from vpsd.cli.run import Json, run_async, writing
from vpsd.hypervisor.protocol import guest_name
from vpsd.servers import queries

app = typer.Typer(no_args_is_help=True, help="Servers of all accounts.")


@app.command("list")
@run_async
async def list_servers(json: Json = False) -> None:
    """List all servers that use something on the host, including deleted ones that are still being cleaned up.

    Example: `vpsd server list --json`. The guest is its name in libvirt; `vpsd check` looks for inconsistencies.
    """
    async with writing() as ctx:
        instance, present = await accounts.instance(ctx), await queries.present(ctx)
    found = [
        {
            "id": server.id,
            "account_id": server.account_id,
            "name": server.name,
            "status": server.status,
            "status_detail": server.status_detail,
            "ip_address": server.ip_address,
            "guest": guest_name(instance, server.id),
            "error": server.error,
        }
        for server in present
    ]
    columns = ("id", "account_id", "name", "status", "ip_address", "guest", "error", "status_detail")
    print_list(json, found, columns, "There are no servers.")
