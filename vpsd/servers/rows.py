"""Servers, as the worker reads and writes them: no account in between."""

import msgspec
from sqlalchemy import bindparam, func, or_, select, update

from vpsd.catalog.models import OperatingSystem, operating_systems, plans
from vpsd.core.db import Statement, Tx
from vpsd.servers.lifecycle import RULES, Command
from vpsd.servers.models import Made, Server, servers

_c = servers.c
_COLUMNS = [column for column in _c if column is not _c.user_data]
_SERVER = select(*_COLUMNS, plans.c.vcpus, plans.c.memory_mb, plans.c.storage_gb).join_from(servers, plans)
_BY_ID = Statement(_SERVER.where(_c.id == bindparam("the_id")))
_LOCK = Statement(_SERVER.where(_c.id == bindparam("the_id")).with_for_update(of=servers, key_share=True))
_PRESENT = Statement(_SERVER.where(_c.gone_at_ms.is_(None)).order_by(_c.id))
_SYSTEM = Statement(select(operating_systems).join_from(servers, operating_systems).where(_c.id == bindparam("the_id")))


def _set(*columns: str) -> Statement:
    return Statement(update(servers).where(_c.id == bindparam("the_id")), columns)


_SET_STATUS = _set("status", "error", "updated_at_ms")
_SET_BASE = _set("base", "kernel_cmdline")
_SET_SEED = _set("seed_hostname")
_SET_PORT = _set("ssh_port")
_SET_GONE = _set("gone_at_ms")
_SET_DISCARDED = Statement(
    update(servers)
    .where(_c.id == bindparam("the_id"))
    .values(
        os_id=bindparam("b_os"),
        base=None,
        kernel_cmdline=None,
        disk=0,
        replaced=None,
        source_backup_id=None,
        provisioned_at_ms=None,
    )
)
_SET_MADE = _set("disk", "os_id", "base", "kernel_cmdline", "replaced")
_SET_NEXT_BACKUP = _set("next_backup_at_ms")
_BACKUP_DUE = Statement(
    select(_c.id)
    .where(
        _c.next_backup_at_ms <= bindparam("the_now"),
        _c.deleted_at_ms.is_(None),
        or_(*(_c.status == status for status in RULES[Command.BACKUP_DAILY].begins_from)),
    )
    .order_by(_c.id)
)
_SET_SUSPENDED = _set("suspended_from", "suspended_at_ms")
_OF_ACCOUNT = Statement(
    _SERVER.where(_c.account_id == bindparam("the_account"), _c.deleted_at_ms.is_(None)).order_by(_c.id)
)
_WITH_STATUS = Statement(
    select(_c.account_id).where(_c.status == bindparam("the_status"), _c.deleted_at_ms.is_(None)).distinct()
)
_USER_DATA = Statement(select(_c.user_data).where(_c.id == bindparam("the_id")))
_OVERDUE = Statement(select(_c.id).where(_c.delete_at_ms <= bindparam("the_time"), _c.deleted_at_ms.is_(None)))
_SET_UP = Statement(
    update(servers)
    .where(_c.id == bindparam("the_id"))
    .values(
        ip_address=bindparam("b_address"), provisioned_at_ms=func.coalesce(_c.provisioned_at_ms, bindparam("b_now"))
    )
)


async def get(tx: Tx, server_id: int) -> Server:
    """A server that must exist."""
    server = await tx.first(Server, _BY_ID, the_id=server_id)
    assert server is not None
    return server


async def lock(tx: Tx, server_id: int) -> Server:
    """A server that must exist, kept from others until the transaction ends."""
    server = await tx.first(Server, _LOCK, the_id=server_id)
    assert server is not None
    return server


async def present(tx: Tx) -> list[Server]:
    """Every server of which something may be on a host."""
    return await tx.all(Server, _PRESENT)


async def of_account(tx: Tx, account_id: int) -> list[Server]:
    """Every server of an account that it has not deleted."""
    return await tx.all(Server, _OF_ACCOUNT, the_account=account_id)


async def accounts_with(tx: Tx, status: str) -> list[int]:
    """Accounts that have a server in that status."""
    return await tx.all(int, _WITH_STATUS, the_status=status)


async def overdue(tx: Tx, now_ms: int) -> list[int]:
    """Servers whose deletion cannot be undone any more."""
    return await tx.all(int, _OVERDUE, the_time=now_ms)


async def user_data(tx: Tx, server_id: int) -> str | None:
    """What the customer gave the server to do at its first boot."""
    return await tx.first(lambda text: text, _USER_DATA, the_id=server_id)


async def operating_system(tx: Tx, server_id: int) -> OperatingSystem:
    """What the server starts from."""
    system = await tx.first(OperatingSystem, _SYSTEM, the_id=server_id)
    assert system is not None
    return system


async def set_status(tx: Tx, server_id: int, status: str, error: str | None, now_ms: int) -> None:
    """Where the server came to rest, and why if that is `error`."""
    await tx.run(_SET_STATUS, the_id=server_id, status=status, error=error, updated_at_ms=now_ms)


async def set_suspended(tx: Tx, server_id: int, status: str, now_ms: int) -> None:
    """The status that the server goes back to when there is credit again, and since when there is none for it."""
    await tx.run(_SET_SUSPENDED, the_id=server_id, suspended_from=status, suspended_at_ms=now_ms)


async def set_discarded(tx: Tx, server_id: int, os_id: int) -> None:
    """The server has no disk any more, and another operating system is to be made for it."""
    await tx.run(_SET_DISCARDED, the_id=server_id, b_os=os_id)


async def set_made(tx: Tx, server_id: int, made: Made, replaced: Made | None) -> None:
    """What the server is made from now, and what it goes back to should it not boot from that."""
    back = None if replaced is None else msgspec.json.encode(replaced).decode()
    await tx.run(_SET_MADE, the_id=server_id, **msgspec.structs.asdict(made), replaced=back)


async def set_next_backup(tx: Tx, server_id: int, at_ms: int | None) -> None:
    """When the next automatic backup is due."""
    await tx.run(_SET_NEXT_BACKUP, the_id=server_id, next_backup_at_ms=at_ms)


async def backup_due(tx: Tx, now_ms: int) -> list[int]:
    """Servers whose automatic backup is due."""
    return await tx.all(int, _BACKUP_DUE, the_now=now_ms)


async def set_base(tx: Tx, server_id: int, base: str | None, kernel_cmdline: str | None) -> None:
    """What the server's disk stands on."""
    await tx.run(_SET_BASE, the_id=server_id, base=base, kernel_cmdline=kernel_cmdline)


async def set_seed(tx: Tx, server_id: int, hostname: str) -> None:
    """The hostname that the seed on the host says."""
    await tx.run(_SET_SEED, the_id=server_id, seed_hostname=hostname)


async def set_ssh_port(tx: Tx, server_id: int, port: int) -> None:
    """The port of the address that leads to the guest's port 22."""
    await tx.run(_SET_PORT, the_id=server_id, ssh_port=port)


async def set_up(tx: Tx, server_id: int, address: str, now_ms: int) -> None:
    """The server answers at its address."""
    await tx.run(_SET_UP, the_id=server_id, b_address=address, b_now=now_ms)


async def set_gone(tx: Tx, server_id: int, now_ms: int) -> None:
    """Nothing of the server is left."""
    await tx.run(_SET_GONE, the_id=server_id, gone_at_ms=now_ms)
