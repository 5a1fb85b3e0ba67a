"""Accounts and their people."""

from decimal import Decimal
from typing import Annotated, Any

import typer

from vpsd.accounts import service
from vpsd.accounts.models import Account, Person
from vpsd.accounts.permissions import Role
from vpsd.accounts.service import NewPerson
from vpsd.billing import credit, ledger
from vpsd.cli.output import console, print_json, print_list, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, writing
from vpsd.core import money
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.context import Ctx
from vpsd.errors import Invalid

app = typer.Typer(no_args_is_help=True, help="Accounts: they own servers and keys, and pay for them.")

AccountName = Annotated[str, typer.Argument(help="Name of the account.")]
Email = Annotated[str, typer.Argument(help="E-mail address of the person.")]

_LIMITS = ("credit_limit", *service.LIMITS[1:])


def _fields(account: Account, balance_micros: int) -> dict[str, Any]:
    """An account for programs: money as text, so that no digit is lost."""
    limit = account.credit_limit_micros
    return {
        "id": account.id,
        "uuid": account.uuid,
        "name": account.name,
        "balance": money.decimal(balance_micros),
        "credit_limit": None if limit is None else money.decimal(limit),
        **{name: getattr(account, name) for name in _LIMITS[1:]},
        "exhausted_at": iso_utc_or_none(account.exhausted_at_ms),
        "created_at": iso_utc(account.created_at_ms),
    }


async def _account_fields(ctx: Ctx) -> dict[str, Any]:
    return _fields(await service.get_account(ctx, ctx.account_id), await ledger.balance(ctx))


@app.command("list")
@run_async
async def list_accounts(json: Json = False) -> None:
    """List all accounts with their balances. Example: `vpsd account list --json`."""
    async with reading() as ctx:
        balances = await ledger.balances(ctx)
        found = [_fields(account, balances.get(account.id, 0)) for account in await service.list_accounts(ctx)]
    columns = ("id", "name", "balance", "credit_limit", "exhausted_at", "created_at")
    print_list(json, found, columns, "There are no accounts; `vpsd account add NAME` opens one.")


@app.command("show")
@run_async
async def show_account(name: AccountName, json: Json = False) -> None:
    """Show an account: balance, limits, people. Example: `vpsd account show acme`."""
    async with reading(name) as ctx:
        fields, people = await _account_fields(ctx), await service.list_people(ctx)
    if json:
        print_json({**fields, "people": people})
        return
    for key, value in fields.items():
        console.print(f"{key:16}{'none' if value is None else value}", markup=False)
    rows = [(person.email, person.first_name, person.last_name, person.role) for person in people]
    print_rows(("email", "first name", "last name", "role"), rows, f"No people; `vpsd account invite {name} EMAIL`.")


@app.command("add")
@run_async
async def add_account(
    name: AccountName,
    email: Annotated[str | None, typer.Option(help="E-mail address of its owner.")] = None,
    first_name: Annotated[str, typer.Option(help="First name of its owner.")] = "",
    last_name: Annotated[str, typer.Option(help="Last name of its owner.")] = "",
    json: Json = False,
) -> None:
    """Open a prepaid account. Next: `vpsd credit add NAME 50` adds credit, `vpsd token add NAME` creates a token."""
    async with writing() as ctx:
        account = await service.add_account(ctx, name)
        if email is not None:
            await service.add_person(ctx.in_account(account.id), NewPerson(email, first_name, last_name))
    text = (
        f"Opened account {account.id} ({account.name}); `vpsd credit add {account.name} AMOUNT` adds credit, "
        f"`vpsd token add {account.name}` creates a token."
    )
    print_result(json, _fields(account, 0), text)


_NONE = "; `none` removes the limit."
Limit = str | None


@app.command("limit")
@run_async
async def limit_account(
    name: AccountName,
    credit_limit: Annotated[
        Limit, typer.Option("--credit", help=f"How far the balance may fall below zero{_NONE}")
    ] = None,
    servers: Annotated[Limit, typer.Option(help=f"Maximum number of servers{_NONE}")] = None,
    vcpus: Annotated[Limit, typer.Option(help=f"Maximum number of vCPUs of all servers{_NONE}")] = None,
    memory_mb: Annotated[Limit, typer.Option(help=f"Maximum memory of all servers{_NONE}")] = None,
    storage_gb: Annotated[Limit, typer.Option(help=f"Maximum disk space of all servers{_NONE}")] = None,
    json: Json = False,
) -> None:
    """Limit what an account may have or owe: `vpsd account limit acme --servers 10 --credit 25.00`.

    Servers that it already has are not affected. `vpsd account show acme` shows the limits.
    """
    given = {"max_servers": servers, "max_vcpus": vcpus, "max_memory_mb": memory_mb, "max_storage_gb": storage_gb}
    limits: dict[str, int | None] = {key: _whole(key, text) for key, text in given.items() if text is not None}
    if credit_limit is not None:
        limits["credit_limit_micros"] = None if credit_limit == "none" else parse_amount("credit", credit_limit)
    async with writing(name) as ctx:
        await credit.set_limits(ctx, limits)
        fields = await _account_fields(ctx)
    words = ", ".join(f"{key} {'none' if fields[key] is None else fields[key]}" for key in _LIMITS)
    print_result(json, fields, f"Limits of {name}: {words}.")


def _whole(name: str, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise Invalid({name: ["Give a whole number, or `none` for no limit."]})
    return int(text)


def parse_amount(name: str, text: str) -> int:
    """An amount of money from the command line, in micros; raises `Invalid`."""
    try:
        return money.parse(text if text.isascii() else Decimal("NaN"))
    except ValueError as error:
        raise Invalid({name: [f"{error}."]}) from None


@app.command("invite")
@run_async
async def add_person(
    name: AccountName,
    email: Email,
    first_name: Annotated[str, typer.Option(help="First name.")] = "",
    last_name: Annotated[str, typer.Option(help="Last name.")] = "",
    role: Annotated[Role, typer.Option(help="The most that they may do.")] = Role.MEMBER,
    json: Json = False,
) -> None:
    """Add a person to an account. Next: `vpsd token add ACCOUNT --person EMAIL` creates a token for them.

    Roles: owner (everything), member (servers and keys, sees the money), read-only.
    """
    async with writing(name) as ctx:
        person = await service.add_person(ctx, NewPerson(email, first_name, last_name, role))
    print_result(json, person, _role_text(name, person))


@app.command("role")
@run_async
async def set_role(
    name: AccountName,
    email: Email,
    role: Annotated[Role, typer.Argument(help="The most that they may do from now on.")],
    json: Json = False,
) -> None:
    """Change a person's role, also for their tokens. Example: `vpsd account role acme bob@acme.example owner`."""
    async with writing(name) as ctx:
        person = await service.set_role(ctx, email, role)
    print_result(json, person, _role_text(name, person))


def _role_text(account: str, person: Person) -> str:
    return f"{person.email} now has the role {person.role} in {account}."


@app.command("dismiss")
@run_async
async def remove_person(name: AccountName, email: Email, json: Json = False) -> None:
    """Remove a person from an account and revoke their tokens: `vpsd account dismiss acme bob@acme.example`."""
    async with writing(name) as ctx:
        count = await service.remove_person(ctx, email)
    fields = {"account": name, "email": email, "tokens_revoked": count}
    print_result(json, fields, f"{email} was removed from {name}; tokens revoked: {count}.")
