"""Addresses: given out of the pool, held until the server is truly gone."""

import ipaddress

import msgspec
from sqlalchemy import bindparam, delete, insert, select

from vpsd.addresses.models import addresses
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx
from vpsd.errors import Unavailable

_ALL = Statement(select(addresses.c.address, addresses.c.server_id))
_OF_SERVER = Statement(select(addresses.c.address).where(addresses.c.server_id == bindparam("the_server")))
_ADD = Statement(insert(addresses), ("address", "server_id", "assigned_at_ms"))
_RELEASE = Statement(delete(addresses).where(addresses.c.server_id == bindparam("the_server")))


class Assignment(msgspec.Struct, frozen=True):
    """Who holds an address."""

    address: str
    server_id: int


async def assign(tx: Tx, clock: Clock, network: ipaddress.IPv4Network, server_id: int) -> str:
    """The server's address, given now if it has none: the lowest free one, without the first two and the last.

    Raises `Unavailable` when the pool is used up, `UniqueViolation` when another took the same one at the same moment.
    """
    held = await tx.first(str, _OF_SERVER, the_server=server_id)
    if held is not None:
        return held
    taken = {assignment.address for assignment in await assignments(tx)}
    for number in range(2, network.num_addresses - 1):
        address = str(network[number])
        if address not in taken:
            await tx.run(_ADD, address=address, server_id=server_id, assigned_at_ms=clock.now_ms())
            return address
    raise Unavailable(f"The address pool {network} is used up; the operator can widen VPSD_ADDRESS_POOL.")


async def release(tx: Tx, server_id: int) -> None:
    """Give the server's address back to the pool."""
    await tx.run(_RELEASE, the_server=server_id)


async def assignments(tx: Tx) -> list[Assignment]:
    """Every address that is held."""
    return await tx.all(Assignment, _ALL)
