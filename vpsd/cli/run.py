"""What commands share: settings, the event loop, and the operator's transactions."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from vpsd import main, settings
from vpsd.accounts import service as accounts
from vpsd.core import logs
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def read_settings() -> Settings:
    """Read the settings from the environment, and configure logging accordingly."""
    found = settings.load(os.environ)
    logs.configure(found.log_level, found.log_format)
    return found


def run_async(command: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make a command of a coroutine function."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run(command(*args, **kwargs))

    return run


def transactions() -> AbstractAsyncContextManager[Transactions]:
    """Open the database alone, so that no hypervisor is needed."""
    return main.open_transactions(read_settings())


@asynccontextmanager
async def reading(account: str | None = None) -> AsyncIterator[Ctx]:
    """Read the database as the operator, in the account of that name if one is given; raises `NotFound`."""
    async with transactions() as opened, opened.read(OPERATOR) as ctx:
        yield await _in_account(ctx, account)


@asynccontextmanager
async def writing(account: str | None = None) -> AsyncIterator[Ctx]:
    """Like `reading`, in a transaction that is committed at the end of the block."""
    async with transactions() as opened, opened.write(OPERATOR) as ctx:
        yield await _in_account(ctx, account)


async def _in_account(ctx: Ctx, name: str | None) -> Ctx:
    return ctx if name is None else ctx.in_account((await accounts.find_account(ctx, name)).id)
