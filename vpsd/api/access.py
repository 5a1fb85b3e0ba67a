"""Who is asking, how often, and whether they may: the bearer token of a request, its permissions and its limits."""

from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from vpsd.accounts import tokens
from vpsd.accounts.permissions import KNOWN
from vpsd.api.cloud import Cloud
from vpsd.api.edge import Trace
from vpsd.core.limits import Limiter
from vpsd.errors import Forbidden, TooMany, Unauthenticated

EVERYBODY = "any"  # what a route needs that any valid token may use
_FAILURES_SECONDS = 600


class Gates(msgspec.Struct, frozen=True):
    """How often somebody may ask, counted in this process."""

    addresses: Limiter
    tokens: Limiter
    failures: Limiter

    @classmethod
    def of(cls, cloud: Cloud) -> "Gates":
        """As the settings say."""
        settings = cloud.settings
        return cls(
            Limiter(cloud.clock, settings.address_rate_limit),
            Limiter(cloud.clock, settings.rate_limit),
            Limiter(cloud.clock, settings.login_failures, _FAILURES_SECONDS),
        )

    def pass_address(self, address: str, trace: Trace) -> None:
        """Count a request of an address; raises `TooMany`, also while it has failed to log in too often."""
        _pass(self.addresses, "address", address, trace, "This address has sent too many requests.")
        wait = self.failures.look(address).retry_seconds
        if wait:
            raise TooMany(f"Too many wrong tokens came from this address. Wait {wait} seconds.", wait)

    def pass_token(self, token_id: int, trace: Trace) -> None:
        """Count a request of a token; raises `TooMany`."""
        _pass(self.tokens, "token", str(token_id), trace, "This token has sent too many requests.")


def _pass(limiter: Limiter, name: str, key: str, trace: Trace, complaint: str) -> None:
    # Headers: draft-ietf-httpapi-ratelimit-headers, version 10.
    if not limiter.limit:
        return
    quota = limiter.take(key)
    for header, text in (
        ("RateLimit-Policy", f'"{name}";q={quota.limit};w={limiter.window_seconds}'),
        ("RateLimit", f'"{name}";r={quota.remaining};t={quota.reset_seconds}'),
    ):
        before = trace.headers.get(header)
        trace.headers[header] = f"{before}, {text}" if before else text
    if quota.retry_seconds:
        raise TooMany(f"{complaint} Wait {quota.retry_seconds} seconds.", quota.retry_seconds)


def needed(handler: BaseRouteHandler) -> str:
    """The permission that a route needs; raises TypeError for one that forgot to say, which no application has."""
    need = handler.opt.get("needs")
    if need != EVERYBODY and need not in KNOWN:
        raise TypeError(f'{handler}: say in opt["needs"] which permission it needs, or opt["public"]')
    return str(need)


class BearerToken(AbstractAuthenticationMiddleware):
    """Lets nobody through without a valid `Authorization: Bearer …` that may do what the route does."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Find the caller; raises `Unauthenticated`, `Forbidden` or `TooMany`."""
        cloud: Cloud = connection.app.state.cloud
        gates: Gates = connection.app.state.gates
        trace: Trace = connection.scope["vpsd"]  # type: ignore[typeddict-item]
        address = connection.client.host if connection.client else "unknown"
        gates.pass_address(address, trace)
        try:
            token = bearer_token(connection)
            async with cloud.database.read() as tx:
                login = await tokens.authenticate(tx, cloud.clock, token, address, trace.request_id)
        except Unauthenticated:
            gates.failures.take(address)
            raise
        trace.caller = caller = login.caller
        gates.pass_token(caller.token_id, trace)
        need = needed(connection.route_handler)
        if need != EVERYBODY and not caller.may(need):
            raise Forbidden(f"This token lacks the permission {need}.")
        if login.note_use:
            async with cloud.database.write() as tx:
                await tokens.note_use(tx, cloud.clock, caller.token_id)
        return AuthenticationResult(caller, None)


def bearer_token(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The token that a request carries; raises `Unauthenticated` where there is none."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("Send your token with the request: Authorization: Bearer YOUR_API_TOKEN")
    return token.strip()
