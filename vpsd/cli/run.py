"""What every command shares: settings, the event loop, transactions of the operator, and failures said in one line."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from vpsd import main, settings
from vpsd.accounts import service as accounts
from vpsd.cli.texts import text
from vpsd.core import logs
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.errors import VpsdError
from vpsd.runtime import Runtime
from vpsd.settings import Settings

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def read_settings() -> Settings:
    """The settings of the environment; logging is set up by them."""
    found = settings.load(os.environ)
    logs.set_up(found.log_level, found.log_format)
    return found


def reading(work: Callable[[Ctx], Awaitable[T]]) -> T:
    """Read from the database, as the operator."""

    async def run(transactions: Transactions) -> T:
        async with transactions.read(OPERATOR) as ctx:
            return await work(ctx)

    return with_transactions(run)


def writing(work: Callable[[Ctx], Awaitable[T]]) -> T:
    """Change something in the database, as the operator, in one transaction."""

    async def run(transactions: Transactions) -> T:
        async with transactions.write(OPERATOR) as ctx:
            return await work(ctx)

    return with_transactions(run)


async def in_account(ctx: Ctx, name: str) -> Ctx:
    """The operator's transaction, in the account of that name; raises `NotFound`."""
    return ctx.in_account((await accounts.find_account(ctx, name)).id)


def with_transactions(work: Callable[[Transactions], Awaitable[T]]) -> T:
    """Do something with the database alone: that works where there is no hypervisor, too."""
    found = read_settings()

    async def run() -> T:
        async with main.open_transactions(found) as transactions:
            return await work(transactions)

    return asyncio.run(run())


def with_runtime(work: Callable[[Runtime], Awaitable[T]]) -> T:
    """Do something with the database and the hypervisor."""
    found = read_settings()

    async def run() -> T:
        async with main.open_runtime(found) as runtime:
            return await work(runtime)

    return asyncio.run(run())


def fail(error: VpsdError) -> typer.Exit:
    """Say a failure in one line; raise what is returned."""
    typer.echo(f"vpsd: {text(error)}", err=True)
    return typer.Exit(1)
