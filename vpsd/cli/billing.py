"""Credit and billing."""

from typing import Annotated, Any

import typer

from vpsd.billing import credit, ledger
from vpsd.billing.verify import verify
from vpsd.cli.accounts import AccountName, parse_amount
from vpsd.cli.output import print_json, print_list, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, transactions, writing
from vpsd.core import money
from vpsd.core.clock import iso_utc
from vpsd.core.context import OPERATOR
from vpsd.core.pages import LARGEST_SIZE, Page
from vpsd.servers import queries as servers
from vpsd.worker.metering import charge_due

credit_app = typer.Typer(no_args_is_help=True, help="Credit: what accounts have, and where it came from.")
billing_app = typer.Typer(no_args_is_help=True, help="Billing: charging and checking.")


@credit_app.command("add", context_settings={"ignore_unknown_options": True})  # so that -5 is an amount
@run_async
async def add_credit(
    account: AccountName,
    amount: Annotated[str, typer.Argument(help="Credits, such as 50 or 12.50; a negative amount takes them back.")],
    note: Annotated[str, typer.Option(help="What the customer reads next to it.")] = "credit",
    reference: Annotated[
        str | None, typer.Option(help="Your invoice or payment; the same one is never booked twice.")
    ] = None,
    json: Json = False,
) -> None:
    """Give an account credit. Servers that were suspended for lack of it resume by themselves.

    Example: `vpsd credit add acme 50 --note "paid by card" --reference INV-17`. `vpsd credit list acme` shows the
    ledger.
    """
    micros = parse_amount("amount", amount)
    async with writing(account) as ctx:
        balance = money.decimal(await credit.add_credit(ctx, micros, note, reference))
    added = money.decimal(micros)
    fields = {"account": account, "added": added, "balance": balance}
    print_result(json, fields, f"Booked {added}; the balance of {account} is {balance}.")


@credit_app.command("list")
@run_async
async def list_credit(
    account: AccountName,
    page: Annotated[int, typer.Option(min=1, help=f"Which page, of {LARGEST_SIZE} rows each.")] = 1,
    json: Json = False,
) -> None:
    """Show an account's ledger, newest first; the balance is its sum. Example: `vpsd credit list acme --json`."""
    async with reading(account) as ctx:
        entries = (await ledger.entries(ctx, Page(page, LARGEST_SIZE))).rows
    found: list[dict[str, Any]] = [
        {
            "id": entry.id,
            "at": iso_utc(entry.created_at_ms),
            "kind": entry.kind,
            "amount": money.decimal(entry.amount_micros),
            "balance": money.decimal(entry.balance_micros),
            "description": entry.description,
            "reference": entry.reference,
        }
        for entry in entries
    ]
    columns = ("id", "at", "kind", "amount", "balance", "description", "reference")
    print_list(json, found, columns, f"The ledger is empty; `vpsd credit add {account} AMOUNT` adds credit.")


@billing_app.command("verify")
@run_async
async def verify_balances(json: Json = False) -> None:
    """Recompute every balance from credits, rentals and traffic, and report all differences.

    Exit status 1 if there are any. Works while vpsd runs. Example: `vpsd billing verify --json`.
    """
    # A snapshot: what is charged in the meantime is not a difference.
    async with transactions() as opened, opened.snapshot(OPERATOR) as ctx:
        checks = await verify(ctx, servers.lives)
    found = [
        {
            "account": check.account,
            "balance": money.decimal(check.balance_micros),
            "recomputed": money.decimal(check.recomputed_micros),
            "difference": money.decimal(check.difference_micros),
            "problems": check.problems,
        }
        for check in checks
    ]
    correct = not any(check.difference_micros or check.problems for check in checks)
    if json:
        print_json(found)
    else:
        rows = [(*list(row.values())[:4], "; ".join(row["problems"]) or None) for row in found]
        print_rows(("account", "balance", "recomputed", "difference", "problems"), rows, "There are no accounts.")
        if correct:
            typer.echo("Every balance is correct.")
    if not correct:
        raise typer.Exit(1)


@billing_app.command("charge")
@run_async
async def charge_now(json: Json = False) -> None:
    """Charge everything that is due, as a running worker does every few seconds.

    Safe to repeat: an hour is charged only once. `vpsd billing verify` checks the result.
    """
    async with transactions() as opened:
        count = len(await charge_due(opened))
    print_result(json, {"accounts_charged": count}, f"Accounts charged: {count}.")
