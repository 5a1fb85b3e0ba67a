"""What a customer gives a server to do at its first boot, in the formats of cloud-init (its "User-data formats").

It is looked at as far as cloud-init would refuse or ignore it without a word to the customer: what it begins with, and,
of a cloud-config, whether it is YAML that cloud-init's own schema takes.
"""

import asyncio
import base64
import binascii
import logging
import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from vpsd.servers import cloud_config
from vpsd.servers.cloud_config import Refused

log = logging.getLogger(__name__)

LARGEST_BYTES = 64 * 1024
_CHECK_SECONDS = 15  # of the process that looks at it; a machine may be busy
_CHECKERS = ThreadPoolExecutor(2, "user-data")  # so many are looked at at once, of an account one
_turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

_BEGINNINGS = (
    *("#cloud-config", "#cloud-config-archive", "#cloud-config-jsonp", "#cloud-boothook", "#include", "#include-once"),
    "#part-handler",
)
_MAY_BEGIN = (
    f"#! and a program, {', '.join(_BEGINNINGS)}, ## template: jinja, MIME-Version: or Content-Type: multipart/"
)
_MIME = re.compile(r"(MIME-Version:|Content-Type:\s*multipart/)", re.IGNORECASE)
_BOUNDARY = re.compile(r'\bboundary\s*=\s*(?:"([^"\r\n]+)"|([^\s;"]+))', re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_OPTION = re.compile(r"[a-z_]+:(\s|$)")


class UserDataStatus(StrEnum):
    """How far the user data is, in the words of the guest's own cloud-init."""

    RUNNING = "running"  # it has not run yet, or runs
    DONE = "done"
    DEGRADED = "degraded"  # it ran to its end, with warnings
    ERROR = "error"
    UNKNOWN = "unknown"  # the guest never said


@cache
def installed_schema() -> str | None:
    """The schema of Debian's cloud-init that `scripts/install` fetched; it serves where no image has brought one."""
    path = Path(sys.prefix) / "share/vpsd/cloud-config-schema.json"
    try:
        return path.read_text()
    except OSError:
        log.warning("%s is missing: a #cloud-config is not compared with cloud-init's schema", path)
        return None


async def check(text: str, schema: str | None, *, has_password: bool, account_id: int) -> str | None:
    """Why it cannot be taken, with the way out; None where it can. `text` holds no NUL.

    `schema` is that of the image's cloud-init, if it is known. What may cost much is done in a process of its own, for
    one request of an account at a time.
    """
    said = refusal(text)
    if said is not None or "cloud-config" not in text.lower():
        return said
    task = msgspec.json.encode(cloud_config.Task(line_ends(text), schema, has_password))
    async with _turns.setdefault(account_id, asyncio.Lock()):
        return await asyncio.get_running_loop().run_in_executor(_CHECKERS, _judge_apart, task)


def _judge_apart(task: bytes) -> str | None:
    program = (sys.executable, "-P", "-m", cloud_config.__name__)  # -P: not from the folder it was started in
    try:
        done = subprocess.run(program, input=task, capture_output=True, timeout=_CHECK_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        return "It takes too long to check. Make it simpler, or load a part of it with #include."
    except subprocess.CalledProcessError as error:
        log.warning(
            "user data could not be checked (%s): %s", error.returncode, error.stderr[-500:].decode(errors="replace")
        )
        return "It takes too much time or memory to check. Make it simpler, or load a part of it with #include."
    return done.stdout.decode() or None


def line_ends(text: str) -> str:
    """The text with the line ends that a guest's shell wants: an editor on Windows writes CRLF."""
    return text.replace("\r\n", "\n")


def refusal(text: str) -> str | None:
    """Why it is not valid user data, as far as that can be told at once; None where it may be."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        return f"Character {error.start + 1} is half of a surrogate pair. Send text that is UTF-8."
    if size_bytes > LARGEST_BYTES:
        return f"{size_bytes} bytes of UTF-8 are too many; {LARGEST_BYTES} are the limit. Load the rest with #include."
    try:
        _check(line_ends(text))
    except Refused as error:
        return str(error)
    return None


def _check(text: str) -> None:
    first = text.partition("\n")[0].rstrip()
    if first == "## template: jinja":  # what it comes to is known in the guest only
        try:
            _check_beginning(text.partition("\n")[2])
        except Refused as error:
            raise Refused(f"Below {first}: {error}") from None
    elif _MIME.match(text):
        _check_mime(text)
    else:
        _check_beginning(text)


def _check_beginning(text: str) -> None:
    known = _known_beginning(text)
    if known is None:
        raise Refused(_cause(text) or f"User data begins, in its first column, with one of {_MAY_BEGIN}.")
    if unseen := _unseen(text):
        raise Refused(unseen)
    if known == "#!" and "\r" in text and "\n" not in text:
        raise Refused("Its lines end with CR alone, as on an old Mac. End them with LF.")


def _known_beginning(text: str) -> str | None:
    first = text.partition("\n")[0]
    if re.match(r"#![ \t]*/\S", first):
        return "#!"
    word = first.split(maxsplit=1)[0] if first.split() else ""
    return word if word in _BEGINNINGS and not first[:1].isspace() else None


def _cause(text: str) -> str:
    """What somebody probably did who sent this."""
    first = text.partition("\n")[0].strip()
    bare = text.lstrip("\ufeff \t\r\n")
    if not bare:
        return "It is empty. Leave it out, or send what the server shall do at its first boot."
    if text.startswith("\ufeff"):
        return "It begins with a byte order mark (U+FEFF). Save it as UTF-8 without one."
    if text[:1].isspace() and (_known_beginning(bare) or _MIME.match(bare) or bare.startswith("## template: jinja")):
        what = "a blank line" if not first else "white space"
        return f"It begins with {what}. Begin with {bare.split(maxsplit=1)[0]}."
    if text.startswith(("\x1f\x8b", "\x1f\ufffd")):
        return "This is gzip. Send the text itself."
    inside = _inside_base64(text)
    if inside is not None:
        return f"This is base64 of {inside}. Send the text itself."
    return _unseen(text) or _misspelt(first, bare)


def _unseen(text: str) -> str:
    """What the first line has in it that came along with copy and paste; a program of that name is not there."""
    for place, character in enumerate(re.split(r"[ \t]#", text.partition("\n")[0])[0]):
        if not character.isprintable() and character not in "\t\r":
            name = unicodedata.name(character, "it has no name")
            return (
                f"Character {place + 1} is U+{ord(character):04X} ({name}), which one does not see: it does not belong "
                "there. Copy the text anew, with a plain text editor."
            )
    return ""


def _inside_base64(text: str) -> str | None:
    """What a text stands for in base64, or None."""
    packed = "".join(text.removeprefix("data:text/plain;base64,").split())
    if not _BASE64.fullmatch(packed):
        return None
    try:
        content = base64.b64decode(packed.rstrip("=") + "=" * (-len(packed.rstrip("=")) % 4), altchars=None)
    except (binascii.Error, ValueError):
        return None
    if content.startswith(b"\x1f\x8b"):
        return "gzip"
    inner = content.decode(errors="replace").lstrip("\ufeff \t\r\n")
    if _known_beginning(inner) or _MIME.match(inner) or inner.startswith("## template: jinja"):
        return f"a text that begins with {inner.split(maxsplit=1)[0]}"
    return None


def _misspelt(first: str, text: str) -> str:
    squeezed = re.sub(r"[\s_:-]", "", first.lower())
    if squeezed.startswith(("#cloudconfig", "##cloudconfig", "cloudconfig")):
        return "The first line of a cloud-config is exactly #cloud-config: lower case, one #, no space."
    if re.match(r"(#\s+!|!#|\s*#!)", first):
        return "The first line of a script is #! and the absolute path of a program, like #!/bin/sh."
    if text[:1] == '"':
        return "It is quoted once too often. Send the text itself as the JSON string."
    if text[:1] == "{":
        return "This is JSON. Put #cloud-config before it, on a line of its own, if it is a cloud-config."
    if first == "---" or _OPTION.match(first):
        return "A cloud-config begins with a line of its own, #cloud-config."
    return ""


def _check_mime(text: str) -> None:
    head = re.split(r"\n\n", text, maxsplit=1)[0]
    found = _BOUNDARY.search(head)
    if "multipart/" not in head.lower() or found is None or f"\n--{found[1] or found[2]}" not in text:
        raise Refused('A MIME message needs a head with Content-Type: multipart/...; boundary="...", and parts.')
