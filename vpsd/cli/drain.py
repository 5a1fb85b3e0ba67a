"""`vpsd host drain`: asks for it, and tells how it goes. The worker that looks after the host does the work."""

import asyncio
from typing import Annotated, Any

import typer

from vpsd.cli.host_checks import CannotBeUsed
from vpsd.cli.hosts import Name
from vpsd.cli.output import print_json, print_rows, progress_shown
from vpsd.cli.run import Json, run_async, transactions
from vpsd.core.context import OPERATOR, Transactions
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostState
from vpsd.servers import draining
from vpsd.servers.draining import Leaving, Stage

_LOOK_SECONDS = 0.5


@run_async
async def drain(
    name: Name,
    cold: Annotated[
        bool, typer.Option("--cold", help="Servers that cannot move while they run may be stopped for it.")
    ] = False,
    json: Json = False,
) -> None:
    """Give a host no new servers, and move those that it has to others; waits until that is done.

    It goes on without this command; run it again to see how far it is, and to have those tried again that could not be
    moved: they are listed with the reason. `vpsd host enable NAME` ends it, and so does `vpsd host disable NAME`.
    """
    async with transactions() as opened:
        async with opened.write(OPERATOR) as ctx:
            host = await hosts.find_host_named(ctx, name)
            if host.state == HostState.FENCED:
                raise CannotBeUsed(
                    f"{name} is off: bring its servers up elsewhere (vpsd host evacuate {name} --fenced)."
                )
            await draining.begin(ctx, host, cold=cold)
            host = await hosts.row(ctx, host.id)
            count = len(await draining.look(ctx, host))
        if json:
            left = await _follow(opened, host, lambda _fraction, _text: None, count)
        else:
            with progress_shown(f"draining {name}") as show:
                left = await _follow(opened, host, show, count)
    if json:
        print_json({"host": name, "moved": count - len(left), "left": left})
    else:
        rows = [(one.server_id, one.name, one.status, one.why) for one in left]
        print_rows(("server", "name", "status", "stays because"), rows, f"{name} has no servers any more.")
    if left:
        raise typer.Exit(1)


async def _follow(opened: Transactions, host: Host, show: Any, count: int) -> list[Leaving]:
    """Wait until nothing more can be moved; the servers that stay."""
    while True:
        left = await _look(opened, host)
        if all(one.stage is Stage.STAYS for one in left):
            return left
        moving = [f"{one.name} ({one.progress:.0%})" for one in left if one.stage is Stage.MOVES]
        gone = count - len(left) + sum(one.progress for one in left)
        show(max(0.0, min(1.0, gone / max(count, 1))), f"{len(left)} to go; moving: {', '.join(moving) or 'none'}")
        await asyncio.sleep(_LOOK_SECONDS)


async def _look(opened: Transactions, host: Host) -> list[Leaving]:
    async with opened.read(OPERATOR) as ctx:
        present = await hosts.row(ctx, host.id)
        if present.draining_since_ms is None:
            raise CannotBeUsed(f"{host.name} is not drained any more: it was enabled, or disabled, meanwhile.")
        if present.lease_until_ms is None or present.lease_until_ms < ctx.now_ms:
            raise CannotBeUsed(f"No worker looks after {host.name} now. Start vpsd: it goes on by itself then.")
        left = await draining.look(ctx, present)
    if any(one.stage is Stage.MOVES for one in left):
        return left
    async with opened.rolled_back(OPERATOR) as ctx:  # each by itself, as the next move would be asked for
        return await draining.find_refused(ctx, present, left)
