"""Lists of checksums, in the forms that publishers of images use."""

import re
from urllib.parse import unquote, urlsplit

import msgspec

from vpsd.errors import Unusable
from vpsd.images.looks import name_of

_STRENGTH = ("sha512", "sha384", "sha256")  # the strongest first; weaker ones prove nothing
_LENGTHS = {128: "sha512", 96: "sha384", 64: "sha256", 56: "sha224", 40: "sha1", 32: "md5"}  # in hex digits

_HEX = r"(?P<hex>[0-9a-fA-F]{32,128})"
_FORMS = (
    re.compile(rf"\\?{_HEX}(?:\s+[*]?(?P<name>\S.*))?"),  # GNU coreutils, Debian, Ubuntu; alone: of the only file
    re.compile(rf"(?P<algorithm>[A-Z0-9-]+) ?\((?P<name>.+)\) ?= ?{_HEX}"),  # BSD and OpenSSL, Fedora, Rocky
)
_SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = "-----BEGIN PGP SIGNATURE-----"


class Checksum(msgspec.Struct, frozen=True):
    """What a file's digest has to be."""

    algorithm: str  # as in hashlib
    hex: str


def find(content: bytes, list_url: str, url: str) -> Checksum:
    """The strongest checksum that a list has for the file at `url`. A signature around the list is not verified.

    Raises `Unusable` where it has none, only weak ones, or two that differ.
    """
    name = unquote(urlsplit(url).path).lstrip("/")
    file_name = name.rpartition("/")[2]
    found: dict[str, set[str]] = {}
    for kind, entry, digest in _entries(_text(content, list_url)):
        # a name in a list that lies further up has folders before it
        if entry is None or f"/{name}".endswith(f"/{entry.removeprefix('./')}"):
            found.setdefault(kind, set()).add(digest)
    if not found:
        raise Unusable(f"{list_url} has no checksum for {file_name}.")
    algorithm = next((one for one in _STRENGTH if one in found), None)
    if algorithm is None:
        weak = " and ".join(sorted(one.upper() for one in found))
        raise Unusable(f"{list_url} has only {weak} for {file_name}, which proves nothing; a SHA-256 is needed.")
    if len(found[algorithm]) > 1:
        raise Unusable(f"{list_url} has two different {algorithm.upper()} checksums for {file_name}.")
    return Checksum(algorithm, found[algorithm].pop())


def _text(content: bytes, list_url: str) -> str:
    """The list itself, without a signature around it (RFC 9580, 7: the cleartext signature framework)."""
    looks = name_of(content)
    text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    if looks is not None or text.lstrip().startswith(_SIGNATURE) or "\0" in text:
        what = looks or "a signature or another file"
        raise Unusable(f"{list_url} is {what}, not a list of checksums.")
    if _SIGNED not in text:
        return text
    signed = text.partition(_SIGNED)[2].partition(_SIGNATURE)[0].partition("\n\n")[2]
    return "\n".join(line.removeprefix("- ") for line in signed.split("\n"))


def _entries(text: str) -> list[tuple[str, str | None, str]]:
    """Algorithm, file name (None: it stands alone) and digest of every line that has them."""
    entries = []
    for line in text.splitlines():
        for form in _FORMS:
            found = form.fullmatch(line.strip())
            algorithm = None if found is None else _LENGTHS.get(len(found["hex"]))
            if found is None or algorithm is None:
                continue
            given = found.groupdict().get("algorithm")
            if given is None or given.replace("-", "").lower() in (algorithm, algorithm.replace("sha", "sha2")):
                entries.append((algorithm, found["name"], found["hex"].lower()))
    return entries
