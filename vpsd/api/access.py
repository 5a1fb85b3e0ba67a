"""Who is asking, how often, and whether they may: the bearer token of a request, its permissions and its limits."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from vpsd.accounts import tokens
from vpsd.accounts.permissions import KNOWN
from vpsd.api.cloud import Cloud
from vpsd.api.edge import Trace
from vpsd.errors import Forbidden, TooMany, Unauthenticated

EVERYBODY = "any"  # what a route needs that any valid token may use


class BearerToken(AbstractAuthenticationMiddleware):
    """Lets nobody through without a valid `Authorization: Bearer …` that may do what the route does."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Find the caller; raises `Unauthenticated`, `Forbidden` or `TooMany`."""
        cloud: Cloud = connection.app.state.cloud
        trace: Trace = connection.scope["vpsd"]  # type: ignore[typeddict-item]
        try:
            token = bearer_token(connection)
            async with cloud.database.read() as tx:
                login = await tokens.authenticate(tx, cloud.clock, token, trace.address, trace.request_id)
        except Unauthenticated:
            # Only wrong tokens have to wait: who shares an address with somebody who guesses is not shut out.
            wait = trace.gates.failures.take(trace.address).retry_seconds
            if wait:
                raise TooMany(f"Too many wrong tokens came from this address. Wait {wait} seconds.", wait) from None
            raise
        trace.caller = caller = login.caller
        trace.take("token", str(caller.token_id))
        need = needed(connection.route_handler)
        if need != EVERYBODY and not caller.may(need):
            raise Forbidden(f"This token lacks the permission {need}.")
        if login.note_use:
            async with cloud.database.write() as tx:
                await tokens.note_use(tx, cloud.clock, caller.token_id)
        return AuthenticationResult(caller, None)


def needed(handler: BaseRouteHandler) -> str:
    """The permission that a route needs; raises TypeError for one that forgot to say, which no application has."""
    need = handler.opt.get("needs")
    if need != EVERYBODY and need not in KNOWN:
        raise TypeError(f'{handler}: say in opt["needs"] which permission it needs, or opt["public"]')
    return str(need)


def bearer_token(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The token that a request carries; raises `Unauthenticated` where there is none."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("Send your token with the request: Authorization: Bearer YOUR_API_TOKEN")
    return token.strip()
