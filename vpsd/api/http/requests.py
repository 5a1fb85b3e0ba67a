"""A request as routes see it: its query and its JSON, who sends it, and what it may work with."""

from typing import Any
from urllib.parse import parse_qsl

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import ClientException, HTTPException

from vpsd.accounts.models import Caller
from vpsd.api.http.forms import Form, Query, Shape
from vpsd.core.context import SYSTEM, Actor
from vpsd.errors import Invalid
from vpsd.runtime import Runtime

WRONG_TYPE = "Send the body as JSON, with the header Content-Type: application/json."
NOT_JSON = "The body is not valid JSON: {}."


class ApiRequest(Request[Caller, Any, State]):
    """A request to this API: bodies are JSON, and nothing else."""

    @property
    def runtime(self) -> Runtime:
        """What the application was made for."""
        runtime: Runtime = self.app.state.runtime
        return runtime

    @property
    def actor(self) -> Actor:
        """Who sends it; on public routes it is vpsd itself that answers."""
        actor: Actor = self.scope.get("user", SYSTEM)
        return actor

    async def json(self) -> Any:
        """The body, decoded; refuses other content types with 415 and what is not JSON with 400."""
        body = await self.body()
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(WRONG_TYPE, status_code=415)
        try:
            return msgspec.json.decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors and those of UTF-8 are ValueErrors
            raise ClientException(NOT_JSON.format(error)) from None

    async def body_form(self, shape: type[Shape], *, required: bool) -> Form[Shape]:
        """The body; where it is not required, an absent one is like one without fields."""
        if await self.body():
            return Form(shape, await self.json())
        if required:
            raise Invalid({"body": ["Send a JSON object."]})
        return Form(shape, {})

    def query_form(self, shape: type[Shape]) -> Query[Shape]:
        """The query."""
        host = self.headers.get("host") or ":".join(map(str, self.scope.get("server") or ("localhost",)))
        return Query(shape, self.query_pairs(), f"{self.scope['scheme']}://{host}{self.scope['path']}/")

    def query_pairs(self) -> list[tuple[str, str]]:
        """Names and values of the query, in their order."""
        return parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)
