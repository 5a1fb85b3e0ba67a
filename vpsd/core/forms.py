"""Bodies of requests, checked field by field, so that one answer names everything that is wrong."""

from typing import Any, Generic, TypeVar

import msgspec

from vpsd.errors import Invalid

T = TypeVar("T", bound=msgspec.Struct)

REQUIRED = "This field is required."


class Form(Generic[T]):
    """What somebody sent for a struct: the fields that are right, and every message about those that are not.

    Rules that a type cannot tell (a plan that exists, a name that is free) add theirs with `wrong`; `done` raises them all at once.
    """

    def __init__(self, shape: type[T], raw: object) -> None:
        self._values: dict[str, Any] = {}
        self._errors: dict[str, list[str]] = {}
        if not isinstance(raw, dict):
            raise Invalid({"body": ["Send a JSON object."]})
        fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
        for name, value in raw.items():
            if name in fields:
                self._take(name, value, fields[name].type)
            else:
                self.wrong(str(name)[:100], f"Unknown field. The fields are {', '.join(fields)}.")
        for name, field in fields.items():
            if field.required and name not in raw:
                self.wrong(name, REQUIRED)

    def _take(self, name: str, value: object, kind: Any) -> None:
        try:
            self._values[name] = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            self.wrong(name, f"{error}.")

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field that was sent and is right, else the default."""
        return self._values.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the field was sent and is right."""
        return name in self._values

    def wrong(self, name: str, message: str) -> None:
        """Say what is wrong with a field."""
        self._errors.setdefault(name, []).append(message)

    def done(self) -> None:
        """Raise `Invalid` with everything that is wrong."""
        if self._errors:
            raise Invalid(self._errors)
