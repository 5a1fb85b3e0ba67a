"""What workers write of a server besides its status. The caller has locked its row."""

from functools import cache
from typing import Any

import msgspec
from sqlalchemy import bindparam, case, func, update

from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.events import service as events
from vpsd.servers.capacity import give_back
from vpsd.servers.guest_report import Report
from vpsd.servers.models import BootSource, LockedServer, servers
from vpsd.servers.user_data import UserDataStatus


class _Gone(msgspec.Struct, frozen=True):
    host_id: int | None
    plan_id: int


_ONE = update(servers).where(servers.c.id == bindparam("id"))


@cache
def _set(*columns: str) -> Statement[Any]:
    return Statement(_ONE, columns)


# What is known of a disk, and of the guest that ran from it.
_OF_DISK = ("base", "kernel_cmdline", "firmware", "previous_boot", "unthawed_backup_id", "ip_address", "ssh_port")

_SET_STATUS_DETAIL = _set("status_detail")
_SET_BASE = _set("disk", "base", "kernel_cmdline", "firmware")
_SET_SEED = _set("seed_hostname")
_SET_PORT = _set("ssh_port")
_SET_PURGED = Statement(
    _ONE.where(servers.c.purged_at_ms.is_(None))
    .values(purged_at_ms=bindparam("now_ms"), placement_group_id=None)
    .returning(servers.c.host_id, servers.c.plan_id),
    into=_Gone,
)
_SET_BOOT = _set("disk", "os_id", "base", "kernel_cmdline", "firmware", "previous_boot")
_SET_NEXT_BACKUP = _set("next_backup_at_ms")
_SET_UNTHAWED = _set("unthawed_backup_id")
FROZEN_NOTE = "Frozen for "
"""How `status_detail` begins where it is about a freeze that nobody has seen the end of."""
_FORGET_FREEZE = Statement(
    _ONE.values(
        unthawed_backup_id=None,
        status_detail=case(
            (servers.c.status_detail.startswith(FROZEN_NOTE, autoescape=True), None), else_=servers.c.status_detail
        ),
    )
)
_SET_SUSPENDED = _set("suspended_from", "suspended_at_ms")
_CUT_SUSPENDED = Statement(update(servers).where(servers.c.suspended_at_ms > bindparam("now_ms")), ("suspended_at_ms",))
_SET_DISCARDED = Statement(
    _ONE.values(
        base=None,
        kernel_cmdline=None,
        firmware=None,
        disk=0,
        previous_boot=None,
        source_backup_id=None,
        provisioned_at_ms=None,
        user_data_status=case((servers.c.user_data.is_not(None), UserDataStatus.RUNNING.value)),
        user_data_error=None,
        ssh_host_keys=None,
    ),
    ("os_id", "base", "kernel_cmdline", "firmware", "disk", "previous_boot", "source_backup_id", "provisioned_at_ms")
    + ("user_data_status", "user_data_error", "ssh_host_keys"),
)
_FORGET_PREVIOUS = Statement(
    _ONE.where(servers.c.previous_host_id == bindparam("host_id")).values(previous_host_id=None)
)
_SET_HOST_KEYS = _set("ssh_host_keys")
_SET_USER_DATA = _set("user_data_status", "user_data_error")
_SET_BOOTED = Statement(
    _ONE.values(
        ip_address=bindparam("address"),
        provisioned_at_ms=func.coalesce(servers.c.provisioned_at_ms, bindparam("now_ms")),
    )
)


async def set_suspended_from(ctx: Ctx, server_id: int, status: str) -> None:
    """The status that the server goes back to when there is credit again; from now on there is none for it."""
    await ctx.tx.run(_SET_SUSPENDED, id=server_id, suspended_from=status, suspended_at_ms=ctx.now_ms)


async def set_times_right(ctx: Ctx) -> None:
    """Have no server be suspended from a moment that is still to come: a clock that was ahead said so."""
    await ctx.tx.run(_CUT_SUSPENDED, now_ms=ctx.now_ms, suspended_at_ms=ctx.now_ms)


async def set_discarded(ctx: Ctx, server_id: int, os_id: int) -> None:
    """The server has no disk any more, and is to be made from another operating system."""
    await ctx.tx.run(_SET_DISCARDED, id=server_id, os_id=os_id)


async def set_boot(ctx: Ctx, server_id: int, boot: BootSource, previous: BootSource | None) -> None:
    """What the server boots from now, and what it goes back to should it not boot from that."""
    back = None if previous is None else msgspec.json.encode(previous).decode()
    await ctx.tx.run(_SET_BOOT, id=server_id, **msgspec.structs.asdict(boot), previous_boot=back)


async def set_next_backup(ctx: Ctx, server_id: int, at_ms: int | None) -> None:
    """When the next automatic backup is due."""
    await ctx.tx.run(_SET_NEXT_BACKUP, id=server_id, next_backup_at_ms=at_ms)


async def set_status_detail(ctx: Ctx, server_id: int, detail: str | None) -> None:
    """What there is to say about a status that is not `error`."""
    await ctx.tx.run(_SET_STATUS_DETAIL, id=server_id, status_detail=detail)


async def set_unthawed(ctx: Ctx, server_id: int, backup_id: int) -> None:
    """The guest is about to be frozen for a backup."""
    await ctx.tx.run(_SET_UNTHAWED, id=server_id, unthawed_backup_id=backup_id)


async def clear_unthawed(ctx: Ctx, server_id: int) -> None:
    """The guest has been seen to write, or was not frozen."""
    await ctx.tx.run(_SET_UNTHAWED, id=server_id, unthawed_backup_id=None)


async def forget_freeze(ctx: Ctx, server_id: int) -> None:
    """The guest has booted anew: whatever was frozen before is not any more."""
    await ctx.tx.run(_FORGET_FREEZE, id=server_id)


async def set_base(
    ctx: Ctx, server_id: int, disk: int, base: str | None, kernel_cmdline: str | None, firmware: str | None
) -> None:
    """Which disk the server is to have, what that stands on, and what boots it."""
    boot = {"disk": disk, "base": base, "kernel_cmdline": kernel_cmdline, "firmware": firmware}
    await ctx.tx.run(_SET_BASE, id=server_id, **boot)


async def set_evacuated(ctx: Ctx, server: LockedServer, host_id: int, backup_id: int | None) -> None:
    """The server is on another host, where it has no disk yet: it is made from the backup, or, with None, as at first.

    Whatever the host before still has of it counts no more.
    """
    made = {"provisioned_at_ms": None, "source_backup_id": backup_id} if backup_id is not None else {}
    values = {
        **made,
        "host_id": host_id,
        "previous_host_id": server.host_id,
        "disk": 0,
        "updated_at_ms": ctx.now_ms,
        **dict.fromkeys(_OF_DISK),
    }
    await ctx.tx.run(_set(*values), id=server.id, **values)


async def set_moved(ctx: Ctx, server: LockedServer, host_id: int, address: str | None) -> bool:
    """The server is on another host, and not on the one before any more, which has room again; False if it was.

    `address` is what leads to it there; something of it may still be where it was.
    """
    if server.host_id is None or server.host_id == host_id:
        return False
    keeps = server.previous_host_id not in (None, host_id)  # where an older guest of it is still waited for
    values = {
        "host_id": host_id,
        "previous_host_id": server.previous_host_id if keeps else server.host_id,
        "ip_address": address,
        "updated_at_ms": ctx.now_ms,
    }
    await ctx.tx.run(_set(*values), id=server.id, **values)
    await give_back_room(ctx, server.host_id, server.plan_id)
    return True


async def forget_previous_host(ctx: Ctx, server_id: int, host_id: int) -> None:
    """Nothing of the server is left on that host."""
    await ctx.tx.run(_FORGET_PREVIOUS, id=server_id, host_id=host_id)


async def give_back_room(ctx: Ctx, host_id: int, plan_id: int) -> None:
    """A server of that plan is not on a host any more, or does not come there after all."""
    plan = await catalog.find_plan(ctx, plan_id)
    assert plan is not None
    await give_back(ctx, host_id, plan)


async def set_on_other_host(ctx: Ctx, server: LockedServer, host_id: int) -> None:
    """The server is on another host, which sees its disk; what was known of its guest is over."""
    guest = dict.fromkeys(("unthawed_backup_id", "ip_address", "ssh_port"))
    values = {"host_id": host_id, "previous_host_id": server.host_id, "updated_at_ms": ctx.now_ms, **guest}
    await ctx.tx.run(_set(*values), id=server.id, **values)


async def set_seed(ctx: Ctx, server_id: int, hostname: str) -> None:
    """The hostname in the seed on the host."""
    await ctx.tx.run(_SET_SEED, id=server_id, seed_hostname=hostname)


async def set_ssh_port(ctx: Ctx, server_id: int, port: int) -> None:
    """The port of the address that leads to the guest's port 22."""
    await ctx.tx.run(_SET_PORT, id=server_id, ssh_port=port)


async def set_booted(ctx: Ctx, server_id: int, address: str | None) -> None:
    """The server answers at its address; None: it has none that leads anywhere from here."""
    await ctx.tx.run(_SET_BOOTED, id=server_id, address=address, now_ms=ctx.now_ms)


async def set_purged(ctx: Ctx, server_id: int) -> None:
    """Nothing of the server is left on its host, which has room again; repeating it gives nothing back twice."""
    gone = await ctx.tx.first(_SET_PURGED, id=server_id, now_ms=ctx.now_ms)
    if gone is not None and gone.host_id is not None:
        await give_back_room(ctx, gone.host_id, gone.plan_id)


async def set_report(ctx: Ctx, server: LockedServer, report: Report) -> None:
    """What the guest said of its first boot, as far as it is new; the verdict on user data is final."""
    if report.host_keys:
        keys = msgspec.json.encode(report.host_keys).decode()
        if keys != server.ssh_host_keys:
            await ctx.tx.run(_SET_HOST_KEYS, id=server.id, ssh_host_keys=keys)
    if report.status is None or server.user_data_status != UserDataStatus.RUNNING:
        return
    await ctx.tx.run(_SET_USER_DATA, id=server.id, user_data_status=report.status, user_data_error=report.error)
    detail = report.status + ("" if report.error is None else f": {report.error}")
    await events.record(ctx.in_account(server.account_id), "server.user_data", "server", server.id, detail)
