"""Events of all accounts, as the operator keeps them."""

from typing import Annotated

import typer

from vpsd.cli.output import print_result
from vpsd.cli.run import Json, run_async, transactions
from vpsd.core.context import OPERATOR
from vpsd.events import retention

app = typer.Typer(no_args_is_help=True, help="Events: who did what in an account.")


@app.command("prune")
@run_async
async def prune(
    older_than_days: Annotated[int, typer.Argument(min=1, max=36525, help="Days that events are kept.")],
    json: Json = False,
) -> None:
    """Delete the events of all accounts that are older than that, for good. Example: `vpsd event prune 730`.

    Nothing else deletes events, unless VPSD_EVENTS_KEEP_DAYS is set: then vpsd does this by itself. An event in each
    account tells how many were deleted.
    """
    async with transactions() as opened:
        deleted = await retention.prune(opened, older_than_days, OPERATOR)
    print_result(json, {"deleted": deleted}, f"Deleted {deleted} events that were older than {older_than_days} days.")
