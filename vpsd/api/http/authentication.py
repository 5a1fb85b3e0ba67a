"""Whether somebody may ask: the login of a request, its permissions, and how often it may fail."""

from contextlib import suppress
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from vpsd.accounts import tokens
from vpsd.accounts.permissions import KNOWN
from vpsd.api.http.context import RequestContext
from vpsd.errors import DatabaseUnavailable, Forbidden, TooMany, Unauthenticated

EVERYBODY = "any"  # what a route needs that any valid token may use
PUBLIC = "public"  # and one that asks for no token

_RECORD_USE_SECONDS = 0.1  # a request does not wait longer to note that its token was used


class LacksPermission(Forbidden):
    """The token may not do what the route does."""

    def __init__(self, permission: str) -> None:
        super().__init__(f"This token lacks the permission {permission}.")


class BearerToken(AbstractAuthenticationMiddleware):
    """Lets nobody through without a valid `Authorization: Bearer …` that may do what the route does."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Find the caller; raises `Unauthenticated`, `Forbidden` or `TooMany`."""
        context: RequestContext = connection.scope["vpsd"]  # type: ignore[typeddict-item]
        login = context.login
        if isinstance(login, Unauthenticated):
            # Only wrong tokens have to wait: who shares an address with somebody who guesses is not shut out.
            wait = context.limits.failures.take(context.network).retry_seconds
            if wait:
                raise TooMany(f"Too many wrong tokens came from this address. Wait {wait} seconds.", wait)
        if isinstance(login, Exception):
            raise login
        caller = login.caller
        need = needed(connection.route_handler)
        if need != EVERYBODY and not caller.may(need):
            raise LacksPermission(need)
        if login.record_use:
            # A database that can only be read is no reason to refuse a read; the next request tries again.
            with suppress(DatabaseUnavailable):
                async with context.runtime.write(caller, wait_seconds=_RECORD_USE_SECONDS) as ctx:
                    await tokens.record_use(ctx, caller.token_id)
        return AuthenticationResult(caller, None)


def needed(handler: BaseRouteHandler) -> str:
    """The permission that a route needs; raises TypeError for one that forgot to say, which no application has."""
    need = handler.opt.get("needs")
    if need not in (*KNOWN, EVERYBODY, PUBLIC):
        raise TypeError(f"{handler}: say which permission it needs")
    return str(need)
