"""Servers, read: scoped to the account of the context for customers, and of all accounts for workers and operators."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import and_, bindparam, or_, select

from vpsd.accounts import service as accounts
from vpsd.billing import credit, prices
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem, Plan, operating_systems, plans
from vpsd.core.clock import month_name
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.pages import Page, Part
from vpsd.core.units import MINUTE_MS
from vpsd.errors import NotFound
from vpsd.hosts import service as hosts
from vpsd.hosts.models import hosts as host_table
from vpsd.hosts.placement import Room, Wish, refusal
from vpsd.lifecycle import RULES, Command, Status
from vpsd.metrics.models import traffic, usage
from vpsd.operations import history as operation_history
from vpsd.operations.models import Operation
from vpsd.servers.faults import UnknownLocation
from vpsd.servers.guest_report import HostKey
from vpsd.servers.models import LockedServer, Server, is_suspended, servers
from vpsd.servers.tags import TAGS, tag_list

_FRESH_MS = 2 * MINUTE_MS  # figures older than this say nothing about now

_c = servers.c
OWN = and_(_c.account_id == bindparam("account_id"), _c.deleted_at_ms.is_(None))
_OWN_ONE = and_(OWN, _c.id == bindparam("id"))
WITH_CATALOG = servers.join(plans, plans.c.id == _c.plan_id).join(operating_systems, operating_systems.c.id == _c.os_id)
SUMMARY = (
    *(_c.id, _c.uuid, _c.name, _c.hostname, _c.status, _c.status_detail, _c.ip_address, _c.location, _c.plan_id),
    *(plans.c.name.label("plan_name"), plans.c.vcpus, plans.c.memory_mb, plans.c.storage_gb),
    *(_c.os_id, operating_systems.c.name.label("os_name"), TAGS.label("tags"), _c.protected, _c.purge_due_at_ms),
    *(_c.created_at_ms, _c.updated_at_ms),
)


class ListedServer(msgspec.Struct, frozen=True):
    """A server in a list, with what it is made of."""

    id: int
    uuid: str
    name: str
    hostname: str
    status: str
    status_detail: str | None
    ip_address: str | None
    location: str
    plan_id: int
    plan_name: str
    vcpus: int
    memory_mb: int
    storage_gb: int
    os_id: int
    os_name: str
    tags: str
    protected: bool
    purge_due_at_ms: int | None
    created_at_ms: int
    updated_at_ms: int

    @property
    def tag_list(self) -> list[str]:
        """The tags, in their order."""
        return tag_list(self.tags)


class DetailedServer(ListedServer, frozen=True):
    """A server in full. Figures are None where nothing was measured lately, traffic is of the present month."""

    bandwidth_gb: int
    backups_enabled: bool
    freeze_for_backups: bool
    ssh_port: int | None
    error: str | None
    user_data_status: str | None
    user_data_error: str | None
    ssh_host_keys: str | None
    placement_group_id: int | None
    sampled_at_ms: int | None
    cpu_percent: float | None
    memory_used_mb: int | None
    disk_used_bytes: int | None
    received_bytes: int | None
    sent_bytes: int | None

    @property
    def host_keys(self) -> list[HostKey] | None:
        """The keys of its SSH server; the column is their JSON."""
        return None if self.ssh_host_keys is None else msgspec.json.decode(self.ssh_host_keys, type=list[HostKey])

    @property
    def transferred_bytes(self) -> int | None:
        """The larger of in and out."""
        if self.received_bytes is None or self.sent_bytes is None:
            return None
        return max(self.received_bytes, self.sent_bytes)


class ServerLife(msgspec.Struct, frozen=True):
    """When a server first worked, and when it was deleted for good."""

    id: int
    provisioned_at_ms: int | None
    deleted_at_ms: int | None


class Quote(msgspec.Struct, frozen=True):
    """What a server costs, and where it runs or would run."""

    price_monthly_micros: int
    price_hourly_micros: int
    location: str
    host: str | None  # None: no host is known yet


class PlanOffer(msgspec.Struct, frozen=True):
    """A plan, what it costs, and the codes of the locations where there is room for one now."""

    plan: Plan
    locations: list[str]
    price_hourly_micros: int


class _ServerName(msgspec.Struct, frozen=True):
    id: int
    name: str


_DETAIL = Statement(
    select(
        *SUMMARY,
        *(plans.c.bandwidth_gb, _c.backups_enabled, _c.freeze_for_backups, _c.ssh_port, _c.error),
        *(_c.user_data_status, _c.user_data_error, _c.ssh_host_keys, _c.placement_group_id),
        *(usage.c.sampled_at_ms, usage.c.cpu_percent, usage.c.memory_used_mb, usage.c.disk_used_bytes),
        *(traffic.c.received_bytes, traffic.c.sent_bytes),
    )
    .select_from(
        WITH_CATALOG.outerjoin(usage, usage.c.server_id == _c.id).outerjoin(
            traffic, and_(traffic.c.server_id == _c.id, traffic.c.month == bindparam("month"))
        )
    )
    .where(_OWN_ONE),
    into=DetailedServer,
)
_EXISTS = Statement(select(_c.id).where(_OWN_ONE), into=int)
_COLUMNS = [column for column in _c if column is not _c.user_data]
_SERVER = select(*_COLUMNS, plans.c.vcpus, plans.c.memory_mb, plans.c.storage_gb).join_from(servers, plans)
_ROW = Statement(_SERVER.where(_c.id == bindparam("id")), into=Server)
# Without a join: PostgreSQL compares a row that it had to wait for with the old rows of the other tables.
_LOCK = select(*_COLUMNS).with_for_update(key_share=True)
_LOCK_ANY = Statement(_LOCK.where(_c.id == bindparam("id")), into=LockedServer)
_LOCK_OWN = Statement(_LOCK.where(_OWN_ONE), into=LockedServer)
_HOST_NAME = Statement(
    select(host_table.c.name)
    .join_from(servers, host_table, host_table.c.id == _c.host_id)
    .where(_c.id == bindparam("id")),
    into=str,
)
_ACCOUNT_OF = Statement(select(_c.account_id).where(_c.id == bindparam("id"), _c.deleted_at_ms.is_(None)), into=int)
_present = _SERVER.where(_c.purged_at_ms.is_(None)).order_by(_c.id)
_PRESENT = Statement(_present, into=Server)
_PRESENT_ON = Statement(_present.where(_c.host_id == bindparam("host_id")), into=Server)
_OF_ACCOUNT = Statement(_SERVER.where(OWN).order_by(_c.id), into=Server)
_OF_SUSPENDED = Statement(select(_c.account_id).where(is_suspended), into=int)
_PURGE_DUE = Statement(
    select(_c.id).where(_c.purge_due_at_ms <= bindparam("now_ms"), _c.deleted_at_ms.is_(None)), into=int
)
_BACKUP_DUE = Statement(
    select(_c.id)
    .where(
        _c.next_backup_at_ms <= bindparam("now_ms"),
        _c.deleted_at_ms.is_(None),
        or_(*(_c.status == status for status in sorted(RULES[Command.BACKUP_DAILY].begins_from))),
    )
    .order_by(_c.next_backup_at_ms, _c.id),  # as the index has them: nothing else is read
    into=int,
)
_BACKUP_BEYOND = Statement(
    select(_c.id).where(_c.next_backup_at_ms > bindparam("at_ms"), _c.deleted_at_ms.is_(None)).order_by(_c.id), into=int
)
_USER_DATA = Statement(select(_c.user_data).where(_c.id == bindparam("id")), into=str)
_SYSTEM = Statement(
    select(operating_systems).join_from(servers, operating_systems).where(_c.id == bindparam("id")),
    into=OperatingSystem,
)
_NAMES = Statement(
    select(_c.id, _c.name).where(
        _c.account_id == bindparam("account_id"), _c.id >= bindparam("first_id"), _c.id <= bindparam("last_id")
    ),
    into=_ServerName,
)
_LIVES = Statement(
    select(_c.id, _c.provisioned_at_ms, _c.deleted_at_ms)
    .where(_c.account_id == bindparam("account_id"))
    .order_by(_c.id),
    into=ServerLife,
)


async def unknown_location(ctx: Ctx, code: str) -> UnknownLocation:
    """The fault for a location code that does not exist."""
    return UnknownLocation(code, [location.code for location in await catalog.offered_locations(ctx)])


async def get(ctx: Ctx, server_id: int) -> DetailedServer:
    """A server of the account in full; raises `NotFound`."""
    now_ms = ctx.now_ms
    found = await ctx.tx.first(_DETAIL, account_id=ctx.account_id, id=server_id, month=month_name(now_ms))
    if found is None:
        raise NotFound("server", server_id)
    sampled_ms = found.sampled_at_ms
    if sampled_ms is None or (found.status == Status.ACTIVE and abs(now_ms - sampled_ms) <= _FRESH_MS):
        return found
    return msgspec.structs.replace(found, cpu_percent=None, memory_used_mb=None, disk_used_bytes=None)


async def lock_server(ctx: Ctx, server_id: int) -> LockedServer:
    """A server of the account, kept from others until the transaction ends; raises `NotFound`.

    For a customer the account is locked before it: what is open in it may be counted next.
    """
    if ctx.actor.kind == "token":
        await accounts.lock_account(ctx, ctx.account_id)
    server = await ctx.tx.first(_LOCK_OWN, account_id=ctx.account_id, id=server_id)
    if server is None:
        raise NotFound("server", server_id)
    return server


async def history(ctx: Ctx, server_id: int, page: Page) -> Part[Operation]:
    """How many operations a server of the account had, and a page of them, oldest first; raises `NotFound`."""
    if await ctx.tx.first(_EXISTS, account_id=ctx.account_id, id=server_id) is None:
        raise NotFound("server", server_id)
    return await operation_history.history(ctx, server_id, page)


async def names(ctx: Ctx, ids: Sequence[int]) -> dict[int, str]:
    """The names of servers of the account by id, deleted ones included; of others between them as well."""
    span = {"first_id": min(ids, default=0), "last_id": max(ids, default=0)}
    return {server.id: server.name for server in await ctx.tx.all(_NAMES, account_id=ctx.account_id, **span)}


async def lives(ctx: Ctx) -> list[ServerLife]:
    """From when to when each server of the account worked, deleted ones included."""
    return await ctx.tx.all(_LIVES, account_id=ctx.account_id)


async def quote(ctx: Ctx, server_id: int) -> Quote:
    """What a server of the account costs, and where it is; raises `NotFound`."""
    server = await get(ctx, server_id)
    monthly = await credit.price_of(ctx, server_id)
    host = await ctx.tx.first(_HOST_NAME, id=server_id)
    return Quote(monthly, prices.price_hourly(monthly), server.location, host)


async def plan_offers(ctx: Ctx, location: str | UnsetType, faults: Faults) -> list[PlanOffer]:
    """The plans on offer, or those of them that there is room for at a location; raises `Invalid`."""
    if location is not UNSET and await catalog.find_location(ctx, location) is None:
        faults.add("location", await unknown_location(ctx, location))
    faults.check()
    offers = await _offers(ctx, await catalog.offered_plans(ctx))
    return [offer for offer in offers if location is UNSET or location in offer.locations]


async def plan_offer(ctx: Ctx, plan_id: int) -> PlanOffer:
    """A plan, also one that is no longer on offer; raises `NotFound`."""
    plan = await catalog.find_plan(ctx, plan_id)
    if plan is None:
        raise NotFound("plan", plan_id)
    return (await _offers(ctx, [plan]))[0]


async def _offers(ctx: Ctx, found: list[Plan]) -> list[PlanOffer]:
    fitting: dict[int, list[str]] = {plan.id: [] for plan in found}
    every: list[Room] | None = None
    is_new = False  # the first worker has yet to start

    def has_room(rooms: list[Room], wish: Wish) -> bool:
        return any(refusal(room, wish, ctx.settings) is None for room in rooms)

    for code in [location.code for location in await catalog.offered_locations(ctx)]:
        emptiest = await hosts.emptiest(ctx, code)
        for wish in [Wish(plan, code) for plan in found if plan.available]:
            fits = has_room(emptiest, wish)
            if not fits and every is None:
                every = await hosts.rooms(ctx)
                is_new = not every and not await hosts.had_any(ctx)
            if fits or is_new or has_room(every or [], wish):
                fitting[wish.plan.id].append(code)
    return [PlanOffer(plan, fitting[plan.id], prices.price_hourly(plan.price_monthly_micros)) for plan in found]


async def account_of(ctx: Ctx, server_id: int) -> int:
    """For the operator: the account of a server that is not deleted; raises `NotFound`."""
    found = await ctx.tx.first(_ACCOUNT_OF, id=server_id)
    if found is None:
        raise NotFound("server", server_id)
    return found


async def row(ctx: Ctx, server_id: int) -> Server:
    """A server that must exist, of any account."""
    server = await ctx.tx.first(_ROW, id=server_id)
    assert server is not None
    return server


async def lock(ctx: Ctx, server_id: int) -> LockedServer:
    """A server that must exist, of any account, kept from others until the transaction ends."""
    server = await ctx.tx.first(_LOCK_ANY, id=server_id)
    assert server is not None
    return server


async def find_row(ctx: Ctx, server_id: int) -> Server | None:
    """A server of any account, also one that is gone; None where there never was one with that id."""
    return await ctx.tx.first(_ROW, id=server_id)


async def present(ctx: Ctx, host_id: int | None = None) -> list[Server]:
    """Every server of which something may be on a host, or on that one."""
    if host_id is None:
        return await ctx.tx.all(_PRESENT)
    return await ctx.tx.all(_PRESENT_ON, host_id=host_id)


async def of_account(ctx: Ctx, account_id: int) -> list[Server]:
    """Every server of an account that is not deleted."""
    return await ctx.tx.all(_OF_ACCOUNT, account_id=account_id)


async def accounts_with_suspended(ctx: Ctx) -> set[int]:
    """Accounts that have suspended servers."""
    return set(await ctx.tx.all(_OF_SUSPENDED))


async def purge_due(ctx: Ctx) -> list[int]:
    """Servers whose deletion cannot be undone any more."""
    return await ctx.tx.all(_PURGE_DUE, now_ms=ctx.now_ms)


async def backup_due(ctx: Ctx) -> list[int]:
    """Servers whose automatic backup is due."""
    return await ctx.tx.all(_BACKUP_DUE, now_ms=ctx.now_ms)


async def backup_beyond(ctx: Ctx, at_ms: int) -> list[int]:
    """Servers whose next automatic backup is due only after that."""
    return await ctx.tx.all(_BACKUP_BEYOND, at_ms=at_ms)


async def user_data(ctx: Ctx, server_id: int) -> str | None:
    """What the customer gave the server to do at its first boot."""
    return await ctx.tx.first(_USER_DATA, id=server_id)


async def operating_system(ctx: Ctx, server_id: int) -> OperatingSystem:
    """What the server starts from."""
    system = await ctx.tx.first(_SYSTEM, id=server_id)
    assert system is not None
    return system
