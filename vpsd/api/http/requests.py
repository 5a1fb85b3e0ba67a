"""A request as routes see it: its query and its JSON, who sends it, and what it may work with."""

import codecs
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import ClientException, HTTPException, InternalServerException

from vpsd.accounts.models import Caller
from vpsd.api.http.errors import HUNG_UP
from vpsd.api.http.forms import NO_BODY, ONCE, Form, NoQuery, Query, Shape
from vpsd.core.context import SYSTEM, Actor
from vpsd.errors import Invalid
from vpsd.runtime import Runtime

WRONG_TYPE = "Send the body as JSON, with the header Content-Type: application/json."
WRONG_CHARSET = "Send the body in UTF-8, as JSON always is (RFC 8259, section 8.1)."
NOT_JSON = "The body is not valid JSON: {}."
BYTE_ORDER_MARK = "it begins with a byte-order mark; send it in UTF-8 without one"

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE: as UTF-16's


class ApiRequest(Request[Caller, Any, State]):
    """A request to this API: bodies are JSON, and nothing else."""

    @property
    def runtime(self) -> Runtime:
        """What the application that answers was made for."""
        runtime: Runtime = self.scope["vpsd"].runtime  # type: ignore[typeddict-item]
        return runtime

    @property
    def actor(self) -> Actor:
        """Who sends it; on public routes it is vpsd itself that answers."""
        actor: Actor = self.scope.get("user", SYSTEM)
        return actor

    @property
    def base(self) -> str:
        """What addresses of vpsd begin with for the sender: `https://host/prefix`, or a part of it."""
        base: str = self.scope["vpsd"].base  # type: ignore[typeddict-item]
        return base

    async def body(self) -> bytes:
        """The body; a client that hangs up while it sends is no failure of vpsd's."""
        try:
            return await super().body()
        except InternalServerException as error:
            raise HTTPException(error.detail, status_code=HUNG_UP) from None

    async def json(self) -> Any:
        """The body, decoded; refuses other content types with 415, what is no JSON or has a key twice with 400."""
        body = await self.body()
        kind, *parameters = self.headers.get("content-type", "").lower().split(";")
        if kind.strip() != "application/json":
            raise HTTPException(WRONG_TYPE, status_code=415)
        charsets = [
            value for name, _, value in (part.strip().partition("=") for part in parameters) if name == "charset"
        ]
        if not {charset.strip('"') for charset in charsets} <= {"utf-8", "utf8", "us-ascii"}:
            raise HTTPException(WRONG_CHARSET, status_code=415)
        if body.startswith(_MARKS):
            raise ClientException(NOT_JSON.format(BYTE_ORDER_MARK))
        try:
            found = msgspec.json.decode(body)
            twice = _keys_sent_twice(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors and those of UTF-8 are ValueErrors
            raise ClientException(NOT_JSON.format(error)) from None
        if twice:
            raise Invalid({key[:100]: [f"{ONCE}."] for key in twice})
        return found

    async def body_form(self, shape: type[Shape], *, required: bool, misplaced: Mapping[str, str]) -> Form[Shape]:
        """The body; where it is not required, an absent one is like one without fields."""
        if await self.body():
            return Form(shape, await self.json(), misplaced)
        if required:
            raise Invalid({"body": ["Send a JSON object."]})
        return Form(shape, {})

    async def refuse_body(self, misplaced: Mapping[str, str]) -> None:
        """For what takes no body: refuse one that says something, which would be lost; `{}` and `null` say nothing."""
        if self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers:
            return
        try:
            found = await self.json() if await self.body() else None
        except HTTPException as error:  # too large, another content type, not JSON
            if error.status_code in (408, HUNG_UP):  # it has not come whole
                raise
            raise Invalid({"body": [NO_BODY]}) from None
        if isinstance(found, dict):
            Form(NoQuery, found, misplaced).validate()
        elif found is not None:
            raise Invalid({"body": [NO_BODY]})

    def query_form(self, shape: type[Shape], misplaced: Mapping[str, str] | None = None) -> Query[Shape]:
        """The query."""
        pairs = parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return Query(shape, pairs, f"{self.scope['path']}/", self.base, misplaced)


def _keys_sent_twice(body: bytes) -> list[str]:
    """Keys that an object has more than once, at any depth: RFC 8259, section 4, leaves open which of them counts."""
    twice: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) < len(pairs):
            twice.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)

    json.loads(body, object_pairs_hook=look)
    return twice
