"""The API's description, read off the routes: what they are called, take, give and refuse.

What only a dialect knows (its name, its sections, examples) comes as an `ApiDescription`.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from litestar.routes import BaseRoute

from vpsd import errors
from vpsd.api.http.authentication import EVERYBODY, PUBLIC
from vpsd.api.http.errors import BUG, CHALLENGE, CODES, Problem, status_code_of
from vpsd.api.http.forms import unknown_name
from vpsd.api.http.routes import Route
from vpsd.api.http.schemas import schemas_of
from vpsd.settings import Settings


class ApiDescription(msgspec.Struct, frozen=True):
    """What the routes do not say themselves. Bodies and answers are by operation, problems by code."""

    about: Mapping[str, Any]
    tags: Mapping[str, str]
    bodies: Mapping[str, Any]
    answers: Mapping[str, Any]
    dry_run: Any
    problems: Mapping[str, Problem]
    names: Mapping[str, str]  # of schemas, where the type's own tells too little


def server_at(base: str) -> bytes:
    """How the document says that its paths are below `https://host/prefix`, or a part of that."""
    return b'"url": ' + msgspec.json.encode(base or "/")


DEFAULT_SERVER = f"http://{Settings().listen}"
_FIELD_ERRORS = {
    "title": "FieldErrors",
    "description": "Every field that is wrong, each with its messages.",
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
}
_PROTECTED = errors.Protected.code
_PROTECTED_OR_RUNNING = f"{_PROTECTED}_or_{CODES[409]}"
_NO_ROOM = "out_of_capacity"
_REFUSALS = {
    401: "The token is missing or not valid",
    402: "The balance does not cover it",
    403: "The token lacks the permission, or the account's limits do not allow it",
    409: "The first request with this Idempotency-Key has not ended",
    422: "This Idempotency-Key came with another request before",
    429: "Too many requests, or too many wrong tokens",
    503: "The hosts that have room for it do not answer now, or their storage is almost full",
    404: "There is nothing with this id",
    413: "The body is too large",
    414: "The URL is too long",
    415: "The body is not sent as application/json",
}
_AWAY, _UNKNOWN = errors.DatabaseUnavailable.code, errors.OutcomeUnknown.code
_IS_AWAY = f"`{_AWAY}`: the database does not answer, or takes no changes. `{_UNKNOWN}`: it went away while it saved"
_IS_PROTECTED = "The server is protected from it"
_IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Any text of at most 255 printable ASCII characters, best a random UUID. The same key and request "
    "within 24 hours, with the same token, get the same answer and are carried out once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}
_RATE_HEADERS = {
    "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}, "example": 12},
    "RateLimit-Policy": {"schema": {"type": "string"}, "example": '"token";q=1200;w=60'},
    "RateLimit": {"schema": {"type": "string"}, "example": '"token";r=0;t=60'},
}
_ID = {"type": "integer", "format": "int64", "minimum": 1}
_WRONG_FIELDS = {"name": ["This field is required."], "backups_enabled": ["Expected true or false, got a string."]}
_WRONG_QUERY = {"page": ["Give a whole number from 1."]}
_MISSPELT = "dryrun"


def describe(routes: Sequence[BaseRoute], description: ApiDescription) -> bytes:
    """An OpenAPI 3.1 document of these routes, as indented JSON."""
    operations = [
        _Operation(route.path_format, handler, description)
        for route in routes
        for handler in getattr(route, "route_handlers", ())
        if handler.resolve_include_in_schema()
    ]
    schemas = _Schemas(operations, description.names)
    paths: dict[str, dict[str, Any]] = {}
    for operation in sorted(operations, key=lambda operation: operation.order):
        paths.setdefault(operation.path, {})[operation.route.method.lower()] = operation.described(schemas)
    problems = description.problems
    document = {
        "openapi": "3.1.0",
        "info": description.about,
        "servers": [{"url": DEFAULT_SERVER}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": text} for name, text in description.tags.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": {
                **{CODES[status]: _refusal(status, CODES[status], schemas, problems) for status in sorted(_REFUSALS)},
                _PROTECTED: _refusal(409, _PROTECTED, schemas, problems),
                _PROTECTED_OR_RUNNING: _either_conflict(schemas, problems),
                _AWAY: _unavailable(schemas, problems, _AWAY, _UNKNOWN),
                CODES[503]: _unavailable(schemas, problems, CODES[503], _NO_ROOM, _AWAY, _UNKNOWN),
            },
            "parameters": {"idempotency_key": _IDEMPOTENCY_KEY},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of an account"}},
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


class _Schemas:
    """JSON schemas of structs, shared under `components`."""

    def __init__(self, operations: Sequence["_Operation"], names: Mapping[str, str]) -> None:
        kinds = [kind for operation in operations for kind in operation.kinds]
        queries = list(dict.fromkeys(operation.route.query for operation in operations))
        unique = list(dict.fromkeys([*kinds, Problem]))
        found, self.components = schemas_of([*unique, *queries], names)
        self._queries = {query: self.components.pop(query.__name__)["properties"] for query in queries}
        self.components["ErrorCode"] = {"title": "ErrorCode", "type": "string", "enum": _codes()}
        self.components["Problem"]["properties"]["code"] = {"$ref": "#/components/schemas/ErrorCode"}
        self.components["FieldErrors"] = _FIELD_ERRORS
        self._found = dict(zip(unique, found[: len(unique)], strict=True))

    def parameters(self, query: Any) -> list[dict[str, Any]]:
        """The fields of a query's struct."""
        parameters = []
        for name, field in self._queries[query].items():
            schema = {key: value for key, value in field.items() if key != "description"}
            if schema.get("default") == "":
                del schema["default"]  # it says that nothing was sent, and cannot be sent
            parameter = {"name": name, "in": "query", "description": field["description"], "schema": schema}
            several = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
            parameters.append(parameter | several)
        return parameters

    def content(self, kind: Any, example: object = None) -> dict[str, Any]:
        """A body of that kind."""
        schema = self._found[kind]
        return {"application/json": {"schema": schema} if example is None else {"schema": schema, "example": example}}


def _codes() -> list[str]:
    """Every code that an answer may have: those of the failures, and those of HTTP."""

    def codes(kind: type[errors.VpsdError]) -> set[str]:
        ours = [more for more in kind.__subclasses__() if more.__module__.startswith("vpsd.")]
        return {kind.code}.union(*map(codes, ours))

    return sorted(codes(errors.VpsdError) | set(CODES.values()) | {BUG})


def _id_text(name: str) -> str:
    return f"Id of the {name.removesuffix('_id')}"


def _refusal(status: int, code: str, schemas: _Schemas, problems: Mapping[str, Problem]) -> dict[str, Any]:
    headers: dict[int, dict[str, Any]] = {
        401: {"WWW-Authenticate": {"schema": {"type": "string"}, "example": CHALLENGE}},
        429: _RATE_HEADERS,
    }
    return {
        "description": _IS_PROTECTED if code == _PROTECTED else _REFUSALS[status],
        **({"headers": headers[status]} if status in headers else {}),
        "content": schemas.content(Problem, problems[code]),
    }


def _either_conflict(schemas: _Schemas, problems: Mapping[str, Problem]) -> dict[str, Any]:
    """The 409 of a request that may meet it for two reasons, which the code tells apart."""
    content = schemas.content(Problem)
    content["application/json"]["examples"] = {code: {"value": problems[code]} for code in (_PROTECTED, CODES[409])}
    running = _REFUSALS[409]
    return {
        "description": f"`{_PROTECTED}`: {_IS_PROTECTED}. `{CODES[409]}`: {running}",
        "content": content,
    }


def _unavailable(schemas: _Schemas, problems: Mapping[str, Problem], *codes: str) -> dict[str, Any]:
    """The 503 of every request, and of those that need room on a host besides."""
    content = schemas.content(Problem)
    content["application/json"]["examples"] = {code: {"value": problems[code]} for code in codes}
    room = ""
    if CODES[503] in codes:
        room = f"`{_NO_ROOM}`: No host has room for it, and waiting does not help. `{CODES[503]}`: {_REFUSALS[503]}. "
    return {
        "description": room + _IS_AWAY,
        "headers": {
            "Retry-After": {
                "description": f"Seconds to wait; not with `{_NO_ROOM}` and `{_UNKNOWN}`",
                "schema": {"type": "integer"},
            }
        },
        "content": content,
    }


class _Operation:
    """A route, on its way to become a part of the document."""

    def __init__(self, path: str, handler: HTTPRouteHandler, description: ApiDescription) -> None:
        # The framework drops trailing slashes; both ways work.
        self.path = f"{path}/" if path.startswith("/api/") else path
        self.route: Route = handler.opt["route"]
        self.name = str(handler.operation_id)
        self._handler = handler
        self._needs = handler.opt["needs"]
        self._description = description
        answer = self.route.answer
        self._answer = get_args(answer)[0] if get_origin(answer) is Response else answer
        self._dry = get_type_hints(self.route.preview)["return"] if self.route.preview else None
        self.kinds = [kind for kind in (self._answer, self.route.body, self._dry) if kind not in (None, type(None))]

    @property
    def order(self) -> tuple[int, int]:
        """As they stand in the source, section by section: the framework keeps its routes in sets."""
        return list(self._description.tags).index(self._handler.resolve_tags()[0]), self.route.position

    def described(self, schemas: _Schemas) -> dict[str, Any]:
        """The operation object."""
        route, posts = self.route, self.route.method == "POST"
        parameters: list[dict[str, Any]] = [
            {"name": name, "in": "path", "required": True, "description": _id_text(name), "schema": _ID}
            for name in route.ids
        ]
        parameters += schemas.parameters(route.query)
        parameters += [{"$ref": "#/components/parameters/idempotency_key"}] if posts else []
        return {
            "operationId": self.name,
            "tags": self._handler.resolve_tags(),
            "summary": self._handler.summary,
            "description": route.text,
            **({"security": []} if self._needs == PUBLIC else {}),
            **({"parameters": parameters} if parameters else {}),
            **({"requestBody": self._body(schemas)} if route.body else {}),
            "responses": {str(status): answer for status, answer in sorted(self._responses(schemas).items())},
        }

    def _body(self, schemas: _Schemas) -> dict[str, Any]:
        content = schemas.content(self.route.body, self._description.bodies[self.name])
        return {"required": self.route.body_required, "content": content}

    def _responses(self, schemas: _Schemas) -> dict[int, dict[str, Any]]:
        route = self.route
        answer: dict[str, Any] = {"description": "Done; there is no body"}
        if self._answer is not type(None):
            content = schemas.content(self._answer, self._description.answers[self.name])
            answer = {"description": inspect.getdoc(self._answer), "content": content}
        if route.headers:
            answer["headers"] = {name: {"description": text, "schema": _ID} for name, text in route.headers.items()}
        answers = {route.status_code: answer}
        if self._dry is not None:
            self._add_dry_run(answers, schemas)
        for status, text in route.further.items():
            answers[status] = {"description": text, "content": schemas.content(self._answer)}
        codes = {status: CODES[status] for status in self._refusals}
        if errors.Protected in route.raises:
            codes[409] = _PROTECTED_OR_RUNNING if 409 in codes else _PROTECTED
        if 503 not in route.further:
            codes.setdefault(503, _AWAY)
        answers |= {status: {"$ref": f"#/components/responses/{code}"} for status, code in codes.items()}
        return answers | self._bad_request()

    @property
    def _refusals(self) -> list[int]:
        """Status codes that follow from what it takes; 400 is another matter."""
        route, public = self.route, self._needs == PUBLIC
        return [
            *([429] if public else [401, 429]),
            *([] if public or self._needs == EVERYBODY else [403]),
            *([404] if route.ids or errors.NotFound in route.raises else []),
            *([409, 422] if route.method == "POST" else []),
            *([413, 415] if route.body else []),
            *([414] if route.query.__struct_fields__ else []),
            *(status for status in map(status_code_of, route.raises) if status in (402, 503)),
        ]

    def _add_dry_run(self, answers: dict[int, dict[str, Any]], schemas: _Schemas) -> None:
        """With `dry_run=1` the status is 200, for a command beside its real answer."""
        example = self._description.dry_run
        content = schemas.content(self._dry, example)
        if 200 not in answers:
            answers[200] = {"description": inspect.getdoc(self._dry), "content": content}
            return
        real = answers[200]["content"]["application/json"]
        answers[200]["content"]["application/json"] = {
            "schema": {"oneOf": [real["schema"], content["application/json"]["schema"]]},
            "examples": {"done": {"value": real["example"]}, "dry_run": {"value": example}},
        }

    def _bad_request(self) -> dict[int, dict[str, Any]]:
        route = self.route
        codes = [error.code for error in route.raises if status_code_of(error) == 400]
        codes += [CODES[400]] if route.body else []
        examples: dict[str, object] = {code: {"value": self._description.problems[code]} for code in codes}
        kinds = ["Problem"] if codes else []
        if not route.lenient:
            parameters = list(route.query.__struct_fields__)
            query = (
                _WRONG_QUERY
                if "page" in parameters
                else {_MISSPELT: [unknown_name("parameter", _MISSPELT, parameters)]}
            )
            examples["invalid"] = {"value": _WRONG_FIELDS if route.body else query}
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
