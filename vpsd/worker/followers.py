"""Loops that look again at some of a host's servers: at those that the reconciler tells them of, which saw the rows.

So the rows are read once for all of them, and none is read while nothing happens.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from vpsd.core.clock import every
from vpsd.core.context import Ctx
from vpsd.runtime import HostRuntime
from vpsd.servers import queries as servers
from vpsd.servers.models import Server
from vpsd.servers.seen import SeenServer


class Follower(Protocol):
    """Somebody who is told what was seen."""

    def notice(self, seen: Sequence[SeenServer], *, everything: bool) -> None:
        """These rows were seen: of all servers of the host (`everything`), or of some."""


class Looker:
    """Looks, while there is something to look at, with pauses of `period_seconds`; at what, its kind says."""

    period_seconds: float

    def __init__(self, runtime: HostRuntime) -> None:
        self._runtime = runtime
        self._noticed: set[int] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, self._pause_seconds, self.look, wake=self._wake)

    def _pause_seconds(self) -> float:
        return self.period_seconds if self._noticed else self._runtime.settings.sweep_seconds

    def notice(self, seen: Sequence[SeenServer], *, everything: bool) -> None:
        """Keep those that it has to do with."""
        found = {server.id for server in seen if self._concerns(server)}
        if found - self._noticed:
            self._wake.set()
        self._noticed = found if everything else (self._noticed - {server.id for server in seen}) | found

    def _concerns(self, server: SeenServer) -> bool:
        raise NotImplementedError

    async def look(self) -> None:
        """Look once at each of them."""
        raise NotImplementedError

    async def _row(self, ctx: Ctx, server_id: int) -> Server | None:
        """One of them as it is now; None, and it is forgotten, where it is gone, or on another host."""
        server = await servers.find_row(ctx, server_id)
        if server is None or server.deleted_at_ms is not None or server.host_id != self._runtime.host_id:
            self._noticed.discard(server_id)
            return None
        return server
