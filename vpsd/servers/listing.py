"""An account's servers as a list: narrowed, searched, ordered, and read page by page."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import ColumnElement, Select, and_, bindparam, func, or_, select, tuple_

from vpsd.catalog import service as catalog
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.pages import ForeignCursor, Page, Part, Position
from vpsd.core.tables import alphabetical, alphabetical_key, total
from vpsd.lifecycle import Status
from vpsd.servers import groups
from vpsd.servers.faults import UnknownPlacementGroup
from vpsd.servers.models import server_counts, servers
from vpsd.servers.queries import OWN, SUMMARY, WITH_CATALOG, ListedServer, unknown_location
from vpsd.servers.tags import HAS_TAG, TAG_LIKE, key_and_value

_c, _counts = servers.c, server_counts.table.c


class ServerFilter(msgspec.Struct, frozen=True):
    """What a list of servers can be narrowed to: one of these statuses, a part of what it is called, and so on."""

    status: Sequence[Status] | UnsetType = UNSET
    location: str | UnsetType = UNSET
    placement_group_id: int | UnsetType = UNSET
    tag: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    q: str | UnsetType = UNSET


class _Sort(msgspec.Struct, frozen=True):
    """What a list of servers is ordered by, before the ids: the column, its type, and the key of a server."""

    columns: tuple[Any, ...]
    kind: type
    key: Callable[[ListedServer], str | int | None]


_SORTS: dict[str, _Sort] = {
    "id": _Sort((), type(None), lambda _: None),
    "name": _Sort((alphabetical(_c.name),), str, lambda server: alphabetical_key(server.name)),
    "hostname": _Sort((alphabetical(_c.hostname),), str, lambda server: alphabetical_key(server.hostname)),
    "status": _Sort((alphabetical(_c.status),), str, lambda server: alphabetical_key(server.status)),
    "location": _Sort((alphabetical(_c.location),), str, lambda server: alphabetical_key(server.location)),
    "created_at": _Sort((_c.created_at_ms,), int, lambda server: server.created_at_ms),
    "updated_at": _Sort((_c.updated_at_ms,), int, lambda server: server.updated_at_ms),
}
SORTS = tuple(_SORTS)
_STATUS_NAMES = [f"status_{number}" for number in range(len(Status))]


def _filters(columns: Any) -> dict[str, ColumnElement[bool]]:
    """By status and location, of servers or of their counts."""
    return {
        "statuses": or_(*(columns.status == bindparam(name) for name in _STATUS_NAMES)),
        "status": columns.status == bindparam(_STATUS_NAMES[0]),  # of one the index has them in order
        "location": columns.location == bindparam("location"),
    }


_FILTERS_OF_COUNTS = _filters(_counts)
_FILTERS = {
    **_filters(_c),
    "placement_group_id": and_(_c.placement_group_id == bindparam("placement_group_id"), _c.purged_at_ms.is_(None)),
    "tag": HAS_TAG,
    "name": _c.name == bindparam("name"),
    "q": or_(
        *(column.ilike(bindparam("q"), escape="\\") for column in (_c.name, _c.hostname, _c.ip_address)),
        TAG_LIKE,
    ),
}


def _narrowed(statement: Select[Any], filters: tuple[str, ...]) -> Select[Any]:
    return statement.where(OWN, *(_FILTERS[name] for name in filters))


@lru_cache(maxsize=256)
def _count(filters: tuple[str, ...]) -> Statement[int]:
    if _FILTERS_OF_COUNTS.keys() >= set(filters):
        counted = select(total(_counts.servers)).where(_counts.account_id == bindparam("account_id"))
        return Statement(counted.where(*(_FILTERS_OF_COUNTS[name] for name in filters)), into=int)
    return Statement(_narrowed(select(func.count()).select_from(servers), filters), into=int)


@lru_cache(maxsize=1024)
def _page(filters: tuple[str, ...], sort: str, *, onwards: bool) -> Statement[ListedServer]:
    """A page of servers, by its number or `onwards` from a position; `sort` is a field, `-` before it: backwards."""
    columns = (*_SORTS[sort.removeprefix("-")].columns, _c.id)
    backwards = sort.startswith("-")
    order = [column.desc() if backwards else column.asc() for column in columns]
    ids = _narrowed(select(_c.id), filters).order_by(*order).limit(bindparam("limit"))
    if onwards:
        here, last = tuple_(*columns), tuple_(*map(bindparam, ("after_key", "after_id")[-len(columns) :]))
        ids = ids.where(here < last if backwards else here > last)
    else:
        ids = ids.offset(bindparam("offset"))
    # The ids of the page first, from the index alone: joining what an offset skips would cost ten times as much.
    return Statement(
        select(*SUMMARY).select_from(WITH_CATALOG).where(_c.id.in_(ids.correlate(None))).order_by(*order),
        into=ListedServer,
    )


async def list_servers(ctx: Ctx, wanted: ServerFilter, sort: str, page: Page, faults: Faults) -> Part[ListedServer]:
    """A page of the account's servers, in the order of one of `SORTS`, backwards with `-`; raises `Invalid`.

    Those that are alike in it are in the order of their ids.
    """
    order = _SORTS[sort.removeprefix("-")]
    if page.after is not None and not isinstance(page.after.key, order.kind):
        faults.add("cursor", ForeignCursor())
    if wanted.location is not UNSET and await catalog.find_location(ctx, wanted.location) is None:
        faults.add("location", await unknown_location(ctx, wanted.location))
    group_id = wanted.placement_group_id
    if group_id is not UNSET and await groups.find(ctx, group_id) is None:
        faults.add("placement_group_id", UnknownPlacementGroup(group_id))
    faults.check()
    values = _filter_values(wanted)
    filters = tuple(
        "statuses" if name == "status" and len(value) > 1 else name
        for name, value in msgspec.structs.asdict(wanted).items()
        if value is not UNSET
    )
    count = await ctx.tx.first(_count(filters), account_id=ctx.account_id, **values) or 0
    statement = _page(filters, sort, onwards=page.after is not None)
    if page.after is not None:
        values |= {"after_id": page.after.id, "after_key": page.after.key}
    values |= {"limit": page.size + 1, "offset": page.offset}
    found = await ctx.tx.all(statement, account_id=ctx.account_id, **values)
    return Part.of(page, count, found, lambda server: Position(server.id, order.key(server)))


def _filter_values(wanted: ServerFilter) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(wanted, name) for name in ("location", "placement_group_id", "name")}
    if wanted.status is not UNSET:
        values |= dict.fromkeys(_STATUS_NAMES, wanted.status[0])
        values |= dict(zip(_STATUS_NAMES, dict.fromkeys(wanted.status), strict=False))  # each once, and so all
    if wanted.tag is not UNSET:
        values["tag_key"], values["tag_value"] = key_and_value(wanted.tag)
    if wanted.q is not UNSET:
        values["q"] = f"%{_literally(wanted.q)}%"
    return values


def _literally(text: str) -> str:
    """For LIKE, whose wildcards are escaped."""
    return re.sub(r"([\\%_])", r"\\\1", text)
