"""What goes over the wire between vpsd and its operator."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.api.vps_org.schemas.servers import ActionAccepted
from vpsd.servers.moving import Move


class ServerMigrate(msgspec.Struct, forbid_unknown_fields=True):
    """Where a server shall be moved, and how."""

    host: Annotated[
        Annotated[str, Meta(max_length=63, min_length=1)] | UnsetType,
        Meta(description="Name of the host that it goes to; by default one is chosen, as for a new server"),
    ] = UNSET
    cold: Annotated[
        bool, Meta(description="Where it cannot move while it runs, it may be stopped, moved, and started again")
    ] = False


class ServerMigration(ActionAccepted):
    """A server is being moved."""

    from_host: Annotated[str, Meta(description="Name of the host that it is on")]
    to_host: Annotated[str, Meta(description="Name of the host that it goes to, where it has its room from now on")]

    @classmethod
    def of_move(cls, move: Move) -> "ServerMigration":
        """As the service answers."""
        return cls.of(move.accepted, from_host=move.from_host, to_host=move.to_host)
