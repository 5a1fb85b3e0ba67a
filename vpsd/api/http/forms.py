"""What people send, checked field by field, so that one answer names everything that is wrong."""

import base64
import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Generic, Self, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from vpsd.core.faults import Faults, Required
from vpsd.core.pages import DEFAULT_SIZE, LARGEST_SIZE, ForeignCursor, Page, Part, Position
from vpsd.errors import MOST_NAMED, Invalid

Shape = TypeVar("Shape", bound=msgspec.Struct)
Plain = TypeVar("Plain", bound=msgspec.Struct)

# msgspec speaks of Python's types; people send JSON.
_WORDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_WORDS |= {"array": "an array", "object": "an object"}

# What other APIs call them.
_ELSEWHERE = dict.fromkeys(("limit", "per_page", "pagesize", "size"), "page_size") | {"offset": "page"}
_ELSEWHERE |= dict.fromkeys(("search", "query", "filter"), "q") | dict.fromkeys(
    ("order", "order_by", "ordering"), "sort"
)
NO_LINE_END = r"(?!\n)"  # in a pattern, behind $: Python's alone would let a line end through

NO_BODY = "This request takes no body. Leave it out."
ONCE = "It is there more than once. Send it once"


class _Field(msgspec.Struct, frozen=True):
    kind: Any
    required: bool
    message: str | None  # what to send instead: `message` in the `extra` of the type's Meta
    is_list: bool


class Form(Generic[Shape]):
    """What was sent for a struct: the fields that are right, and `faults` with what is wrong about the others.

    A service adds what a type cannot tell (a plan that does not exist, a name that is taken) to the same `faults`.
    `misplaced` says of names that are known, though not here, where they belong.
    """

    def __init__(self, shape: type[Shape], raw: object, misplaced: Mapping[str, str] | None = None) -> None:
        self._values: dict[str, Any] = {}
        self.faults = Faults()
        if not isinstance(raw, dict):
            raise Invalid({"body": ["Send a JSON object."]})
        fields = _fields(shape)
        for name, value in raw.items():
            if name in fields:
                self._take(name, value, fields[name], strict=True)
        for name, field in fields.items():
            if field.required and name not in raw:
                self.faults.add(name, Required())
        self._refuse_unknown("field", raw, fields, misplaced)

    def _refuse_unknown(
        self, what: str, names: Iterable[str], known: Mapping[str, _Field], misplaced: Mapping[str, str] | None
    ) -> None:
        unknown = [name for name in names if name not in known]
        for place, name in enumerate(unknown[:MOST_NAMED]):
            message = unknown_name(what, name[:100], list(known), brief=place > 0)
            self.faults.add(name[:100], (misplaced or {}).get(name) or message)
        self.faults.unnamed += len(unknown[MOST_NAMED:])

    def _take(self, name: str, value: object, field: _Field, *, strict: bool) -> None:
        if isinstance(value, str) and "\0" in value:
            self.faults.add(name, "NUL characters are not allowed.")  # PostgreSQL stores none
            return
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as in JSON Schema (2020-12, section 4.2.3): 5.0 is an integer
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


class NoQuery(msgspec.Struct):
    """What cannot be asked anything."""


class PageQuery(msgspec.Struct):
    """What every list can be asked."""

    cursor: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=2000,
            description="Where to go on, from the `next` of the answer before: nothing is missed or seen twice when "
            "entries come and go meanwhile. Not together with `page`",
            extra={"message": "Send the cursor of next as it came."},
        ),
    ] = ""
    page: Annotated[
        int,
        Meta(
            ge=1,
            description="Which page, from 1, by number; one beyond the last is empty",
            extra={"message": "Give a whole number from 1."},
        ),
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


class _Cursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a cursor says, as JSON in base64: whose it is (list, filters, order), and after which entry it goes on."""

    asked: str
    id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    key: str | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class Query(Form[Shape]):
    """The query of a request to `path`, where numbers come as text and lists with commas.

    Addresses of other pages begin with `base`.
    """

    def __init__(
        self,
        shape: type[Shape],
        given: Sequence[tuple[str, str]],
        path: str,
        base: str = "",
        misplaced: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(shape, {})
        self._path, self._base = path, base
        self._given = given
        fields = _fields(shape)
        texts: dict[str, str] = {}
        for name, text in given:
            if name in texts and not self.faults.has(name[:100]):
                several = name in fields and fields[name].is_list
                self.faults.add(name[:100], f"{ONCE}, with commas between its values." if several else f"{ONCE}.")
            texts[name] = text
        self._refuse_unknown("parameter", texts, fields, misplaced)
        for name, field in fields.items():
            if name in texts and not self.faults.has(name):
                self._take(name, texts[name].split(",") if field.is_list else texts[name], field, strict=False)
        self._after = self._position() if self.has("cursor") else None

    @property
    def page(self) -> Page:
        """The page that is asked for; the first where none is or where it is wrong."""
        return Page(self.get("page", 1), self.get("page_size", DEFAULT_SIZE), self._after)

    def neighbours(self, part: Part[Any]) -> tuple[str | None, str | None]:
        """The addresses of the next page and the one before.

        Whoever asks by number is led on by numbers, everybody else by a cursor, which knows no way back.
        """
        if not self.has("page"):
            return (self._with("cursor", self._cursor(part.end)) if part.end else None), None
        page, last = self.page, max(1, -(-part.count // self.page.size))
        following = self._with("page", page.number + 1) if page.number < last else None
        return following, self._with("page", min(page.number - 1, last)) if page.number > 1 else None

    def _with(self, name: str, value: int | str) -> str:
        """The address of this very request, for another page."""
        others = [(name, value) for name, value in self._given if name not in ("page", "cursor")]
        return f"{self._base}{self._path}?{urlencode([*others, (name, value)])}"

    @property
    def _asked(self) -> str:
        """What a cursor belongs to: list, filters and order, in brief."""
        others = sorted(pair for pair in self._given if pair[0] not in ("page", "page_size", "cursor"))
        return hashlib.sha256(f"{self._path}?{urlencode(others)}".encode()).hexdigest()[:12]

    def _cursor(self, end: Position) -> str:
        said = msgspec.json.encode(_Cursor(self._asked, end.id, end.key))
        return base64.urlsafe_b64encode(said).rstrip(b"=").decode()

    def _position(self) -> Position | None:
        if "page" in dict(self._given):
            self.faults.add("cursor", "Send cursor or page, not both.")
            return None
        text = self.get("cursor")
        try:
            said = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            cursor = msgspec.json.decode(said, type=_Cursor)
        except ValueError:  # msgspec's errors and those of base64 are ValueErrors
            cursor = None
        if cursor is None or cursor.asked != self._asked or "\0" in str(cursor.key):
            self.faults.add("cursor", ForeignCursor())
            return None
        return Position(cursor.id, cursor.key)


class Listing(msgspec.Struct):
    """One page of a list: how many there are in all, where the neighbouring pages are, and the entries."""

    count: int
    next: Annotated[str | None, Meta(description="Address of the next page; null at the end")]
    previous: Annotated[str | None, Meta(description="Address of the page before; null unless `page` was asked for")]
    results: list[Any]

    @classmethod
    def of(cls, query: Query[Any], part: Part[Any], results: list[Any]) -> Self:
        """The page that a query asked for, of what was read for it."""
        return cls(part.count, *query.neighbours(part), results)

    @classmethod
    def part_of(cls, query: Query[Any], everything: list[Any]) -> Self:
        """The same, cut out of a list that is short enough to be read whole; it is in the order of its ids."""
        page = query.page
        after = page.after
        rest = everything[page.offset :] if after is None else [one for one in everything if one.id > after.id]
        part = Part.of(page, len(everything), rest[: page.size + 1])
        return cls.of(query, part, part.rows)


def unknown_name(what: str, name: str, known: Sequence[str], *, brief: bool = False) -> str:
    """Say that there is no such field or parameter, which one may be meant, and unless it is brief which there are."""
    if not known:
        return f"Unknown {what}. This request takes none."
    plain = name.lower().replace("-", "_")
    meant = [_ELSEWHERE[plain]] if _ELSEWHERE.get(plain) in known else difflib.get_close_matches(plain, known, 1)
    guess = f" Did you mean {meant[0]}?" if meant else ""
    if brief:
        return f"Unknown {what}.{guess}"
    there = f"The {what}s are {', '.join(known)}." if len(known) > 1 else f"The only {what} is {known[0]}."
    return f"Unknown {what}.{guess} {there}"


@cache
def _fields(shape: type[msgspec.Struct]) -> dict[str, _Field]:
    described = msgspec.inspect.type_info(shape).fields  # type: ignore[attr-defined]
    return {
        field.encode_name: _Field(field.type, field.required, _message(about.type), _has_list(about.type))
        for field, about in zip(msgspec.structs.fields(shape), described, strict=True)
    }


def _has_list(about: Any) -> bool:
    inner = [*getattr(about, "types", ()), getattr(about, "type", None)]
    return isinstance(about, msgspec.inspect.ListType) or any(_has_list(kind) for kind in inner if kind is not None)


def _message(about: Any) -> str | None:
    extra = getattr(about, "extra", None) or {}
    inner = [*getattr(about, "types", ()), getattr(about, "type", None)]
    found = [extra.get("message"), *(_message(kind) for kind in inner if kind is not None)]
    return next((text for text in found if text), None)


def _in_words(error: msgspec.ValidationError) -> str:
    def words(match: re.Match[str]) -> str:
        return " or ".join(_WORDS.get(word, word) for word in match[1].split(" | "))

    return re.sub("`([^`]*)`", words, str(error)) + "."
