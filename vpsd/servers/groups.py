"""Placement groups: servers of an account that are kept on different hosts, so that one machine's end takes one."""

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import and_, bindparam, delete, func, insert, select, union_all, update

from vpsd.accounts import service as accounts
from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.core.faults import Faults
from vpsd.core.pages import Page, PagedList, Part
from vpsd.errors import Busy, Fault, Invalid, NotFound, OverQuota
from vpsd.events import service as events
from vpsd.lifecycle import Command
from vpsd.operations.models import operations
from vpsd.servers.models import placement_groups, servers

_g, _s = placement_groups.c, servers.c
_OWN = _g.account_id == bindparam("account_id")
_IN_IT = and_(_s.placement_group_id == _g.id, _s.purged_at_ms.is_(None))
_COLUMNS = (_g.id, _g.uuid, _g.name, _g.policy, _g.created_at_ms)


class Policy(StrEnum):
    """How the servers of a group are placed."""

    SPREAD = "spread"  # no two on one host


class PlacementGroup(msgspec.Struct, frozen=True):
    """A group, and how many servers are in it."""

    id: int
    uuid: str
    name: str
    policy: str
    created_at_ms: int
    servers: int


class _Row(msgspec.Struct, frozen=True):
    id: int
    uuid: str
    name: str
    policy: str
    created_at_ms: int


class _Host(msgspec.Struct, frozen=True):
    host_id: int | None


_count = select(func.count()).select_from(servers).where(_IN_IT).correlate(placement_groups).scalar_subquery()
_SHOWN = select(*_COLUMNS, _count.label("servers")).where(_OWN)
_LIST = PagedList(_SHOWN, _g.id, into=PlacementGroup)
_ONE = Statement(_SHOWN.where(_g.id == bindparam("id")), into=PlacementGroup)
_LOCK = Statement(select(_g.id).where(_OWN, _g.id == bindparam("id")).with_for_update(), into=int)
_ADD = Statement(
    insert(placement_groups).returning(*_COLUMNS), ("uuid", "account_id", "name", "policy", "created_at_ms"), into=_Row
)
_TOTAL = Statement(select(func.count()).select_from(placement_groups).where(_OWN), into=int)
_RENAME = Statement(update(placement_groups).where(_OWN, _g.id == bindparam("id")), ("name",))
_DELETE = Statement(delete(placement_groups).where(_OWN, _g.id == bindparam("id")))
_OF_GROUP = (_s.placement_group_id == bindparam("id"), _s.purged_at_ms.is_(None))
_HOSTS = Statement(  # and those that its servers are on their way to
    union_all(
        select(_s.host_id).where(*_OF_GROUP),
        select(operations.c.argument)
        .join_from(servers, operations, operations.c.server_id == _s.id)
        .where(*_OF_GROUP, operations.c.command == Command.MIGRATE, operations.c.finished_at_ms.is_(None)),
    ),
    into=_Host,
)


class NewPlacementGroup(msgspec.Struct, frozen=True):
    """A group to make; what was not sent or could not be read is unset."""

    name: str | UnsetType = UNSET
    policy: str = Policy.SPREAD


class GroupChanges(msgspec.Struct, frozen=True):
    """What shall be different about a group; what is unset stays."""

    name: str | UnsetType = UNSET


class GroupTaken(Fault, frozen=True):
    """The account has a group of that name."""

    name: str

    def __str__(self) -> str:
        return f"The account already has a placement group {self.name!r}. Choose another name."


class TooManyGroups(OverQuota):
    """The account has as many groups as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"An account may have {limit} placement groups. Delete one that is no longer used.")


class GroupInUse(Busy):
    """There are servers in the group."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} servers are in this placement group. Delete them, and wait until they are gone.")


async def list_groups(ctx: Ctx, page: Page) -> Part[PlacementGroup]:
    """How many groups the account has, and a page of them, oldest first."""
    return await _LIST.read(ctx, page)


async def find(ctx: Ctx, group_id: int) -> PlacementGroup | None:
    """A group of the account."""
    return await ctx.tx.first(_ONE, account_id=ctx.account_id, id=group_id)


async def get(ctx: Ctx, group_id: int) -> PlacementGroup:
    """A group of the account; raises `NotFound`."""
    found = await find(ctx, group_id)
    if found is None:
        raise NotFound("placement group", group_id)
    return found


async def add(ctx: Ctx, new: NewPlacementGroup, faults: Faults) -> PlacementGroup:
    """Make a group; raises `Invalid` or `TooManyGroups`."""
    faults.check()
    await accounts.lock_account(ctx, ctx.account_id)  # so that two at once cannot take the last place
    limit = ctx.settings.placement_groups_per_account
    if (await ctx.tx.first(_TOTAL, account_id=ctx.account_id) or 0) >= limit:
        raise TooManyGroups(limit)
    values = {"uuid": ctx.ids.uuid(), "account_id": ctx.account_id, "created_at_ms": ctx.now_ms}
    try:
        row = await ctx.tx.first(_ADD, **values, name=new.name, policy=new.policy)
    except UniqueViolation:
        raise Invalid({"name": [GroupTaken(str(new.name))]}) from None
    assert row is not None
    await events.record(ctx, "placement_group.create", "placement_group", row.id, row.name)
    return PlacementGroup(**msgspec.structs.asdict(row), servers=0)


async def change(ctx: Ctx, group_id: int, wanted: GroupChanges, faults: Faults) -> PlacementGroup:
    """Change what is set; raises `Invalid` or `NotFound`."""
    faults.check()
    group = await get(ctx, group_id)
    if wanted.name is UNSET:
        return group
    try:
        await ctx.tx.run(_RENAME, account_id=ctx.account_id, id=group_id, name=wanted.name)
    except UniqueViolation:
        raise Invalid({"name": [GroupTaken(wanted.name)]}) from None
    await events.record(ctx, "placement_group.change", "placement_group", group_id, f"name {wanted.name}")
    return await get(ctx, group_id)


async def delete_group(ctx: Ctx, group_id: int) -> None:
    """Delete a group without servers; raises `NotFound` or `GroupInUse`."""
    await ctx.tx.first(_LOCK, account_id=ctx.account_id, id=group_id)  # nobody puts one into it meanwhile
    group = await get(ctx, group_id)
    if group.servers:
        raise GroupInUse(group.servers)
    await ctx.tx.run(_DELETE, account_id=ctx.account_id, id=group_id)
    await events.record(ctx, "placement_group.delete", "placement_group", group_id, group.name)


async def hosts_of(ctx: Ctx, group_id: int) -> frozenset[int] | None:
    """The hosts that the group's servers are on, until the transaction ends; None: the account has no such group."""
    if await ctx.tx.first(_LOCK, account_id=ctx.account_id, id=group_id) is None:
        return None
    found = await ctx.tx.all(_HOSTS, id=group_id)
    return frozenset(one.host_id for one in found if one.host_id is not None)
