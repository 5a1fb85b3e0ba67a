"""Who is asking: the bearer token of a request."""

from litestar.connection import ASGIConnection
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from vpsd.accounts import service as accounts
from vpsd.errors import Unauthenticated


class BearerToken(AbstractAuthenticationMiddleware):
    """Lets nobody through without a valid `Authorization: Bearer …`."""

    async def authenticate_request(self, connection: ASGIConnection) -> AuthenticationResult:  # type: ignore[type-arg]
        """Find the caller; raises `Unauthenticated`."""
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("Send your token with the request: Authorization: Bearer YOUR_API_TOKEN")
        async with connection.app.state.cloud.database.read() as tx:
            return AuthenticationResult(await accounts.authenticate(tx, token.strip()), None)
