"""Hosts that are drained: which of their servers go next, which are on their way, which cannot be moved, and why."""

from enum import StrEnum

import msgspec

from vpsd.core.context import Ctx
from vpsd.core.faults import Faults
from vpsd.errors import Unavailable, VpsdError
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Host, HostState
from vpsd.lifecycle import RULES, Command
from vpsd.operations import service as operations
from vpsd.operations.models import OperationStatus
from vpsd.operations.moves import latest_moves
from vpsd.servers import moving, queries


class Stage(StrEnum):
    """How far a server is that is to leave its host."""

    WAITS = "waits"  # for its turn, or for what is done to it now
    MOVES = "moves"
    STAYS = "stays"  # it could not be moved


class Leaving(msgspec.Struct, frozen=True):
    """A server on a host that is drained."""

    server_id: int
    name: str
    status: str
    stage: Stage
    progress: float = 0.0  # of what moves, from 0 to 1
    why: str | None = None  # it waits, or stays


async def begin(ctx: Ctx, host: Host, *, cold: bool) -> None:
    """Have a host get no new servers, and its own moved away; those that could not be moved before are tried again."""
    state = HostState.DISABLED
    await hosts.change_host(ctx, host.id, state=state, draining_since_ms=ctx.now_ms, drains_cold=cold)


async def look(ctx: Ctx, host: Host) -> list[Leaving]:
    """How far each of a host's servers is."""
    assert host.draining_since_ms is not None
    moves, busy = await latest_moves(ctx, host.id, host.draining_since_ms), await operations.busy_servers(ctx)
    found = []
    for server in await queries.present(ctx, host.id):
        move, under_way = moves.get(server.id), busy.get(server.id)
        stage, progress, why = Stage.WAITS, 0.0, None
        if under_way == Command.MIGRATE:
            stage, progress = Stage.MOVES, 0.0 if move is None else move.progress
        elif under_way is not None:
            why = f"{under_way} is under way"
        elif server.deleted_at_ms is not None or server.status not in RULES[Command.MIGRATE].begins_from:
            why = f"it is {server.status}"
        elif move is not None and move.status == OperationStatus.FAILED:
            stage, why = Stage.STAYS, move.cause or move.error
        found.append(Leaving(server.id, server.name, server.status, stage, progress, why))
    return found


async def find_refused(ctx: Ctx, host: Host, leaving: list[Leaving]) -> list[Leaving]:
    """The same, where those that are next are tried until one can be moved: who cannot stays.

    Only in a transaction that is undone.
    """
    found = []
    for number, one in enumerate(leaving):
        tried = await _tried(ctx, host, one) if _is_next(one) else one
        found.append(tried)
        if _is_next(tried):
            return [*found, *leaving[number + 1 :]]
    return found


async def _tried(ctx: Ctx, host: Host, leaving: Leaving) -> Leaving:
    try:
        await moving.migrate(ctx, leaving.server_id, None, Faults(), cold=host.drains_cold)
    except VpsdError as error:
        stage = Stage.STAYS if isinstance(error, Unavailable) else leaving.stage
        return msgspec.structs.replace(leaving, stage=stage, why=str(error))
    return leaving


async def next_to_go(ctx: Ctx, host: Host) -> tuple[int, list[int]]:
    """How many servers may begin to move now, and which of them could."""
    leaving = await look(ctx, host)
    places = ctx.settings.moves_per_host - sum(one.stage is Stage.MOVES for one in leaving)
    return max(places, 0), [one.server_id for one in leaving if _is_next(one)]


def _is_next(leaving: Leaving) -> bool:
    return leaving.stage is Stage.WAITS and leaving.why is None
