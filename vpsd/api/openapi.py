"""The API's description, read off the handlers: what they are called, take, give and refuse.

A handler says what its types cannot: `opt["query"]` is the struct of its query, `opt["raises"]` what it refuses besides
bad input, `opt["public"]` that it asks for no token.
"""

import inspect
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from litestar.routes import BaseRoute

from vpsd import errors
from vpsd.api.access import EVERYBODY
from vpsd.api.carrying import DryRun, DryRunQuery
from vpsd.api.errors import CHALLENGE, CODES, STATUS_CODES, Problem
from vpsd.api.examples import ANSWERS, BODIES, DRY_RUN, NOT_DRY, PROBLEMS, WRONG_FIELDS, WRONG_QUERY
from vpsd.core.forms import Form

_ABOUT = {
    "title": "vpsd",
    "version": "1",
    "summary": "A VPS cloud that anyone can run on their own machines",
    "description": "Send your token with every request: `Authorization: Bearer YOUR_API_TOKEN`. Bodies are JSON, times "
    "are UTC, memory is in MB, storage and bandwidth in GB, money is in credits. A request only begins slow work: the "
    "server's `status` tells when it is done, its operations how far it has come. Paths without the trailing slash "
    "work too.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_TAGS = {
    "Servers": "Create, change, start, stop and delete virtual servers.",
    "Backups": "Copies of servers, made every day or when asked for, to go back to or to begin from.",
    "Snapshots": "Copies of servers by name, a few to a server.",
    "SSH keys": "Public keys, to be installed on servers that are made with them.",
    "Catalogue": "What can be ordered.",
    "Account": "Who one is, tokens, events, and money.",
    "Service": "vpsd itself.",
}
_FIELD_ERRORS = {
    "title": "FieldErrors",
    "description": "Every field that is wrong, each with its messages.",
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
}
_PROTECTED = errors.Protected.code
_REFUSALS = {
    401: "The token is missing or not valid",
    402: "The balance does not cover it",
    403: "The token lacks the permission, or the account's limits do not allow it",
    409: "The first request with this Idempotency-Key has not ended",
    422: "This Idempotency-Key came with another request before",
    429: "Too many requests, or too many wrong tokens",
    503: "No host has room for it now",
    404: "There is nothing with this id",
    413: "The body is too large",
    415: "The body is not sent as application/json",
}
_IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Any text of at most 255 printable ASCII characters, best a random UUID. The same key and request "
    "within 24 hours, with the same token, get the same answer and are carried out once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_RATE_HEADERS = {
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}, "example": 12},
    "RateLimit-Policy": {"schema": {"type": "string"}, "example": '"address";q=2400;w=60, "token";q=1200;w=60'},
    "RateLimit": {"schema": {"type": "string"}, "example": '"address";r=1200;t=30, "token";r=0;t=60'},
}
_ID = {"type": "integer", "format": "int64", "minimum": 1}


def describe(routes: Sequence[BaseRoute]) -> bytes:
    """An OpenAPI 3.1 document of these routes, as indented JSON."""
    handlers = [
        (_published(route.path_format), _Traits(handler))
        for route in routes
        for handler in getattr(route, "route_handlers", ())
        if handler.resolve_include_in_schema()
    ]
    schemas = _Schemas([kind for _, traits in handlers for kind in traits.kinds])
    paths: dict[str, dict[str, Any]] = {}
    for path, traits in sorted(handlers, key=lambda pair: _order(pair[1])):
        for method in sorted(traits.handler.http_methods):
            paths.setdefault(path, {})[method.lower()] = _operation(traits, schemas)
    document = {
        "openapi": "3.1.0",
        "info": _ABOUT,
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": {
                **{CODES[status]: _refusal(status, CODES[status], schemas) for status in sorted(_REFUSALS)},
                _PROTECTED: _refusal(409, _PROTECTED, schemas),
            },
            "parameters": {"idempotency_key": _IDEMPOTENCY_KEY},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of an account"}},
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _order(traits: "_Traits") -> tuple[int, int]:
    # As they stand in the source, section by section: the framework keeps its routes in sets.
    return list(_TAGS).index(traits.handler.resolve_tags()[0]), traits.line


def _published(path: str) -> str:
    # The framework drops trailing slashes; both ways work.
    return f"{path}/" if path.startswith("/api/") else path


class _Traits:
    """What a handler says of itself."""

    def __init__(self, handler: HTTPRouteHandler) -> None:
        hints = get_type_hints(handler.fn, include_extras=True)
        returned = hints.pop("return")
        annotated = {name: get_args(hint) for name, hint in hints.items() if hasattr(hint, "__metadata__")}
        self.handler = handler
        self.line = inspect.unwrap(handler.fn).__code__.co_firstlineno
        self.answer = get_args(returned)[0] if get_origin(returned) is Response else returned
        self.ids = {name: _description(metas) for name, (kind, *metas) in annotated.items() if kind is int}
        forms = [get_args(kind)[0] for kind, *_ in annotated.values() if get_origin(kind) is Form]
        self.must_have_body = bool(forms)
        self.body = forms[0] if forms else handler.opt.get("body")
        self.query = handler.opt.get("query")
        self.public = handler.opt.get("public", False)
        self.raises: Sequence[type[errors.VpsdError]] = handler.opt.get("raises", ())
        self.further = handler.responses or {}
        self.posts = "POST" in handler.http_methods
        self.may_be_dry = self.query is DryRunQuery
        dry = DryRun if self.may_be_dry else None
        kinds = (self.answer, self.body, dry, *(spec.data_container for spec in self.further.values()))
        self.kinds = [kind for kind in kinds if kind not in (None, type(None))]

    @property
    def refusals(self) -> list[int]:
        """Status codes that follow from what it takes; 400 is another matter."""
        return [
            *([] if self.public else [401, 429]),
            *([] if self.public or self.handler.opt["needs"] == EVERYBODY else [403]),
            *([404] if self.ids or errors.NotFound in self.raises else []),
            *([409, 422] if self.posts else []),
            *([413, 415] if self.body else []),
            *(STATUS_CODES[error] for error in self.raises if STATUS_CODES[error] in (402, 503)),
        ]


def _description(metas: Sequence[Any]) -> str:
    return next(str(meta.description) for meta in metas if getattr(meta, "description", None))


class _Schemas:
    """JSON schemas of structs, shared under `components`."""

    def __init__(self, kinds: Sequence[Any]) -> None:
        unique = list(dict.fromkeys([*kinds, Problem]))
        found, self.components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
        self.components["FieldErrors"] = _FIELD_ERRORS
        self._found = dict(zip(unique, found, strict=True))

    def content(self, kind: Any, example: object = None) -> dict[str, Any]:
        """A body of that kind."""
        schema = self._found[kind]
        return {"application/json": {"schema": schema} if example is None else {"schema": schema, "example": example}}

    def parameters(self, query: type[msgspec.Struct]) -> list[dict[str, Any]]:
        """The fields of a query's struct."""
        _, components = msgspec.json.schema_components([query], ref_template="#/components/schemas/{name}")
        fields = components[query.__name__]["properties"]
        return [
            {"name": name, "in": "query", "description": field.pop("description"), "schema": field}
            for name, field in fields.items()
        ]


def _operation(traits: _Traits, schemas: _Schemas) -> dict[str, Any]:
    handler = traits.handler
    name = str(handler.operation_id)
    parameters: list[dict[str, Any]] = [
        {"name": key, "in": "path", "required": True, "description": text, "schema": _ID}
        for key, text in traits.ids.items()
    ]
    if traits.query:
        parameters += schemas.parameters(traits.query)
    if traits.posts:
        parameters.append({"$ref": "#/components/parameters/idempotency_key"})
    return {
        "operationId": name,
        "tags": handler.resolve_tags(),
        "summary": handler.summary,
        "description": inspect.getdoc(handler.fn),
        **({"security": []} if traits.public else {}),
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _body(name, traits, schemas)} if traits.body else {}),
        "responses": {str(status): answer for status, answer in sorted(_responses(name, traits, schemas).items())},
    }


def _body(name: str, traits: _Traits, schemas: _Schemas) -> dict[str, Any]:
    return {"required": traits.must_have_body, "content": schemas.content(traits.body, BODIES[name])}


def _responses(name: str, traits: _Traits, schemas: _Schemas) -> dict[int, dict[str, Any]]:
    if traits.answer is type(None):
        answers: dict[int, dict[str, Any]] = {traits.handler.status_code: {"description": "Done; there is no body"}}
    else:
        content = schemas.content(traits.answer, ANSWERS[name])
        answers = {traits.handler.status_code: {"description": inspect.getdoc(traits.answer), "content": content}}
    if traits.may_be_dry:
        _add_dry_run(answers, schemas)
    for status, spec in traits.further.items():
        answers[status] = {"description": spec.description, "content": schemas.content(spec.data_container)}
    codes = {status: CODES[status] for status in traits.refusals}
    if errors.Protected in traits.raises:
        codes[409] = _PROTECTED
    answers |= {status: {"$ref": f"#/components/responses/{code}"} for status, code in codes.items()}
    return answers | _bad_request(traits)


def _refusal(status: int, code: str, schemas: _Schemas) -> dict[str, Any]:
    headers: dict[int, dict[str, Any]] = {
        401: {"WWW-Authenticate": {"schema": {"type": "string"}, "example": CHALLENGE}},
        429: _RATE_HEADERS,
    }
    return {
        "description": "The server is protected from it" if code == _PROTECTED else _REFUSALS[status],
        **({"headers": headers[status]} if status in headers else {}),
        "content": schemas.content(Problem, PROBLEMS[code]),
    }


def _add_dry_run(answers: dict[int, dict[str, Any]], schemas: "_Schemas") -> None:
    """With `dry_run=1` the status is 200, for a command beside its real answer."""
    content = schemas.content(DryRun, DRY_RUN)
    if 200 not in answers:
        answers[200] = {"description": inspect.getdoc(DryRun), "content": content}
        return
    real = answers[200]["content"]["application/json"]
    answers[200]["content"]["application/json"] = {
        "schema": {"oneOf": [real["schema"], content["application/json"]["schema"]]},
        "examples": {"done": {"value": real["example"]}, "dry_run": {"value": DRY_RUN}},
    }


def _bad_request(traits: _Traits) -> dict[int, dict[str, Any]]:
    codes = [error.code for error in traits.raises if STATUS_CODES[error] == 400]
    codes += [CODES[400]] if traits.body else []
    examples: dict[str, object] = {code: {"value": PROBLEMS[code]} for code in codes}
    kinds = ["Problem"] if codes else []
    cannot_be_dry = "GET" not in traits.handler.http_methods and not traits.may_be_dry
    if traits.body or traits.query or cannot_be_dry:
        wrong = WRONG_FIELDS if traits.body else NOT_DRY if cannot_be_dry else WRONG_QUERY
        examples["invalid"] = {"value": wrong}
        kinds.append("FieldErrors")
    if not kinds:
        return {}
    references = [{"$ref": f"#/components/schemas/{kind}"} for kind in kinds]
    schema = references[0] if len(references) == 1 else {"oneOf": references}
    return {
        400: {
            "description": "The request cannot be carried out as it is",
            "content": {"application/json": {"schema": schema, "examples": examples}},
        }
    }


if __name__ == "__main__":
    from vpsd.api.app import openapi_json

    print(openapi_json().decode(), end="")
