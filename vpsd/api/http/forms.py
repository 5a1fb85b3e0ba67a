"""What people send, checked field by field, so that one answer names everything that is wrong."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Generic, Self, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from vpsd.core.faults import Faults, Required
from vpsd.core.pages import DEFAULT_SIZE, LARGEST_SIZE, Page
from vpsd.errors import Invalid

Shape = TypeVar("Shape", bound=msgspec.Struct)
Plain = TypeVar("Plain", bound=msgspec.Struct)

# msgspec speaks of Python's types; people send JSON.
_WORDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_WORDS |= {"array": "an array", "object": "an object"}


class _Field(msgspec.Struct, frozen=True):
    kind: Any
    required: bool
    message: str | None  # what to send instead: `message` in the `extra` of the type's Meta


class Form(Generic[Shape]):
    """What was sent for a struct: the fields that are right, and `faults` with what is wrong about the others.

    A service adds what a type cannot tell (a plan that does not exist, a name that is taken) to the same `faults`.
    """

    def __init__(self, shape: type[Shape], raw: object) -> None:
        self._values: dict[str, Any] = {}
        self.faults = Faults()
        if not isinstance(raw, dict):
            raise Invalid({"body": ["Send a JSON object."]})
        fields = _fields(shape)
        for name, value in raw.items():
            if name in fields:
                self._take(name, value, fields[name], strict=True)
            else:
                self.faults.add(name[:100], f"Unknown field. The fields are {', '.join(fields)}.")
        for name, field in fields.items():
            if field.required and name not in raw:
                self.faults.add(name, Required())

    def _take(self, name: str, value: object, field: _Field, *, strict: bool) -> None:
        if isinstance(value, str) and "\0" in value:
            self.faults.add(name, "NUL characters are not allowed.")  # PostgreSQL stores none
            return
        try:
            self._values[name] = msgspec.convert(value, field.kind, strict=strict)
        except msgspec.ValidationError as error:
            other_type = strict and ", got " in str(error)
            place = re.search(r"at `\$\[(\d+)\]`", str(error))
            where = f"Entry {int(place[1]) + 1}: " if place else ""
            self.faults.add(name, where + field.message if field.message and not other_type else _in_words(error))

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field that was sent and is right, else the default."""
        return self._values.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the field was sent and is right."""
        return name in self._values

    def validate(self) -> Self:
        """Raise `Invalid` with everything that is wrong."""
        self.faults.check()
        return self

    def plain(self, kind: type[Plain]) -> Plain:
        """What is right of it as a service takes it; fields that were not sent or are wrong keep their defaults."""
        return kind(**{name: self._values[name] for name in kind.__struct_fields__ if name in self._values})


class PageQuery(msgspec.Struct):
    """What every list can be asked."""

    page: Annotated[
        int, Meta(ge=1, description="Which page, from 1", extra={"message": "Give a whole number from 1."})
    ] = 1
    page_size: Annotated[
        int,
        Meta(
            ge=1,
            le=LARGEST_SIZE,
            description="How many to a page",
            extra={"message": f"Give a whole number from 1 to {LARGEST_SIZE}."},
        ),
    ] = DEFAULT_SIZE


class Query(Form[Shape]):
    """The query of a request, where numbers come as text; what the struct does not name is ignored."""

    def __init__(self, shape: type[Shape], given: Sequence[tuple[str, str]], address: str) -> None:
        super().__init__(shape, {})
        self._given = given
        self._address = address
        texts = dict(given)
        for name, field in _fields(shape).items():
            if name in texts:
                self._take(name, texts[name], field, strict=False)

    @property
    def page(self) -> Page:
        """The page that is asked for; the first where none is or where it is wrong."""
        return Page(self.get("page", 1), self.get("page_size", DEFAULT_SIZE))

    def address_of_page(self, number: int) -> str:
        """The address of this very request, for another page."""
        others = [(name, value) for name, value in self._given if name != "page"]
        return f"{self._address}?{urlencode([*others, ('page', number)])}"


class Listing(msgspec.Struct):
    """One page of a list: how many there are in all, where the neighbouring pages are, and the entries."""

    count: int
    next: str | None
    previous: str | None
    results: list[Any]

    @classmethod
    def of(cls, query: Query[Any], count: int, results: list[Any]) -> Self:
        """The page that a query asked for; raises `Invalid` for one beyond the last."""
        page = query.page
        page.check(count)
        return cls(
            count,
            query.address_of_page(page.number + 1) if page.offset + page.size < count else None,
            query.address_of_page(page.number - 1) if page.number > 1 else None,
            results,
        )

    @classmethod
    def part_of(cls, query: Query[Any], everything: list[Any]) -> Self:
        """The same, cut out of a list that is short enough to be read whole."""
        page = query.page
        return cls.of(query, len(everything), everything[page.offset :][: page.size])


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
