"""What the handlers work with."""

from typing import Any, TypeAlias

import msgspec
from litestar import Request
from litestar.datastructures import State

from vpsd.accounts.models import Caller
from vpsd.core.clock import Clock
from vpsd.core.db import Database
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.hypervisor.protocol import HostFacts

CloudRequest: TypeAlias = Request[Caller, Any, State]


class HostStatus(msgspec.Struct):
    """What is known of the host now; the composition root keeps it true."""

    status: str = "connecting"  # connecting | ok | unavailable | elsewhere
    error: str | None = None
    facts: HostFacts | None = None


class Cloud(msgspec.Struct, frozen=True):
    """Everything that a request may touch."""

    database: Database
    clock: Clock
    ids: Ids
    host: HostStatus


class Listing(msgspec.Struct):
    """One page of a list."""

    count: int
    next: str | None
    previous: str | None
    results: list[Any]


def cloud_of(request: CloudRequest) -> Cloud:
    """The cloud that the application was made for."""
    cloud: Cloud = request.app.state.cloud
    return cloud


def neighbours(request: CloudRequest, page: Page, count: int) -> tuple[str | None, str | None]:
    """Addresses of the next and the previous page; raises `Invalid` for a page beyond the last."""
    page.check(count)
    url = request.url
    following = str(url.with_replacements(query=_query(request, page.number + 1)))
    preceding = str(url.with_replacements(query=_query(request, page.number - 1)))
    return (
        following if page.offset + page.size < count else None,
        preceding if page.number > 1 else None,
    )


def _query(request: CloudRequest, number: int) -> Any:
    from litestar.datastructures import MultiDict

    query = MultiDict(request.query_params.dict())
    query["page"] = str(number)
    return query
