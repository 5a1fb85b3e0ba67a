"""API tokens."""

from typing import Annotated

import typer

from vpsd.accounts import service, tokens
from vpsd.accounts.permissions import KNOWN
from vpsd.cli.accounts import AccountName
from vpsd.cli.output import print_json, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none

app = typer.Typer(no_args_is_help=True, help="API tokens: they authenticate requests of an account.")


@app.command("list")
@run_async
async def list_tokens(json: Json = False) -> None:
    """List all tokens, without their values: those are shown only once.

    `vpsd token revoke ID` revokes one; `vpsd token add ACCOUNT` creates a new one.
    """
    async with reading() as ctx:
        found = await tokens.list_all(ctx)
    if json:
        print_json(found)
        return
    columns = (
        "id",
        "account",
        "person",
        "name",
        "permissions",
        "created by",
        "created",
        "expires",
        "last used",
        "revoked",
    )
    rows = [
        (
            *(token.id, token.account, token.person, token.name, " ".join(token.permissions)),
            token.created_by if token.parent_id is None else f"token {token.parent_id}",
            *(iso_utc(token.created_at_ms), iso_utc_or_none(token.expires_at_ms)),
            *(iso_utc_or_none(token.last_used_at_ms), iso_utc_or_none(token.revoked_at_ms)),
        )
        for token in found
    ]
    print_rows(columns, rows, "There are no tokens.")


@app.command("add")
@run_async
async def add_token(
    account: AccountName,
    name: Annotated[str, typer.Option(help="What the token is for.")] = "token",
    permission: Annotated[
        list[str] | None,
        typer.Option(help=f"What it may do; may be given several times, by default *:*. {', '.join(KNOWN)}."),
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(help="Days until it expires; by default, never.")] = None,
    person: Annotated[str | None, typer.Option(help="E-mail address of the person whose role limits it.")] = None,
    json: Json = False,
) -> None:
    """Create a token for an account, and print it: it is shown only this once.

    Example: `vpsd token add default --name backup-script --permission servers:read`. Requests carry it as
    `Authorization: Bearer TOKEN`.
    """
    permissions = permission or ["*:*"]
    async with writing(account) as ctx:
        person_id = None if person is None else (await service.find_person(ctx, person)).id
        made = await tokens.add(ctx, name, permissions, expires_in_days=expires_in_days, person_id=person_id)
    fields = {"id": made.id, "account": account, "name": name, "permissions": permissions, "token": made.value}
    print_result(json, fields, made.value)


@app.command("revoke")
@run_async
async def revoke_token(
    token_id: Annotated[int, typer.Argument(help="Id, from `vpsd token list`.")],
    children: Annotated[
        bool, typer.Option("--children", help="Also the tokens that it made, those that they made, and so on.")
    ] = False,
    json: Json = False,
) -> None:
    """Revoke a token: from now on, requests that carry it get 401. Example: `vpsd token revoke 2 --children`."""
    async with writing() as ctx:
        account = ctx.in_account(await tokens.account_of(ctx, token_id))
        revoked = await tokens.revoke(account, token_id, children=children)
    others = f" So are {', '.join(map(str, revoked[1:]))}." if len(revoked) > 1 else ""
    sentence = f"Token {revoked[0]} is revoked.{others}"
    print_result(json, {"id": token_id, "revoked": True, "ids": revoked}, sentence)
