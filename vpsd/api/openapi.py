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
from vpsd.api.errors import CHALLENGE, CODES, STATUS_CODES, Problem
from vpsd.api.examples import ANSWERS, BODIES, PROBLEMS, WRONG_FIELDS, WRONG_QUERY
from vpsd.core.forms import Form

_ABOUT = {
    "title": "vpsd",
    "version": "1",
    "summary": "A VPS cloud that anyone can run on their own machines",
    "description": "Send your token with every request: `Authorization: Bearer YOUR_API_TOKEN`. Bodies are JSON, times "
    "are UTC, memory is in MB, storage and bandwidth in GB. A request only begins slow work: the server's `status` "
    "tells when it is done, its operations how far it has come. Paths without the trailing slash work too.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_TAGS = {
    "Servers": "Create, change, start, stop and delete virtual servers.",
    "SSH keys": "Public keys, to be installed on servers that are made with them.",
    "Catalogue": "What can be ordered.",
    "Service": "vpsd itself.",
}
_FIELD_ERRORS = {
    "title": "FieldErrors",
    "description": "Every field that is wrong, each with its messages.",
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
}
_REFUSALS = {
    401: "The token is missing or not valid",
    404: "There is nothing with this id",
    413: "The body is too large",
    415: "The body is not sent as application/json",
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
        self.body = next((get_args(kind)[0] for kind, *_ in annotated.values() if get_origin(kind) is Form), None)
        self.query = handler.opt.get("query")
        self.public = handler.opt.get("public", False)
        self.raises: Sequence[type[errors.VpsdError]] = handler.opt.get("raises", ())
        self.further = handler.responses or {}
        kinds = (self.answer, self.body, *(spec.data_container for spec in self.further.values()))
        self.kinds = [kind for kind in kinds if kind not in (None, type(None))]

    @property
    def refusals(self) -> list[int]:
        """Status codes that follow from what it takes; 400 is another matter."""
        return [
            *([] if self.public else [401]),
            *([404] if self.ids else []),
            *([413, 415] if self.body else []),
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
    parameters = [
        {"name": key, "in": "path", "required": True, "description": text, "schema": _ID}
        for key, text in traits.ids.items()
    ]
    if traits.query:
        parameters += schemas.parameters(traits.query)
    return {
        "operationId": name,
        "tags": handler.resolve_tags(),
        "summary": handler.summary,
        "description": inspect.getdoc(handler.fn),
        **({"security": []} if traits.public else {}),
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _body(name, traits.body, schemas)} if traits.body else {}),
        "responses": {str(status): answer for status, answer in sorted(_responses(name, traits, schemas).items())},
    }


def _body(name: str, kind: Any, schemas: _Schemas) -> dict[str, Any]:
    return {"required": True, "content": schemas.content(kind, BODIES[name])}


def _responses(name: str, traits: _Traits, schemas: _Schemas) -> dict[int, dict[str, Any]]:
    if traits.answer is type(None):
        answers: dict[int, dict[str, Any]] = {traits.handler.status_code: {"description": "Done; there is no body"}}
    else:
        content = schemas.content(traits.answer, ANSWERS[name])
        answers = {traits.handler.status_code: {"description": inspect.getdoc(traits.answer), "content": content}}
    for status, spec in traits.further.items():
        answers[status] = {"description": spec.description, "content": schemas.content(spec.data_container)}
    for status in traits.refusals:
        content = schemas.content(Problem, PROBLEMS[CODES[status]])
        answers[status] = {"description": _REFUSALS[status], "content": content}
    if 401 in answers:
        answers[401]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "example": CHALLENGE}}
    return answers | _bad_request(traits)


def _bad_request(traits: _Traits) -> dict[int, dict[str, Any]]:
    codes = [error.code for error in traits.raises if STATUS_CODES[error] == 400]
    codes += [CODES[400]] if traits.body else []
    examples: dict[str, object] = {code: {"value": PROBLEMS[code]} for code in codes}
    kinds = ["Problem"] if codes else []
    if traits.body or traits.query:
        examples["invalid"] = {"value": WRONG_FIELDS if traits.body else WRONG_QUERY}
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
