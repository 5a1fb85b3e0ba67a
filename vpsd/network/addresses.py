"""Addresses: assigned from the pool, and held until nothing is left of the server."""

import msgspec
from sqlalchemy import bindparam, delete, insert, select

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.errors import Unavailable
from vpsd.network.models import addresses

_a = addresses.c


class Assignment(msgspec.Struct, frozen=True):
    """An address and the server that holds it."""

    address: str
    server_id: int


_ALL = Statement(select(_a.address, _a.server_id), into=Assignment)
_OF_SERVER = Statement(select(_a.address).where(_a.server_id == bindparam("server_id")), into=str)
_HOLD = Statement(insert(addresses), ("address", "server_id", "assigned_at_ms"))
_RELEASE = Statement(delete(addresses).where(_a.server_id == bindparam("server_id")))
_FREE = Statement(delete(addresses).where(_a.address == bindparam("address")))


class PoolUsedUp(Unavailable):
    """No address is free."""

    def __init__(self, pool: str) -> None:
        super().__init__(f"The address pool {pool} is used up; the operator can widen VPSD_ADDRESS_POOL.")
        self.pool = pool


async def assign(ctx: Ctx, server_id: int) -> str:
    """The server's address, assigned now if it has none: the lowest free one, except the first two and the last.

    Raises `PoolUsedUp`, and `UniqueViolation` if another server takes the same one at the same time.
    """
    held = await ctx.tx.first(_OF_SERVER, server_id=server_id)
    if held is not None:
        return held
    network = ctx.settings.network
    taken = {assignment.address for assignment in await assignments(ctx)}
    for number in range(2, network.num_addresses - 1):
        address = str(network[number])
        if address not in taken:
            await hold(ctx, address, server_id)
            return address
    raise PoolUsedUp(str(network))


async def hold(ctx: Ctx, address: str, server_id: int) -> None:
    """Assign an address to a server; raises `UniqueViolation` if it is taken, or the server has another."""
    await ctx.tx.run(_HOLD, address=address, server_id=server_id, assigned_at_ms=ctx.now_ms)


async def release(ctx: Ctx, server_id: int) -> None:
    """Return the server's address to the pool."""
    await ctx.tx.run(_RELEASE, server_id=server_id)


async def free(ctx: Ctx, address: str) -> None:
    """Return an address to the pool, whoever holds it."""
    await ctx.tx.run(_FREE, address=address)


async def assignments(ctx: Ctx) -> list[Assignment]:
    """All addresses that are held."""
    return await ctx.tx.all(_ALL)
