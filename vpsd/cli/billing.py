"""Credit and billing."""

from typing import Annotated, Any

import typer

from vpsd.billing import credit, ledger
from vpsd.billing.models import Entry
from vpsd.billing.verify import BalanceCheck, verify
from vpsd.cli.accounts import AccountName, parse_amount
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, in_account, reading, with_transactions, writing
from vpsd.core import money
from vpsd.core.clock import iso_utc
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.core.pages import LARGEST_SIZE, Page
from vpsd.servers import queries as servers
from vpsd.worker.metering import charge_due

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
    micros = parse_amount("amount", amount)

    async def work(ctx: Ctx) -> int:
        return await credit.add_credit(await in_account(ctx, account), micros, note, reference)

    balance = writing(work)
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

    async def work(ctx: Ctx) -> list[Entry]:
        _, entries = await ledger.entries(await in_account(ctx, account), Page(page, LARGEST_SIZE))
        return entries

    found: list[dict[str, Any]] = [
        {
            "id": entry.id,
            "at": iso_utc(entry.created_at_ms),
            "kind": entry.kind,
            "amount": money.text(entry.amount_micros),
            "balance": money.text(entry.balance_micros),
            "description": entry.description,
            "reference": entry.reference,
        }
        for entry in reading(work)
    ]
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

    async def work(transactions: Transactions) -> list[BalanceCheck]:
        async with transactions.snapshot(OPERATOR) as ctx:  # what is charged meanwhile is no difference
            return await verify(ctx, servers.lives)

    checks = with_transactions(work)
    found = [
        {
            "account": check.account,
            "balance": money.text(check.balance_micros),
            "recomputed": money.text(check.recomputed_micros),
            "difference": money.text(check.difference_micros),
            "problems": check.problems,
        }
        for check in checks
    ]
    is_right = not any(check.difference_micros or check.problems for check in checks)
    if json:
        print_json(found)
    else:
        rows = [(*list(row.values())[:4], "; ".join(row["problems"]) or None) for row in found]
        print_rows(("account", "balance", "recomputed", "difference", "problems"), rows, "There are no accounts.")
        if is_right:
            typer.echo("Every balance is what follows from what happened.")
    if not is_right:
        raise typer.Exit(1)


@billing_app.command("charge")
def charge_now(json: Json = False) -> None:
    """Charge what is due now, as a running worker does by itself every few seconds.

    May be run at any time and as often as you like: an hour is charged once. `vpsd billing verify` checks the result.
    """
    charged = with_transactions(charge_due)
    if json:
        print_json({"accounts_charged": len(charged)})
    else:
        typer.echo(f"Accounts charged: {len(charged)}.")
