"""What goes over the wire about placement groups."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.http.forms import Listing
from vpsd.api.http.schemas import named
from vpsd.api.vps_org.schemas.server_forms import Name
from vpsd.core.clock import iso_utc
from vpsd.servers.groups import PlacementGroup, Policy

GroupPolicy = Annotated[Policy, named("PlacementPolicy"), Meta(description="spread: no two of its servers on one host")]


class PlacementGroupCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A group to make."""

    name: Name
    policy: Annotated[GroupPolicy, Meta(extra={"message": "Give spread: no two servers on one host."})] = Policy.SPREAD


class PlacementGroupPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What shall change; what is not sent stays."""

    name: Name | UnsetType = UNSET


class PlacementGroupView(msgspec.Struct):
    """A group of servers that are placed with regard to each other."""

    id: int
    uuid: str
    name: str
    policy: GroupPolicy
    servers: Annotated[int, Meta(description="How many are in it, those included that are being deleted")]
    created_at: str

    @classmethod
    def of(cls, group: PlacementGroup) -> "PlacementGroupView":
        """As it is read."""
        return cls(group.id, group.uuid, group.name, Policy(group.policy), group.servers, iso_utc(group.created_at_ms))


class PlacementGroupList(Listing):
    """A page of groups."""

    results: list[PlacementGroupView]
