"""Servers, as the operator sees them: all accounts', with what customers no longer see."""

import typer

from vpsd.accounts import service as accounts
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, with_database
from vpsd.core.db import Database
from vpsd.core.ids import Ids
from vpsd.hypervisor.protocol import guest_name
from vpsd.servers import rows
from vpsd.servers.models import Server

app = typer.Typer(no_args_is_help=True, help="Servers of all accounts.")


@app.command("list")
def list_servers(json: Json = False) -> None:
    """List every server of which something is on the host, deleted ones whose clean-up goes on included.

    Example: `vpsd server list --json`. The guest is its name for libvirt; `vpsd check` says whether all is in order.
    """

    async def work(database: Database) -> tuple[str, list[Server]]:
        async with database.write() as tx:
            return await accounts.instance(tx, Ids()), await rows.present(tx)

    instance, found = with_database(work)
    shown = [
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
        print_json(shown)
    else:
        columns = ("id", "account_id", "name", "status", "ip_address", "guest", "error")
        print_rows(columns, [list(row.values()) for row in shown], "There are no servers.")
