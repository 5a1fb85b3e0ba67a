"""JSON schemas of what goes over the wire, as code generators and fuzzers like them.

What the types say is written by msgspec. The rest follows from the house's rules: `*_at` is a time and `uuid` is a
UUID; what may be null has that among its types (JSON Schema 2020-12, as in OpenAPI 3.1); a number without a fraction
has 64 bits; a pattern is one that RE2 takes too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Meta

from vpsd.api.http.forms import NO_LINE_END

_TIMES = ("_at", "_since")
_NULL = {"type": "null"}
_COMPONENTS = "#/components/schemas/"
_VALUES = ("default", "examples", "enum")  # what is no schema, though it may look like one
Schema = dict[str, Any]


def one_of(name: str, values: Iterable[str]) -> Meta:
    """A closed set of words with a name of its own, for a plain `str`; a `Literal` needs only `named`."""
    return Meta(title=name, extra_json_schema={"enum": [str(value) for value in values], "type": "string"})


def named(name: str) -> Meta:
    """A name for what is a schema of its own, so that generators need not make one up."""
    return Meta(title=name)


def as_format(name: str) -> Meta:
    """A format, where the field's name does not tell it."""
    return Meta(extra_json_schema={"format": name})


def schemas_of(kinds: Sequence[Any], names: Mapping[str, str]) -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each of these types, and the components that they refer to; `names` renames components."""
    schemas, components = msgspec.json.schema_components(kinds, ref_template=f"{_COMPONENTS}{{name}}")
    for kind in kinds:
        if choices := getattr(kind, "exactly_one_of", None):
            components |= _variants(components[kind.__name__], choices)
    plainer = _Plainer(names)
    plain = [plainer.plain(schema) for schema in schemas]
    found = {names.get(name, name): plainer.plain(component) for name, component in components.items()}
    for name, component in found.items():
        component["title"] = name
    return plain, found | plainer.named


def _variants(component: Schema, choices: Mapping[str, str]) -> dict[str, Schema]:
    """An object that needs just one of some fields, as one of several objects; `choices` names those by the field."""
    variants = {
        name: {
            **component,
            "properties": {
                key: value for key, value in component["properties"].items() if key not in {*choices} - {field}
            },
            "required": [*component["required"], field],
        }
        for field, name in choices.items()
    }
    whole = {key: component[key] for key in ("title", "description")}
    return variants | {component["title"]: whole | {"oneOf": [{"$ref": f"{_COMPONENTS}{name}"} for name in variants]}}


class _Plainer:
    """Makes schemas plainer, and gathers in `named` those within them that have a name of their own."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.named: dict[str, Schema] = {}
        self._names = names

    def plain(self, schema: Schema, field: str = "") -> Schema:
        """A schema with all that is in it; `field` is the name of the field that it is for."""
        found: Schema = {}
        for key, value in _joined_with_null(schema).items():
            if key == "properties":
                found[key] = {name: self._within(inner, name) for name, inner in value.items()}
            elif key == "$ref":
                found[key] = _COMPONENTS + self._names.get(name := value.removeprefix(_COMPONENTS), name)
            elif key == "pattern":
                found[key] = value.replace(NO_LINE_END, "")  # a $ of ECMA 262 and of RE2 is the very end
            else:
                found[key] = value if key in _VALUES else self._within(value)
        if "enum" in found:
            found.setdefault("type", "string")
        if (format_ := _format(field, found)) is not None:
            found.setdefault("format", format_)
        return found

    def _within(self, part: Any, field: str = "") -> Any:
        if isinstance(part, list):
            return [self._within(entry) for entry in part]
        if not isinstance(part, dict):
            return part
        if not _is_named_set(part):
            return self.plain(part, field)
        own = {key: part[key] for key in ("title", "enum")}
        self.named[part["title"]] = own | {"type": "string"}
        beside = {key: value for key, value in part.items() if key not in {*own, "type"}}
        return {"$ref": _COMPONENTS + part["title"]} | self.plain(beside)


def _is_named_set(schema: Schema) -> bool:
    return "enum" in schema and "title" in schema


def _joined_with_null(schema: Schema) -> Schema:
    """What may be null, in one schema where that is possible; what it is said to be is said from outside."""
    choices = schema.get("anyOf", ())
    if len(choices) != 2 or _NULL not in choices:
        return schema
    other = next(choice for choice in choices if choice != _NULL)
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if "$ref" in other or _is_named_set(other):
        return rest | {"oneOf": choices}
    return {**other, **rest, "type": [other["type"], "null"]}


def _format(field: str, schema: Schema) -> str | None:
    types = schema.get("type", ())
    if "integer" in types:
        return "int64" if "minimum" not in schema or "maximum" in schema else None  # a page may have any number
    if "string" not in types:
        return None
    if field == "at" or field.endswith(_TIMES):
        return "date-time"
    return "uuid" if field == "uuid" else None
