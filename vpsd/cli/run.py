"""What every command shares: settings, the event loop, and failures said in one line."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from vpsd import main, settings
from vpsd.core import logs
from vpsd.core.db import Database
from vpsd.errors import VpsdError
from vpsd.servers.jobs import World
from vpsd.settings import Settings

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def read_settings() -> Settings:
    """The settings of the environment; logging is set up by them."""
    found = settings.load(os.environ)
    logs.set_up(found.log_level, found.log_format)
    return found


def with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something with the database alone: that works where there is no hypervisor, too."""

    async def run() -> T:
        async with main.open_database(read_settings()) as database:
            return await work(database)

    return asyncio.run(run())


def with_world(work: Callable[[World], Awaitable[T]]) -> T:
    """Do something with the database and the hypervisor."""

    async def run() -> T:
        async with main.open_world(read_settings()) as world:
            return await work(world)

    return asyncio.run(run())


def fail(error: VpsdError | str) -> typer.Exit:
    """Say a failure in one line; raise what is returned."""
    typer.echo(f"vpsd: {error}", err=True)
    return typer.Exit(1)
