"""The one place where failures become HTTP.

Bodies: `{"detail", "code"}`, and for bad input `{"field": ["message", …]}`, as the official client reads them.
"""

import logging
from typing import Any

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from vpsd import errors
from vpsd.api.cloud import CloudRequest
from vpsd.core.pages import LARGEST_SIZE

log = logging.getLogger(__name__)

STATUS_CODES: dict[type[errors.VpsdError], int] = {
    errors.Unauthenticated: 401,
    errors.NotFound: 404,
    errors.Invalid: 400,
    errors.WrongStatus: 400,
    errors.Busy: 400,
    errors.InUse: 400,
    errors.Unavailable: 503,
    errors.Unusable: 500,
    errors.Misconfigured: 500,
}

_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


class Problem(msgspec.Struct):
    """What went wrong, for people and for programs."""

    detail: str
    code: str


def of_vpsd(_: CloudRequest, error: errors.VpsdError) -> Response[Any]:
    """An expected failure."""
    status_code = STATUS_CODES[type(error)]
    if isinstance(error, errors.Invalid):
        return Response(error.fields, status_code=status_code)
    headers = {"WWW-Authenticate": 'Bearer realm="vpsd"'} if status_code == 401 else {}
    return Response(Problem(str(error), error.code), status_code=status_code, headers=headers)


def of_http(request: CloudRequest, error: HTTPException) -> Response[Any]:
    """A failure that the framework found: no such path, wrong method, a body that is no JSON."""
    if isinstance(error, ValidationException):
        return Response(_fields(request, error), status_code=400)
    code = _CODES.get(error.status_code, "error")
    details = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.method} is not possible at {request.url.path}.",
        413: "The body is too large.",
    }
    detail = details.get(error.status_code, error.detail)
    if error.status_code == 400:
        detail = "The body is no valid JSON."
    return Response(Problem(detail, code), status_code=error.status_code, headers=error.headers or {})


def _fields(request: CloudRequest, error: ValidationException) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, largest in (("page", None), ("page_size", LARGEST_SIZE)):
        value = request.query_params.get(name)
        if value is not None and not (value.isdecimal() and 0 < int(value) <= (largest or int(value))):
            fields[name] = [f"Give a whole number from 1{f' to {largest}' if largest else ''}."]
    if not fields:
        for extra in error.extra if isinstance(error.extra, list) else []:
            fields.setdefault(extra.get("key") or "body", []).append(extra.get("message") or error.detail)
    return fields or {"body": ["Send a JSON object."]}


def of_bug(request: CloudRequest, error: Exception) -> Response[Any]:
    """A failure that nobody expected: logged in full, told in brief."""
    log.exception("%s %s met an error of vpsd's own", request.method, request.url.path, exc_info=error)
    return Response(Problem("vpsd met an error of its own; the operator's log has it.", "internal"), status_code=500)


HANDLERS: ExceptionHandlersMap = {errors.VpsdError: of_vpsd, HTTPException: of_http, Exception: of_bug}
