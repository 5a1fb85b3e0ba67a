"""Servers of all accounts, as the operator sees them."""

from typing import Annotated

import typer

from vpsd.accounts import service as accounts
from vpsd.cli.output import print_list
from vpsd.cli.run import Json, reading, run_async, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.hypervisor.protocol import guest_name
from vpsd.operations import service as operations
from vpsd.servers import queries

app = typer.Typer(no_args_is_help=True, help="Servers of all accounts.")


@app.command("operations")
@run_async
async def list_operations(
    server_id: Annotated[int, typer.Argument(help="Id, from `vpsd server list`.")], json: Json = False
) -> None:
    """List the latest operations of a server, newest first, with the full text of what went wrong.

    Customers are told less: paths, hosts and programs are the operator's. Example: `vpsd server operations 7`.
    """
    async with reading() as ctx:
        found = [
            {
                "id": one.id,
                "command": one.command,
                "status": one.status,
                "step": one.step,
                "attempts": one.attempts,
                "created": iso_utc(one.created_at_ms),
                "finished": iso_utc_or_none(one.finished_at_ms),
                "error": one.error,
                "cause": one.cause,
            }
            for one in await operations.latest(ctx, server_id)
        ]
    columns = ("id", "command", "status", "step", "attempts", "created", "finished", "cause")
    print_list(json, found, columns, f"The server {server_id} has had no operations.")


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
