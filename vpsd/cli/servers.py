"""Servers of all accounts, as the operator sees them."""

from typing import Annotated

import typer

from vpsd.accounts import service as accounts
from vpsd.cli.output import print_list, print_result
from vpsd.cli.run import Json, reading, run_async, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.faults import Faults
from vpsd.hypervisor.protocol import guest_name
from vpsd.operations import history
from vpsd.servers import moving, queries

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
            for one in await history.latest(ctx, server_id)
        ]
    columns = ("id", "command", "status", "step", "attempts", "created", "finished", "cause")
    print_list(json, found, columns, f"The server {server_id} has had no operations.")


@app.command()
@run_async
async def migrate(
    server_id: Annotated[int, typer.Argument(help="Id, from `vpsd server list`.")],
    host: Annotated[str | None, typer.Option(help="The host that it goes to; by default one is chosen.")] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Where it cannot move while it runs, stop it, move it, and start it again.")
    ] = False,
    json: Json = False,
) -> None:
    """Have a server moved to another host, while it runs if both hosts can do that; one that is off, as it is.

    A worker does it: `vpsd server operations ID` shows how it ended. Example: `vpsd server migrate 7 --host node2`.
    """
    async with writing() as ctx:
        move = await moving.migrate(ctx, server_id, host, Faults(), cold=cold)
    operation = move.accepted.operation
    assert operation is not None
    said = {"id": server_id, "from_host": move.from_host, "to_host": move.to_host, "operation": operation.id}
    print_result(
        json,
        said,
        f"Server {server_id} is being moved from {move.from_host} to {move.to_host}. "
        f"`vpsd server operations {server_id}` shows how far it is.",
    )


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
