"""The one place where failures become HTTP.

Bodies: `{"detail", "code"}`, and for bad input `{"field": ["message", …]}`. The words are the dialect's.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import ExceptionHandlersMap

from vpsd import errors

AnyRequest: TypeAlias = Request[Any, Any, Any]

log = logging.getLogger(__name__)

# A kind that is not here is answered like the kind that it is made of.
STATUS_CODES: dict[type[errors.VpsdError], int] = {
    errors.Unauthenticated: 401,
    errors.PaymentRequired: 402,
    errors.Forbidden: 403,
    errors.OverQuota: 403,
    errors.NotFound: 404,
    errors.Protected: 409,
    errors.StillRunning: 409,
    errors.KeyReused: 422,
    errors.TooMany: 429,
    errors.Invalid: 400,
    errors.WrongStatus: 400,
    errors.Busy: 400,
    errors.Unavailable: 503,
    errors.DatabaseUnavailable: 503,
    errors.VpsdError: 500,
}

CODES = {
    400: "bad_request",
    401: "unauthenticated",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "still_running",
    413: "too_large",
    414: "url_too_long",
    415: "unsupported_media_type",
    422: "idempotency_key_reused",
    429: "too_many_requests",
    431: "head_too_large",
    503: "unavailable",
}

LARGEST_BODY_BYTES = 256 * 1024  # larger than any body that makes sense
TOO_LARGE = f"The body is too large; the limit is {LARGEST_BODY_BYTES} bytes."

BUG = "internal"

CHALLENGE = 'Bearer realm="vpsd"'

METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
ASKS_FOR_METHODS = "OPTIONS *"  # what OPTIONS is for the framework, whose own tells only some methods of a path
HUNG_UP = 499  # nobody reads it but the log
_QUOTED = 200  # characters of a path in an answer


class Problem(msgspec.Struct):
    """What went wrong: `detail` for people, `code` for programs."""

    detail: str
    code: str


def status_code_of(kind: type[errors.VpsdError]) -> int:
    """The status code that a kind of failure is answered with."""
    return next(STATUS_CODES[base] for base in kind.__mro__ if base in STATUS_CODES)


def handlers(text: Callable[[object], str]) -> ExceptionHandlersMap:
    """What answers failures; `text` says an error or a fault in the words of a dialect."""

    def of_vpsd(_: AnyRequest, error: errors.VpsdError) -> Response[Any]:
        return answer_to(error, text)

    return {errors.VpsdError: of_vpsd, HTTPException: of_http, Exception: of_bug}


def answer_to(error: errors.VpsdError, text: Callable[[object], str]) -> Response[Any]:
    """The answer to an expected failure."""
    status_code = status_code_of(type(error))
    if isinstance(error, errors.Invalid):
        fields = {name: [text(fault) for fault in faults] for name, faults in error.fields.items()}
        if error.unnamed:
            fields["more"] = [f"{error.unnamed} more fields are wrong; they are not named here."]
        return Response(fields, status_code=status_code)
    headers = {"WWW-Authenticate": CHALLENGE} if status_code == 401 else {}
    retry_seconds = getattr(error, "retry_seconds", None)  # logged, if at all, where it was noticed
    if retry_seconds is not None:
        headers["Retry-After"] = str(retry_seconds)
    detail = text(error) if error.public is None else error.public
    return Response(Problem(detail, error.code), status_code=status_code, headers=headers)


def of_http(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """A failure found on the way to a handler: no such path, wrong method, a body that is not JSON."""
    headers = {name.title(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["Allow"] = _allow(headers["Allow"])
        if request.method == ASKS_FOR_METHODS:
            return Response(None, status_code=204, headers=headers)
    path = request.scope["path"]
    path = path if len(path) <= _QUOTED else f"{path[:_QUOTED]}…"
    details = {
        404: f"There is nothing at {path}.",
        405: f"{request.method} is not possible at {path}.",
        413: TOO_LARGE if isinstance(error, RequestEntityTooLarge) else error.detail,
    }
    problem = Problem(details.get(error.status_code, error.detail), CODES.get(error.status_code, "error"))
    return Response(problem, status_code=error.status_code, headers=headers)


def _allow(found: str) -> str:
    """The methods of a path (RFC 9110, section 10.2.1), made of those that the framework knows."""
    methods = set(found.split(", ")) | {"OPTIONS"}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def of_bug(request: AnyRequest, error: Exception) -> Response[Any]:
    """A failure that nobody expected: logged in full, told in brief."""
    log.exception("%s %s failed with an unexpected error", request.method, request.scope["path"], exc_info=error)
    return Response(Problem("vpsd met an error of its own; the operator's log has it.", BUG), status_code=500)
