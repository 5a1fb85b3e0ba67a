"""The placement groups section: vpsd's own, in the style of the others."""

from litestar import Router

from vpsd.api.http.forms import Form, PageQuery, Query
from vpsd.api.http.routes import delete, get, patch, post
from vpsd.api.vps_org.schemas.placement_groups import (
    PlacementGroupCreate,
    PlacementGroupList,
    PlacementGroupPatch,
    PlacementGroupView,
)
from vpsd.core.context import Ctx
from vpsd.errors import Busy, OverQuota
from vpsd.servers import groups
from vpsd.servers.groups import GroupChanges, NewPlacementGroup


@get("/", "placement_group_list", "List placement groups", needs="servers:read")
async def list_groups(ctx: Ctx, query: Query[PageQuery]) -> PlacementGroupList:
    """All placement groups of the account, newest last."""
    part = await groups.list_groups(ctx, query.validate().page)
    return PlacementGroupList.of(query, part, [PlacementGroupView.of(group) for group in part.rows])


@post("/", "placement_group_create", "Make a placement group", needs="servers:*", raises=(OverQuota,))
async def add(ctx: Ctx, form: Form[PlacementGroupCreate]) -> PlacementGroupView:
    """Make a group; servers join it by `placement_group_id` when they are made, and each goes to a host of its own."""
    return PlacementGroupView.of(await groups.add(ctx, form.plain(NewPlacementGroup), form.faults))


@get("/{group_id:int}/", "placement_group_get", "Get a placement group", needs="servers:read")
async def get_group(ctx: Ctx, group_id: int) -> PlacementGroupView:
    """One placement group."""
    return PlacementGroupView.of(await groups.get(ctx, group_id))


@patch("/{group_id:int}/", "placement_group_patch", "Rename a placement group", needs="servers:*")
async def change(ctx: Ctx, group_id: int, form: Form[PlacementGroupPatch]) -> PlacementGroupView:
    """Change only what is sent: where its servers are stays."""
    return PlacementGroupView.of(await groups.change(ctx, group_id, form.plain(GroupChanges), form.faults))


@delete("/{group_id:int}/", "placement_group_delete", "Delete a placement group", needs="servers:*", raises=(Busy,))
async def remove(ctx: Ctx, group_id: int) -> None:
    """Delete a group that has no servers any more."""
    await groups.delete_group(ctx, group_id)


router = Router(
    "/placement-groups", route_handlers=[list_groups, add, get_group, change, remove], tags=["Placement groups"]
)
