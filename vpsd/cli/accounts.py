"""Accounts and their people."""

from decimal import Decimal
from typing import Annotated, Any

import typer

from vpsd.accounts import service
from vpsd.accounts.models import Account, Person
from vpsd.accounts.permissions import Role
from vpsd.accounts.service import NewPerson
from vpsd.billing import credit, ledger
from vpsd.cli.output import console, print_json, print_rows
from vpsd.cli.run import Json, in_account, reading, writing
from vpsd.core import money
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.context import Ctx
from vpsd.errors import Invalid

app = typer.Typer(no_args_is_help=True, help="Accounts: who owns servers and keys, and pays for them.")

AccountName = Annotated[str, typer.Argument(help="Name of the account.")]
Email = Annotated[str, typer.Argument(help="E-mail address of the person.")]


def _fields(account: Account, balance_micros: int) -> dict[str, Any]:
    """An account for programs: money as text, so that no digit is lost."""
    limit = account.credit_limit_micros
    return {
        "id": account.id,
        "uuid": account.uuid,
        "name": account.name,
        "balance": money.text(balance_micros),
        "credit_limit": None if limit is None else money.text(limit),
        **{name: getattr(account, name) for name in service.LIMITS[1:]},
        "exhausted_at": iso_utc_or_none(account.exhausted_at_ms),
        "created_at": iso_utc(account.created_at_ms),
    }


@app.command("list")
def list_accounts(json: Json = False) -> None:
    """List all accounts with their balances. Example: `vpsd account list --json`."""

    async def work(ctx: Ctx) -> list[dict[str, Any]]:
        balances = await ledger.balances(ctx)
        return [_fields(account, balances.get(account.id, 0)) for account in await service.list_accounts(ctx)]

    found = reading(work)
    if json:
        print_json(found)
    else:
        columns = ("id", "name", "balance", "credit_limit", "exhausted_at", "created_at")
        rows = [[account[column] for column in columns] for account in found]
        print_rows(columns, rows, "There are no accounts; `vpsd account add NAME` opens one.")


@app.command("show")
def show_account(name: AccountName, json: Json = False) -> None:
    """Show an account: balance, limits, people. Example: `vpsd account show acme`."""

    async def work(ctx: Ctx) -> dict[str, Any]:
        ctx = await in_account(ctx, name)
        return {**await _account_fields(ctx), "people": await service.list_people(ctx)}

    found = reading(work)
    if json:
        print_json(found)
        return
    people: list[Person] = found.pop("people")
    for key, value in found.items():
        console.print(f"{key:16}{'none' if value is None else value}", markup=False)
    rows = [(person.email, person.first_name, person.last_name, person.role) for person in people]
    print_rows(("email", "first name", "last name", "role"), rows, f"No people; `vpsd account invite {name} EMAIL`.")


async def _account_fields(ctx: Ctx) -> dict[str, Any]:
    return _fields(await service.get_account(ctx, ctx.account_id), await ledger.balance(ctx))


@app.command("add")
def add_account(
    name: AccountName,
    email: Annotated[str | None, typer.Option(help="E-mail address of its owner.")] = None,
    first_name: Annotated[str, typer.Option(help="First name of its owner.")] = "",
    last_name: Annotated[str, typer.Option(help="Last name of its owner.")] = "",
    json: Json = False,
) -> None:
    """Open an account, prepaid. Then `vpsd credit add NAME 50` gives it credit, `vpsd token add NAME` makes a token."""

    async def work(ctx: Ctx) -> Account:
        account = await service.add_account(ctx, name)
        if email is not None:
            await service.add_person(ctx.in_account(account.id), NewPerson(email, first_name, last_name))
        return account

    account = writing(work)
    if json:
        print_json(_fields(account, 0))
    else:
        typer.echo(
            f"Account {account.id} ({account.name}) is open; `vpsd credit add {account.name} AMOUNT` gives it credit, "
            f"`vpsd token add {account.name}` makes a token."
        )


_LIMIT = "; `none` takes it away."
Limit = str | None


@app.command("limit")
def limit_account(
    name: AccountName,
    credit_limit: Annotated[
        Limit, typer.Option("--credit", help=f"How far below zero the balance may go{_LIMIT}")
    ] = None,
    servers: Annotated[Limit, typer.Option(help=f"Most servers{_LIMIT}")] = None,
    vcpus: Annotated[Limit, typer.Option(help=f"Most vCPUs together{_LIMIT}")] = None,
    memory_mb: Annotated[Limit, typer.Option(help=f"Most memory together{_LIMIT}")] = None,
    storage_gb: Annotated[Limit, typer.Option(help=f"Most disk space together{_LIMIT}")] = None,
    json: Json = False,
) -> None:
    """Limit what an account may have, or owe: `vpsd account limit acme --servers 10 --credit 25.00`.

    What it has already stays. `vpsd account show acme` shows the limits.
    """
    given = {"max_servers": servers, "max_vcpus": vcpus, "max_memory_mb": memory_mb, "max_storage_gb": storage_gb}
    limits: dict[str, int | None] = {key: _whole(key, text) for key, text in given.items() if text is not None}
    if credit_limit is not None:
        limits["credit_limit_micros"] = None if credit_limit == "none" else parse_amount("credit", credit_limit)

    async def work(ctx: Ctx) -> dict[str, Any]:
        account = await service.find_account(ctx, name)
        ctx = ctx.in_account(account.id)
        await service.set_limits(ctx, account, limits)
        await credit.update_credit(ctx)
        return await _account_fields(ctx)

    fields = writing(work)
    if json:
        print_json(fields)
    else:
        words = ", ".join(f"{key} {'none' if fields[key] is None else fields[key]}" for key in _LIMIT_NAMES)
        typer.echo(f"Limits of {name}: {words}.")


_LIMIT_NAMES = ("credit_limit", *service.LIMITS[1:])


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
def add_person(
    name: AccountName,
    email: Email,
    first_name: Annotated[str, typer.Option(help="First name.")] = "",
    last_name: Annotated[str, typer.Option(help="Last name.")] = "",
    role: Annotated[Role, typer.Option(help="What they may do at most.")] = Role.MEMBER,
    json: Json = False,
) -> None:
    """Take a person into an account. Then `vpsd token add ACCOUNT --person EMAIL` makes a token for them.

    Roles: owner (everything), member (servers and keys, sees the money), read-only.
    """

    async def work(ctx: Ctx) -> Person:
        return await service.add_person(await in_account(ctx, name), NewPerson(email, first_name, last_name, role))

    person = writing(work)
    if json:
        print_json(person)
    else:
        typer.echo(f"{person.email} belongs to {name} as {person.role}.")


@app.command("role")
def set_role(
    name: AccountName,
    email: Email,
    role: Annotated[Role, typer.Argument(help="What they may do at most from now on.")],
    json: Json = False,
) -> None:
    """Change a person's role; their tokens follow at once. Example: `vpsd account role acme bob@acme.example owner`."""

    async def work(ctx: Ctx) -> Person:
        return await service.set_role(await in_account(ctx, name), email, role)

    person = writing(work)
    if json:
        print_json(person)
    else:
        typer.echo(f"{person.email} belongs to {name} as {person.role}.")


@app.command("dismiss")
def remove_person(name: AccountName, email: Email, json: Json = False) -> None:
    """Take a person out of an account and revoke their tokens: `vpsd account dismiss acme bob@acme.example`."""

    async def work(ctx: Ctx) -> int:
        return await service.remove_person(await in_account(ctx, name), email)

    count = writing(work)
    if json:
        print_json({"account": name, "email": email, "tokens_revoked": count})
    else:
        typer.echo(f"{email} is gone from {name}; tokens revoked: {count}.")
