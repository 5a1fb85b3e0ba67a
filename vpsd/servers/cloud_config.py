"""Judges what cloud-init would merge into its configuration, document by document.

A #cloud-config has to be YAML, it has to pass the JSON Schema of cloud-init itself, and it has to leave root the way
in that a create promises. Run as a program, with limits of time and memory: 64 KiB can ask for a lot of work, and
nothing of YAML is looked at in the process that answers requests.
"""

import email
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from email.message import Message
from functools import cache
from itertools import islice
from typing import Any

import msgspec
import yaml

_CPU_SECONDS = 5
_MEMORY_BYTES = 512 * 1024 * 1024
_MOST_NODES = 10_000  # with everything counted as often as an alias repeats it
_DEEPEST = 50
_MOST_PARTS = 100  # of an archive or a MIME message
_MOST_ERRORS = 20  # that a schema may find before the first of them is told
_LONGEST_NUMBER = 100  # more digits cost more than they say: 1:59:59:… is a number to base 60
_LONGEST_QUOTE = 120
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CONFIG, _ARCHIVE = "text/cloud-config", "text/cloud-config-archive"
_GUESSED = ("text/plain", "text/x-not-multipart", "text/x-shellscript")  # cloud-init looks at how these begin
_SHAPES: dict[str, tuple[type, str]] = {
    _CONFIG: (dict, "options, like packages: [htop]"),
    _ARCHIVE: (list, "parts, like - {type: text/x-shellscript, content: ...}"),
}
_TRUE, _FALSE = ("true", "1", "on", "yes"), ("false", "0", "off", "no")  # cloud-init's util.is_true, is_false
_PASSWORDS = ("passwd", "hashed_passwd", "plain_text_passwd")
_ROOT_KEYS = "/root/.ssh/authorized_keys"


class Task(msgspec.Struct, frozen=True):
    """What the program reads: user data, cloud-init's schema (JSON) if it is known, and what the create promises."""

    text: str
    schema: str | None
    has_password: bool  # otherwise root has an SSH key


class _Loader(_PARSER):  # type: ignore[misc]
    """A safe loader that says where a value is that YAML's own types cannot take."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(problem="this number is too long", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError):  # all that its constructors let out
            name = node.tag.rpartition(":")[2][:_LONGEST_QUOTE]
            raise yaml.constructor.ConstructorError(
                problem=f"this is no {name}; put it in quotes if it is text", problem_mark=node.start_mark
            ) from None


class Refused(Exception):
    """What is wrong, and at which mark of the YAML."""

    def __init__(self, text: str, mark: Any = None) -> None:
        super().__init__(text if mark is None else f"Line {mark.line + 1}, column {mark.column + 1}: {text}")


def judge(task: Task) -> str | None:
    """Why the user data cannot be taken; None where it can."""
    try:
        _judge(task, _type(task.text, "") or "", task.text)
    except Refused as error:
        return str(error)[: 5 * _LONGEST_QUOTE]  # libyaml quotes tags and aliases whole
    except RecursionError:  # of the parser of MIME messages, which counts no levels
        return "Its parts are too deep inside of each other. Make it flatter."
    return None


def _judge(task: Task, kind: str, text: str, deeper: int = 0) -> None:
    if kind in _SHAPES:
        node, value = _load(kind, text)
        if kind == _CONFIG:
            _check_promise(node, value, task.has_password)
            _check_schema(node, value, task.schema)
        inner = _entries(value) if kind == _ARCHIVE else iter(())
    else:
        inner = _mime_parts(text) if kind == "multipart" else iter(())
    for number, (part_kind, part) in enumerate(inner, 1):
        if number > _MOST_PARTS:
            raise Refused(f"It has more than {_MOST_PARTS} parts. Put some of them together.")
        if deeper == 3:
            raise Refused("Archives inside of archives end at the third.")
        try:
            _judge(task, part_kind, part, deeper + 1)
        except Refused as error:
            raise Refused(f"Part {number}: {error}") from None


def _type(text: str, named: str) -> str | None:
    """Which kind of part it is, as far as it matters here; None for a template that is filled in by the guest."""
    first, _, rest = text.partition("\n")
    if first.strip() == "## template: jinja":
        if "{{" in text or "{%" in text or "{#" in text:
            return None
        first = rest.partition("\n")[0]
    word = first.split(maxsplit=1)[0] if first[:1] == "#" else ""
    if not named and first.lower().startswith(("mime-version:", "content-type:")):
        return "multipart"
    if named and named not in _GUESSED:
        return named
    return {"#cloud-config": _CONFIG, "#cloud-config-archive": _ARCHIVE}.get(word, named)


def _mime_parts(text: str) -> Iterator[tuple[str, str]]:
    for part in email.message_from_string(text).walk():
        if not part.is_multipart():
            content = _payload(part)
            yield _type(content, part.get_content_type()) or "", content


def _payload(part: Message) -> str:
    content = part.get_payload(decode=True)
    return content.decode(errors="replace") if isinstance(content, bytes) else ""


def _entries(entries: list[Any]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else entry
        named = entry.get("type") if isinstance(entry, dict) else None
        if isinstance(content, str):
            yield (named if isinstance(named, str) else _type(content, "text/plain")) or "", content


def _load(kind: str, text: str) -> tuple[yaml.Node, Any]:
    shape, content = _SHAPES[kind]
    try:
        _check_size(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise Refused(f"{error.problem or error.context}.", error.problem_mark or error.context_mark) from None
    except (yaml.YAMLError, ValueError) as error:  # a character that is not valid
        raise Refused(f"This is not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(value, shape):
        begin = text.split(maxsplit=1)[0] if text[:1] == "#" else kind
        raise Refused(f"Line 2, column 1: below {begin} there have to be {content}.")
    return node, value


def _check_size(text: str) -> None:
    """Refuse what would grow beyond measure when it is loaded: events are counted before anything is made of them."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at which it began
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, _PARSER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise Refused(f"*{event.anchor} is inside of what it stands for.", event.start_mark)
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
            raise Refused(f"Here it becomes too much; the limits are {limits}.", event.start_mark)


def _check_promise(node: yaml.Node, value: dict[Any, Any], has_password: bool) -> None:
    """Refuse what says openly that root shall not come in by the key or password which the answer promises."""
    for path, why in _contradictions(value, has_password):
        way = "password" if has_password else "SSH key"
        raise Refused(f"{why}, and root's {way} would not work. Leave it out.", _mark(node, path))


def _contradictions(value: dict[Any, Any], has_password: bool) -> Iterator[tuple[list[Any], str]]:
    if _says(value.get("disable_root"), _TRUE):
        yield ["disable_root"], "disable_root shuts root out"
    modules = value.get("cloud_init_modules")
    if "cloud_init_modules" in value and not any(_module(entry) == "ssh" for entry in _list(modules)):
        yield ["cloud_init_modules"], "Without the module ssh there are no host keys"
    for place, file in enumerate(_list(value.get("write_files"))):
        if isinstance(file, dict) and file.get("path") == _ROOT_KEYS and file.get("defer") and not file.get("append"):
            yield ["write_files", place, "path"], f"{_ROOT_KEYS} is written anew after the key is in it"
    if has_password:
        yield from _other_passwords(value)


def _other_passwords(value: dict[Any, Any]) -> Iterator[tuple[list[Any], str]]:
    if _says(value.get("ssh_pwauth"), _FALSE):
        yield ["ssh_pwauth"], "ssh_pwauth: false refuses passwords"
    users = value.get("users")
    if isinstance(users, str) and "root" in [name.strip() for name in users.split(",")]:
        yield ["users"], "users locks the password of root, as of everybody who is listed there by name alone"
    named = [(place, user) for place, user in enumerate(_list(users)) if isinstance(user, dict)]
    for place, user in named:
        if user.get("name") == "root":
            yield from _other_password(["users", place], user, listed=True)
    if isinstance(users, dict) and "root" in users:
        root = users["root"]
        yield from _other_password(["users", "root"], root if isinstance(root, dict) else {}, listed=False)
    default = value.get("user")
    if default == "root":
        yield ["user"], "user makes root the default user, whose password is locked or set by password"
    elif isinstance(default, dict) and default.get("name") == "root":
        yield from _other_password(["user"], default, listed=False)
    chpasswd = value.get("chpasswd")
    if isinstance(chpasswd, dict):
        lines = chpasswd.get("list")
        lines = lines.splitlines() if isinstance(lines, str) else _list(lines)
        if any(isinstance(line, str) and line.strip().startswith("root:") for line in lines):
            yield ["chpasswd", "list"], "chpasswd sets another password for root"
        for place, user in enumerate(_list(chpasswd.get("users"))):
            if isinstance(user, dict) and user.get("name") == "root":
                yield ["chpasswd", "users", place], "chpasswd sets another password for root"


def _other_password(path: list[Any], user: dict[Any, Any], *, listed: bool) -> Iterator[tuple[list[Any], str]]:
    for name in _PASSWORDS:
        if name in user:
            yield [*path, name], f"{name} sets another password for root"
    # In a list vpsd's own entry for root follows, and lock_passwd is true only where somebody wrote that.
    if user.get("lock_passwd", not listed) is not False:
        yield [*path, "lock_passwd"], "lock_passwd is true by default and locks root's password"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _says(value: Any, words: Sequence[str]) -> bool:
    return str(value).strip().lower() in words


def _module(entry: Any) -> str:
    name = entry[0] if isinstance(entry, list) and entry else entry
    return str(name).removeprefix("cc_")


def _check_schema(node: yaml.Node, value: Any, schema: str | None) -> None:
    if schema is None:
        return
    from jsonschema.exceptions import best_match

    found: list[tuple[int, int, int, str, Any]] = []
    for error in islice(_validator(schema).iter_errors(_as_json(value)), _MOST_ERRORS):
        deepest = best_match([error])
        path = list(deepest.absolute_path)
        if path[-1:] == ["sudo"] and isinstance(deepest.instance, list):
            continue  # cloud-init 22 takes a list of rules, as in its own cloud.cfg; its schema forgot that
        mark = _mark(node, path)
        found.append((mark.line, mark.column, len(found), _in_words(path, deepest), mark))
    if found:
        first = min(found, key=lambda entry: entry[:3])
        raise Refused(first[3], first[4])


@cache
def _validator(schema: str) -> Any:
    # Imported here: only the program needs it.
    from jsonschema import Draft4Validator

    return Draft4Validator(msgspec.json.decode(schema))


def _as_json(value: Any) -> Any:
    """Keys of mappings are strings to a schema, and so are bytes to cloud-init."""
    if isinstance(value, dict):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _in_words(path: Sequence[Any], error: Any) -> str:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    if error.instance is None:
        return f"{where} is empty. Give it a value, or leave it out."
    quoted, text = repr(error.instance), error.message
    if len(quoted) > _LONGEST_QUOTE:
        text = text.replace(quoted, f"{quoted[:_LONGEST_QUOTE]}...")
    hint = ""
    if error.validator == "type" and error.validator_value == "string" and isinstance(error.instance, int | float):
        hint = " Put it in quotes."
    return f"{where[:_LONGEST_QUOTE]}{': ' if where else ''}{text[: 3 * _LONGEST_QUOTE]}.{hint}"


def _mark(node: yaml.Node, path: Sequence[Any]) -> Any:
    """Where a value stands: its key, or as much of the way to it as there is."""
    mark = node.start_mark
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            mark = node.start_mark
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [pair for pair in pairs if getattr(pair[0], "value", None) == str(step)]
        if not found:
            return mark
        mark, node = found[-1][0].start_mark, found[-1][1]
    return mark


def main() -> None:
    """Read a `Task` as JSON from standard input; write why it cannot be taken, or nothing."""
    os.nice(10)  # whoever waits for an answer of the API goes first
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    said = judge(msgspec.json.decode(sys.stdin.buffer.read(), type=Task))
    sys.stdout.buffer.write((said or "").encode(errors="replace"))


if __name__ == "__main__":
    main()
