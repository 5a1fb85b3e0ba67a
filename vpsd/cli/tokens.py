"""API tokens."""

from typing import Annotated

import typer

from vpsd.accounts import service, tokens
from vpsd.accounts.permissions import KNOWN
from vpsd.accounts.tokens import NewTokenValue
from vpsd.cli.accounts import AccountName
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, in_account, reading, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.context import Ctx

app = typer.Typer(no_args_is_help=True, help="API tokens: what speaks for an account.")


@app.command("list")
def list_tokens(json: Json = False) -> None:
    """List all tokens, without their values: those are shown only once.

    `vpsd token revoke ID` makes one worthless; `vpsd token add ACCOUNT` makes a new one.
    """
    found = reading(tokens.list_all)
    if json:
        print_json(found)
    else:
        columns = ("id", "account", "person", "name", "permissions", "created", "expires", "last used", "revoked")
        rows = [
            (
                *(token.id, token.account, token.person, token.name, " ".join(token.permissions)),
                *(iso_utc(token.created_at_ms), iso_utc_or_none(token.expires_at_ms)),
                *(iso_utc_or_none(token.last_used_at_ms), iso_utc_or_none(token.revoked_at_ms)),
            )
            for token in found
        ]
        print_rows(columns, rows, "There are no tokens.")


@app.command("add")
def add_token(
    account: AccountName,
    name: Annotated[str, typer.Option(help="What the token is for.")] = "token",
    permission: Annotated[
        list[str] | None, typer.Option(help=f"What it may do, once for each; by default *:*. {', '.join(KNOWN)}.")
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(help="Days until it is worthless by itself.")] = None,
    person: Annotated[str | None, typer.Option(help="E-mail of the person whose role bounds it.")] = None,
    json: Json = False,
) -> None:
    """Make a token for an account, and print it: this is the only time.

    Example: `vpsd token add default --name backup-script --permission servers:read`. Requests carry it as
    `Authorization: Bearer TOKEN`.
    """
    permissions = permission or ["*:*"]

    async def work(ctx: Ctx) -> NewTokenValue:
        ctx = await in_account(ctx, account)
        person_id = None if person is None else (await service.find_person(ctx, person)).id
        return await tokens.add(ctx, name, permissions, expires_in_days=expires_in_days, person_id=person_id)

    made = writing(work)
    if json:
        print_json({"id": made.id, "account": account, "name": name, "permissions": permissions, "token": made.value})
    else:
        typer.echo(made.value)


@app.command("revoke")
def revoke_token(
    token_id: Annotated[int, typer.Argument(help="Id, from `vpsd token list`.")], json: Json = False
) -> None:
    """Make a token worthless from now on: requests that carry it get 401. Example: `vpsd token revoke 2`."""

    async def work(ctx: Ctx) -> None:
        await tokens.revoke(ctx.in_account(await tokens.account_of(ctx, token_id)), token_id)

    writing(work)
    if json:
        print_json({"id": token_id, "revoked": True})
    else:
        typer.echo(f"Token {token_id} is revoked.")
