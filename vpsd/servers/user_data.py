"""What a customer gives a server to do at its first boot, in the formats of cloud-init (its "User-data formats").

It is looked at as far as cloud-init would refuse or ignore it without a word to the customer: what it begins with, and,
of a cloud-config, whether it is YAML that holds options.
"""

import re
from typing import Any

import yaml

LARGEST_BYTES = 64 * 1024
_MOST_NODES = 10_000  # with everything counted as often as an alias repeats it
_DEEPEST = 50

_BEGINNINGS = (
    *("#cloud-config", "#cloud-config-archive", "#cloud-config-jsonp", "#cloud-boothook", "#include", "#include-once"),
    "#part-handler",
)
_MAY_BEGIN = (
    f"#! and a program, {', '.join(_BEGINNINGS)}, ## template: jinja, MIME-Version: or Content-Type: multipart/"
)
_MIME = re.compile(r"(MIME-Version:|Content-Type:\s*multipart/)", re.IGNORECASE)
_BOUNDARY = re.compile(r'\bboundary\s*=\s*(?:"([^"\r\n]+)"|([^\s;"]+))', re.IGNORECASE)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Refused(Exception):
    """What is wrong, and at which mark of the YAML."""

    def __init__(self, text: str, mark: Any = None) -> None:
        super().__init__(text if mark is None else f"Line {mark.line + 1}, column {mark.column + 1}: {text}")


def refusal(text: str) -> str | None:
    """Why it is not valid user data, with the way out; None where it is. `text` holds no NUL."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        return f"Character {error.start + 1} is half of a surrogate pair. Send text that is UTF-8."
    if size_bytes > LARGEST_BYTES:
        return f"{size_bytes} bytes of UTF-8 are too many; {LARGEST_BYTES} are the limit. Load the rest with #include."
    try:
        _check(text)
    except _Refused as error:
        return str(error)
    return None


def _check(text: str) -> None:
    first = text.partition("\n")[0].rstrip()
    if first == "## template: jinja":  # what it comes to is known in the guest only
        _check_beginning(text.partition("\n")[2].partition("\n")[0].rstrip())
    elif _MIME.match(text):
        _check_mime(text)
    else:
        word = _check_beginning(first)
        if word == "#cloud-config":
            _check_yaml(text, dict, "options, like packages: [htop]")
        elif word == "#cloud-config-archive":
            _check_yaml(text, list, "parts, like - {type: text/x-shellscript, content: ...}")


def _check_beginning(first: str) -> str:
    word = first.split(maxsplit=1)[0] if first.split() else ""
    if not (first.startswith("#!") and first[2:].strip()) and (first[:1].isspace() or word not in _BEGINNINGS):
        raise _Refused(f"User data begins, in its first column, with one of {_MAY_BEGIN}.")
    return word


def _check_mime(text: str) -> None:
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    found = _BOUNDARY.search(head)
    if "multipart/" not in head.lower() or found is None or f"\n--{found[1] or found[2]}" not in text:
        raise _Refused('A MIME message needs a head with Content-Type: multipart/...; boundary="...", and parts.')


def _check_yaml(text: str, kind: type, content: str) -> None:
    try:
        _check_size(text)
        value = yaml.load(text, _LOADER)  # noqa: S506  # it is the safe one
    except yaml.MarkedYAMLError as error:
        raise _Refused(f"{error.problem or error.context}.", error.problem_mark or error.context_mark) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a character or a date that is not valid
        raise _Refused(f"This is not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(value, kind):
        raise _Refused(f"Line 2, column 1: below {text.split(maxsplit=1)[0]} there have to be {content}.")


def _check_size(text: str) -> None:
    """Refuse what would grow beyond measure when it is loaded: events are counted before anything is made of them."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at which it began
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise _Refused(f"*{event.anchor} is inside of what it stands for.", event.start_mark)
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, began = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - began
        if count > _MOST_NODES or len(open_nodes) > _DEEPEST:
            limits = f"{_MOST_NODES} values with those that aliases repeat, {_DEEPEST} levels deep"
            raise _Refused(f"Here it becomes too much; the limits are {limits}.", event.start_mark)
