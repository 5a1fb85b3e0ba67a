"""What no request to this API may look like, found before any route is looked up: RFC 9110 and RFC 9112.

Two readers of one request must not take it for two different ones, so what is ambiguous is refused, not guessed at.
"""

import re
from typing import Any

import msgspec


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is refused; the connection is closed after the answer."""

    status_code: int
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


MALFORMED = Refusal(400, "This is not valid HTTP/1.1 (RFC 9112).")
URL_TOO_LONG = Refusal(414, "The URL is too long; the limit is 8 KiB.")
HEAD_TOO_LARGE = Refusal(431, "The head of the request is too large; the limits are 32 KiB and 100 fields.")
BODY_TOO_WORDY = Refusal(413, "The body comes in too many small chunks.")
TOO_SLOW = Refusal(408, "The request took too long to arrive.")
NO_UPGRADE = Refusal(400, "This request cannot change the protocol and have a body. Leave out the header Upgrade.")

_NO_HOST = Refusal(400, "Send the header Host, once: RFC 9112, section 3.2.")
_ODD_HOST = Refusal(400, "The header Host is not a host with an optional port.")
_TWO_TOKENS = Refusal(400, "The header Authorization is there more than once. Send it once.")
_ODD_PATH = Refusal(400, "The path has an empty segment or an encoded slash: // or %2F. Leave it out.")
_ODD_CODING = Refusal(400, "Send Transfer-Encoding: chunked and no Content-Length, or Content-Length alone.")
_ENCODED = Refusal(
    415, "Send the body as it is, without the header Content-Encoding.", ((b"accept-encoding", b"identity"),)
)

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+")


def refusal_of(scope: Any) -> Refusal | None:
    """Why a request is refused by its path and its fields, if it is; the server may have found a reason already."""
    found: Refusal | None = scope.get("refusal")
    if found is not None:
        return found
    path = scope["raw_path"]
    if b"//" in path or (b"%2" in path and b"%2f" in path.lower()):
        return _ODD_PATH
    hosts, tokens, codings, length = [], 0, [], False
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"authorization":
            tokens += 1
        elif name == b"content-length":
            length = True
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return _ENCODED
    old = scope["http_version"] == "1.0"
    if len(hosts) != 1 and not (old and not hosts):
        return _NO_HOST
    if hosts and not _HOST.fullmatch(hosts[0]):
        return _ODD_HOST if hosts[0] else _NO_HOST
    if tokens > 1:
        return _TWO_TOKENS
    if codings and (codings != [b"chunked"] or length or old):
        return _ODD_CODING
    return None
