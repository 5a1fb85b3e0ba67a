"""Accounts and tokens."""

from typing import Annotated

import typer

from vpsd.accounts import service
from vpsd.accounts.models import Account, Token
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, with_database
from vpsd.core.clock import SystemClock, iso_utc, iso_utc_or_none
from vpsd.core.db import Database
from vpsd.core.ids import Ids

account_app = typer.Typer(no_args_is_help=True, help="Accounts: who owns servers and keys.")
token_app = typer.Typer(no_args_is_help=True, help="API tokens: what speaks for an account.")

AccountName = Annotated[str, typer.Argument(help="Name of the account.")]


@account_app.command("list")
def list_accounts(json: Json = False) -> None:
    """List all accounts. Example: `vpsd account list --json`."""

    async def work(database: Database) -> list[Account]:
        async with database.read() as tx:
            return await service.list_accounts(tx)

    found = with_database(work)
    if json:
        print_json(found)
    else:
        rows = [(account.id, account.name, iso_utc(account.created_at_ms)) for account in found]
        print_rows(("id", "name", "created"), rows, "There are no accounts; `vpsd account add NAME` opens one.")


@account_app.command("add")
def add_account(name: AccountName, json: Json = False) -> None:
    """Open an account. Then `vpsd token add NAME` makes a token for it."""

    async def work(database: Database) -> Account:
        async with database.write() as tx:
            return await service.add_account(tx, Ids(), SystemClock(), name)

    account = with_database(work)
    if json:
        print_json(account)
    else:
        typer.echo(f"Account {account.id} ({account.name}) is open; `vpsd token add {account.name}` makes a token.")


@token_app.command("list")
def list_tokens(json: Json = False) -> None:
    """List all tokens, without their values: those are shown only once.

    `vpsd token revoke ID` makes one worthless; `vpsd token add ACCOUNT` makes a new one.
    """

    async def work(database: Database) -> list[Token]:
        async with database.read() as tx:
            return await service.list_tokens(tx)

    found = with_database(work)
    if json:
        print_json(found)
    else:
        rows = [
            (token.id, token.account, token.name, iso_utc(token.created_at_ms), iso_utc_or_none(token.revoked_at_ms))
            for token in found
        ]
        print_rows(("id", "account", "name", "created", "revoked"), rows, "There are no tokens.")


@token_app.command("add")
def add_token(
    account: AccountName,
    name: Annotated[str, typer.Option(help="What the token is for.")] = "token",
    json: Json = False,
) -> None:
    """Make a token for an account, and print it: this is the only time.

    Example: `vpsd token add default --name backup-script`. Requests carry it as `Authorization: Bearer TOKEN`.
    """

    async def work(database: Database) -> str:
        async with database.write() as tx:
            owner = await service.get_account(tx, account)
            return await service.add_token(tx, Ids(), SystemClock(), owner.id, name)

    token = with_database(work)
    if json:
        print_json({"account": account, "name": name, "token": token})
    else:
        typer.echo(token)


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[int, typer.Argument(help="Id, from `vpsd token list`.")], json: Json = False
) -> None:
    """Make a token worthless from now on: requests that carry it get 401. Example: `vpsd token revoke 2`."""

    async def work(database: Database) -> None:
        async with database.write() as tx:
            await service.revoke_token(tx, SystemClock(), token_id)

    with_database(work)
    if json:
        print_json({"id": token_id, "revoked": True})
    else:
        typer.echo(f"Token {token_id} is revoked.")
