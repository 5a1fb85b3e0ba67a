"""What a dry run is answered with, whichever request is tried."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vpsd.api.vps_org.schemas.amounts import Amount, amount
from vpsd.api.vps_org.schemas.servers import ActionAccepted, ServerCreated
from vpsd.core.context import Ctx
from vpsd.servers import queries


class Price(msgspec.Struct):
    """What a server costs, in credits."""

    monthly: Amount
    hourly: Annotated[Amount, Meta(description="The month's / 672, to a thousandth; a month costs at most its price")]
    currency: str


class Placement(msgspec.Struct):
    """Where a server would run or runs."""

    location: str
    host: Annotated[str | None, Meta(description="Null where no host is known yet")]


class DryRun(msgspec.Struct):
    """What a request would come to. Nothing was changed."""

    dry_run: bool
    answer: Annotated[
        dict[str, Any], Meta(description="The answer it would give; ids and secrets are made only when it is done")
    ]
    price: Price
    placement: Placement


async def preview(ctx: Ctx, answer: ServerCreated | ActionAccepted, *, host: str | None = None) -> DryRun:
    """What would be answered, what the server would cost, and where it is, or would be: at that host.

    The transaction is rolled back afterwards.
    """
    shown: dict[str, Any] = {**msgspec.to_builtins(answer), "operation": None}
    if isinstance(answer, ServerCreated):
        server_id = answer.id
        shown |= {"id": None, "uuid": None, "password": None}
    else:
        server_id = answer.server.id
        shown |= {"password": None} if "password" in shown else {}
    quote = await queries.quote(ctx, server_id)
    monthly, hourly = amount(quote.price_monthly_micros), amount(quote.price_hourly_micros)
    return DryRun(
        dry_run=True,
        answer=shown,
        price=Price(monthly, hourly, ctx.settings.currency),
        placement=Placement(quote.location, host or quote.host),
    )
