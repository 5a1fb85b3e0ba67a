"""What people send, checked field by field, so that one answer names everything that is wrong."""

import re
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

from vpsd.errors import Invalid

T = TypeVar("T", bound=msgspec.Struct)

REQUIRED = "This field is required."

# msgspec speaks of Python's types; people send JSON.
_WORDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_WORDS |= {"array": "an array", "object": "an object"}


class _Field(msgspec.Struct, frozen=True):
    kind: Any
    required: bool
    message: str | None  # what to send instead: `message` in the `extra` of the type's Meta


class Form(Generic[T]):
    """What somebody sent for a struct: the fields that are right, and every message about those that are not.

    Rules that a type cannot tell (a plan that exists, a name that is free) add theirs with `wrong`; `done` raises them
    all at once.
    """

    def __init__(self, shape: type[T], raw: object) -> None:
        self._values: dict[str, Any] = {}
        self._errors: dict[str, list[str]] = {}
        if not isinstance(raw, dict):
            raise Invalid({"body": ["Send a JSON object."]})
        fields = _fields(shape)
        for name, value in raw.items():
            if name in fields:
                self._take(name, value, fields[name], strict=True)
            else:
                self.wrong(name[:100], f"Unknown field. The fields are {', '.join(fields)}.")
        for name, field in fields.items():
            if field.required and name not in raw:
                self.wrong(name, REQUIRED)

    @classmethod
    def of_texts(cls, shape: type[T], texts: dict[str, str]) -> "Form[T]":
        """Of a query, where numbers come as text; what the struct does not name is none of its business."""
        form = cls(shape, {})
        for name, field in _fields(shape).items():
            if name in texts:
                form._take(name, texts[name], field, strict=False)
        return form

    def _take(self, name: str, value: object, field: _Field, *, strict: bool) -> None:
        if isinstance(value, str) and "\0" in value:
            self.wrong(name, "NUL characters are not allowed.")  # PostgreSQL stores none
            return
        try:
            self._values[name] = msgspec.convert(value, field.kind, strict=strict)
        except msgspec.ValidationError as error:
            other_type = strict and ", got " in str(error)
            place = re.search(r"at `\$\[(\d+)\]`", str(error))
            where = f"Entry {int(place[1]) + 1}: " if place else ""
            self.wrong(name, where + field.message if field.message and not other_type else _in_words(error))

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field that was sent and is right, else the default."""
        return self._values.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the field was sent and is right."""
        return name in self._values

    def is_wrong(self, *names: str) -> bool:
        """Whether something is wrong with one of these fields already."""
        return any(name in self._errors for name in names)

    def wrong(self, name: str, message: str) -> None:
        """Say what is wrong with a field."""
        self._errors.setdefault(name, []).append(message)

    def done(self) -> None:
        """Raise `Invalid` with everything that is wrong."""
        if self._errors:
            raise Invalid(self._errors)


@cache
def _fields(shape: type[msgspec.Struct]) -> dict[str, _Field]:
    described = msgspec.inspect.type_info(shape).fields  # type: ignore[attr-defined]
    return {
        field.encode_name: _Field(field.type, field.required, _message(about.type))
        for field, about in zip(msgspec.structs.fields(shape), described, strict=True)
    }


def _message(about: Any) -> str | None:
    extra = getattr(about, "extra", None) or {}
    inner = [*getattr(about, "types", ()), getattr(about, "type", None)]
    found = [extra.get("message"), *(_message(kind) for kind in inner if kind is not None)]
    return next((text for text in found if text), None)


def _in_words(error: msgspec.ValidationError) -> str:
    def words(match: re.Match[str]) -> str:
        return " or ".join(_WORDS.get(word, word) for word in match[1].split(" | "))

    return re.sub("`([^`]*)`", words, str(error)) + "."
