"""Credit and billing."""

from typing import Annotated, Any

import typer

from vpsd.accounts import service as accounts
from vpsd.billing import meter, service
from vpsd.billing.verify import Verdict, verify
from vpsd.cli.accounts import AccountName, parse_amount
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, read_settings, with_database
from vpsd.core import money
from vpsd.core.clock import SystemClock, iso_utc
from vpsd.core.db import Database
from vpsd.core.ids import Ids
from vpsd.core.pages import LARGEST_SIZE, Page

credit_app = typer.Typer(no_args_is_help=True, help="Credit: what accounts have, and how they came by it.")
billing_app = typer.Typer(no_args_is_help=True, help="Billing: charging and checking.")


@credit_app.command("add", context_settings={"ignore_unknown_options": True})  # so that -5 is an amount
def add_credit(
    account: AccountName,
    amount: Annotated[str, typer.Argument(help="Credits, like 50 or 12.50; with a minus they are taken back.")],
    note: Annotated[str, typer.Option(help="What the customer reads beside it.")] = "credit",
    reference: Annotated[
        str | None, typer.Option(help="Your invoice or payment; the same one is never booked twice.")
    ] = None,
    json: Json = False,
) -> None:
    """Give an account credit. What was suspended for lack of it comes back by itself.

    Example: `vpsd credit add acme 50 --note "paid by card" --reference INV-17`. `vpsd credit list acme` shows the
    ledger.
    """
    micros, settings = parse_amount("amount", amount), read_settings()

    async def work(database: Database) -> int:
        async with database.write() as tx:
            owner = await accounts.find_account(tx, account)
            return await service.add_credit(tx, Ids(), SystemClock(), settings, owner, micros, note, reference)

    balance = with_database(work)
    if json:
        print_json({"account": account, "added": money.text(micros), "balance": money.text(balance)})
    else:
        typer.echo(f"{money.text(micros)} were booked; the balance of {account} is {money.text(balance)}.")


@credit_app.command("list")
def list_credit(
    account: AccountName,
    page: Annotated[int, typer.Option(min=1, help=f"Which page, of {LARGEST_SIZE} rows.")] = 1,
    json: Json = False,
) -> None:
    """Show an account's ledger, newest first; the balance is its sum. Example: `vpsd credit list acme --json`."""

    async def work(database: Database) -> list[dict[str, Any]]:
        async with database.read() as tx:
            owner = await accounts.find_account(tx, account)
            _, found = await service.entries(tx, owner.id, Page(page, LARGEST_SIZE))
            return [
                {
                    "id": entry.id,
                    "at": iso_utc(entry.created_at_ms),
                    "kind": entry.kind,
                    "amount": money.text(entry.amount_micros),
                    "balance": money.text(entry.balance_micros),
                    "description": entry.description,
                    "reference": entry.reference,
                }
                for entry in found
            ]

    found = with_database(work)
    if json:
        print_json(found)
    else:
        columns = ("id", "at", "kind", "amount", "balance", "description", "reference")
        rows = [list(entry.values()) for entry in found]
        print_rows(columns, rows, f"No rows; `vpsd credit add {account} AMOUNT` books some credit.")


@billing_app.command("verify")
def verify_balances(json: Json = False) -> None:
    """Recompute every balance from credits, rentals and traffic, and tell every difference.

    Exit status 1 when one is found. Works while vpsd runs. Example: `vpsd billing verify --json`.
    """

    async def work(database: Database) -> list[Verdict]:
        async with database.snapshot() as tx:  # what is charged meanwhile is no difference
            return await verify(tx)

    verdicts = with_database(work)
    shown = [
        {
            "account": verdict.account,
            "balance": money.text(verdict.balance_micros),
            "recomputed": money.text(verdict.recomputed_micros),
            "difference": money.text(verdict.difference_micros),
            "problems": verdict.problems,
        }
        for verdict in verdicts
    ]
    if json:
        print_json(shown)
    else:
        rows = [(*list(row.values())[:4], "; ".join(row["problems"]) or None) for row in shown]
        print_rows(("account", "balance", "recomputed", "difference", "problems"), rows, "There are no accounts.")
        if not any(verdict.difference_micros or verdict.problems for verdict in verdicts):
            typer.echo("Every balance is what follows from what happened.")
    if any(verdict.difference_micros or verdict.problems for verdict in verdicts):
        raise typer.Exit(1)


@billing_app.command("charge")
def charge_now(json: Json = False) -> None:
    """Charge what is due now, as a running worker does by itself every few seconds.

    May be run at any time and as often as you like: an hour is charged once. `vpsd billing verify` checks the result.
    """
    settings = read_settings()
    charged = with_database(lambda database: meter.charge(database, settings, Ids(), SystemClock()))
    if json:
        print_json({"accounts_charged": len(charged)})
    else:
        typer.echo(f"Accounts charged: {len(charged)}.")
