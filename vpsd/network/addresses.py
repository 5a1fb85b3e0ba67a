"""Addresses: assigned from the pool, held until nothing is left of the server, and then at rest for a while.

Who still sends to an address, or believes its names, shall not meet a stranger there the moment after.
"""

import ipaddress
from collections.abc import Collection

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from vpsd.core.clock import iso_utc
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.units import MINUTE_MS
from vpsd.errors import Unavailable
from vpsd.network.models import addresses

_a = addresses.c


class Assignment(msgspec.Struct, frozen=True):
    """An address and the server that holds it."""

    address: str
    server_id: int


class _Used(msgspec.Struct, frozen=True):
    address: str
    released_at_ms: int | None


_held = _a.released_at_ms.is_(None)
_OF = _a.server_id == bindparam("of_server_id")
_HELD = Statement(select(_a.address, _a.server_id).where(_held), into=Assignment)
_USED = Statement(select(_a.address, _a.released_at_ms), into=_Used)
_ROW = Statement(select(_a.address).where(_a.address == bindparam("of_address")), into=str)
_OF_SERVER = Statement(select(_a.address).where(_held, _OF), into=str)
_FORGET = Statement(delete(addresses).where(_OF))
_HOLD = Statement(insert(addresses), ("address", "server_id", "assigned_at_ms"))
_TAKE = Statement(  # the guard lets one of those that meet have it
    update(addresses)
    .where(_a.address == bindparam("resting"), _a.released_at_ms == bindparam("since_ms"))
    .values(released_at_ms=None),
    ("server_id", "assigned_at_ms", "released_at_ms"),
)
_RELEASE = Statement(update(addresses).where(_held, _OF), ("released_at_ms",))
_CUT_REST = Statement(update(addresses).where(_a.released_at_ms > bindparam("now_ms")), ("released_at_ms",))
_FREE = Statement(update(addresses).where(_held, _a.address == bindparam("of_address")), ("released_at_ms",))


class PoolUsedUp(Unavailable):
    """No address is free; `free_at_ms`: when the first of those that rest is, None where none does."""

    def __init__(self, pool: str, free_at_ms: int | None = None) -> None:
        rests = "" if free_at_ms is None else f"; the first that rests is free at {iso_utc(free_at_ms)}"
        shorter = "" if free_at_ms is None else ", or shorten VPSD_ADDRESS_REST_MINUTES"
        super().__init__(
            f"The address pool {pool} is used up{rests}; the operator can widen VPSD_ADDRESS_POOL{shorter}.",
            f"No address is left for the server{rests}; the operator can add some.",
        )
        self.pool = pool
        self.free_at_ms = free_at_ms


async def assign(ctx: Ctx, server_id: int, avoid: Collection[str] = ()) -> str:
    """The server's address, assigned now if it has none: the one that has been free the longest.

    Those that nobody ever had come first: the one with the server's number, so that servers that begin at once do not
    meet and nobody reads who has all the others, then the lowest. The first two and the last of the pool are never
    given. Nor is one to avoid: a server that has it gets another.

    Raises `PoolUsedUp`, and `UniqueViolation` if another server takes the same one at the same time.
    """
    held = await find(ctx, server_id)
    if held is not None and held not in avoid:
        return held
    if held is not None:
        await ctx.tx.run(_FORGET, of_server_id=server_id)
    network = ctx.settings.network
    own = str(network[2 + (server_id - 1) % (network.num_addresses - 3)])
    if own not in avoid and await ctx.tx.first(_ROW, of_address=own) is None:
        await ctx.tx.run(_HOLD, address=own, server_id=server_id, assigned_at_ms=ctx.now_ms)
        return own
    used = {entry.address: entry.released_at_ms for entry in await ctx.tx.all(_USED)}
    for number in range(2, network.num_addresses - 1):
        address = str(network[number])
        if address not in used and address not in avoid:
            await ctx.tx.run(_HOLD, address=address, server_id=server_id, assigned_at_ms=ctx.now_ms)
            return address
    resting = sorted(
        (since_ms, ipaddress.IPv4Address(address))
        for address, since_ms in used.items()
        if since_ms is not None and _is_given(network, address) and address not in avoid
    )
    rest_ms = ctx.settings.address_rest_minutes * MINUTE_MS
    for since_ms, rested in resting:
        if since_ms + rest_ms > ctx.now_ms:
            raise PoolUsedUp(str(network), since_ms + rest_ms)
        if await _take(ctx, str(rested), since_ms, server_id):
            return str(rested)
    raise PoolUsedUp(str(network))


async def find(ctx: Ctx, server_id: int) -> str | None:
    """The address that the server has."""
    return await ctx.tx.first(_OF_SERVER, of_server_id=server_id)


def _is_given(network: ipaddress.IPv4Network, address: str) -> bool:
    """Whether the pool of today has the address."""
    return 2 <= int(ipaddress.IPv4Address(address)) - int(network.network_address) < network.num_addresses - 1


async def _take(ctx: Ctx, address: str, since_ms: int, server_id: int) -> bool:
    """Assign an address that rests since then; False if it does not any more."""
    taken = {"server_id": server_id, "assigned_at_ms": ctx.now_ms, "released_at_ms": None}
    return bool(await ctx.tx.run(_TAKE, resting=address, since_ms=since_ms, **taken))


async def hold(ctx: Ctx, address: str, server_id: int) -> None:
    """Assign an address to a server, also one that rests.

    Raises `UniqueViolation` if another server has it, or the server has another.
    """
    used = {entry.address: entry.released_at_ms for entry in await ctx.tx.all(_USED)}
    since_ms = used.get(address)
    if since_ms is None or not await _take(ctx, address, since_ms, server_id):
        await ctx.tx.run(_HOLD, address=address, server_id=server_id, assigned_at_ms=ctx.now_ms)


async def release(ctx: Ctx, server_id: int) -> None:
    """Return the server's address to the pool, where it rests first."""
    await ctx.tx.run(_RELEASE, of_server_id=server_id, released_at_ms=ctx.now_ms)


async def free(ctx: Ctx, address: str) -> None:
    """Return an address to the pool, whoever holds it."""
    await ctx.tx.run(_FREE, of_address=address, released_at_ms=ctx.now_ms)


async def set_times_right(ctx: Ctx) -> None:
    """Have no address rest from a moment that is still to come: a clock that was ahead released it."""
    await ctx.tx.run(_CUT_REST, now_ms=ctx.now_ms, released_at_ms=ctx.now_ms)


async def assignments(ctx: Ctx) -> list[Assignment]:
    """All addresses that are held."""
    return await ctx.tx.all(_HELD)
