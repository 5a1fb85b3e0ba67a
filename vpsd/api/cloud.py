"""What the handlers work with."""

from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import ClientException, HTTPException

from vpsd.accounts.models import Caller
from vpsd.core.clock import Clock
from vpsd.core.db import Database
from vpsd.core.forms import Form
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.hypervisor.protocol import HostFacts
from vpsd.settings import Settings

Shape = TypeVar("Shape", bound=msgspec.Struct)


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
    settings: Settings


class CloudRequest(Request[Caller, Any, State]):
    """A request to this API: bodies are JSON, and nothing else."""

    async def json(self) -> Any:
        """The body, decoded; refuses other content types with 415 and what is no JSON with 400."""
        body = await self.body()
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(
                "Send the body as JSON, with the header Content-Type: application/json.", status_code=415
            )
        try:
            return msgspec.json.decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors and those of UTF-8 are ValueErrors
            raise ClientException(f"The body is no valid JSON: {error}.") from None

    async def optional_form(self, shape: type[Shape]) -> Form[Shape]:
        """The body, as a struct all of whose fields may be left out; so may the body."""
        return Form(shape, await self.json() if await self.body() else {})

    def query_form(self) -> Form[Any]:
        """The query, as the struct that the handler names in `opt["query"]`."""
        return Form.of_texts(self.route_handler.opt["query"], dict(self._query()))

    def asks_for(self, name: str) -> bool:
        """Whether the query names something."""
        return any(name == given for given, _ in self._query())

    def page(self) -> Page:
        """The page of a list that is asked for; raises `Invalid`."""
        asked = self.query_form()
        asked.done()
        return Page.of(asked)

    def address_of_page(self, number: int) -> str:
        """This very request, for another page."""
        others = [(name, value) for name, value in self._query() if name != "page"]
        host = self.headers.get("host") or ":".join(map(str, self.scope.get("server") or ("localhost",)))
        return f"{self.scope['scheme']}://{host}{self.scope['path']}/?{urlencode([*others, ('page', number)])}"

    def _query(self) -> list[tuple[str, str]]:
        return parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)


class Listing(msgspec.Struct):
    """One page of a list: how many there are in all, where the neighbouring pages are, and the entries."""

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
    return (
        request.address_of_page(page.number + 1) if page.offset + page.size < count else None,
        request.address_of_page(page.number - 1) if page.number > 1 else None,
    )
