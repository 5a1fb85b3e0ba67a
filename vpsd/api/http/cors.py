"""Which web pages may use this API from a browser: the Fetch standard, section 3.2, https://fetch.spec.whatwg.org/.

The framework's own adds nothing to answers that are given before it is asked (429), and tells pages of other origins
what they may do. Here the answer to every request says it, errors too, and only to those that are named.
"""

from collections.abc import Sequence
from typing import Any

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_SENT = "Authorization, Content-Type, Idempotency-Key, X-Request-ID"
_SHOWN = "RateLimit, RateLimit-Policy, Retry-After, X-Operation-ID, X-Request-ID"

PREFLIGHT = [
    (b"access-control-allow-methods", _METHODS.encode()),
    (b"access-control-allow-headers", _SENT.encode()),
    (b"access-control-max-age", b"600"),
]


class Cors:
    """What pages of some origins may do; `*`: of all. Tokens are no cookies, so no credentials are allowed."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._all = "*" in origins
        self._origins = {origin.encode() for origin in origins}

    def headers(self, scope: Any) -> dict[str, str]:
        """What the answer to a request has to carry."""
        if not self._origins:
            return {}
        named = {} if self._all else {"Vary": "Origin"}  # also for others: a cache must not mix them up
        origin = _header(scope, b"origin")
        if origin is None or not (self._all or origin in self._origins):
            return named
        allowed = "*" if self._all else origin.decode("latin-1")
        return {**named, "Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": _SHOWN}

    def is_preflight(self, scope: Any) -> bool:
        """Whether a browser asks, for a page that may, whether it may send a request."""
        if scope["method"] != "OPTIONS" or _header(scope, b"access-control-request-method") is None:
            return False
        return "Access-Control-Allow-Origin" in self.headers(scope)


def _header(scope: Any, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
