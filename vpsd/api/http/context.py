"""What the layers of one request tell each other: who sends it, and what of the limits is left."""

from collections.abc import Iterable

import msgspec

from vpsd.accounts.models import Caller
from vpsd.accounts.tokens import Login
from vpsd.core.limits import Limiter
from vpsd.errors import TooMany, Unauthenticated
from vpsd.runtime import Runtime

_FAILURES_SECONDS = 600


class NoToken(Unauthenticated):
    """A request carries no token."""

    def __init__(self) -> None:
        super().__init__("Send your token with the request: Authorization: Bearer YOUR_API_TOKEN")


class LimitReached(TooMany):
    """A token or an address has sent too many requests."""

    def __init__(self, sender: str, retry_seconds: int) -> None:
        super().__init__(f"This {sender} has sent too many requests. Wait {retry_seconds} seconds.", retry_seconds)


class RateLimits(msgspec.Struct, frozen=True):
    """How often somebody may ask, counted in this process."""

    address: Limiter
    token: Limiter
    failures: Limiter

    @classmethod
    def of(cls, runtime: Runtime) -> "RateLimits":
        """As the settings say."""
        clock, settings = runtime.clock, runtime.settings
        return cls(
            Limiter(clock, settings.address_rate_limit),
            Limiter(clock, settings.rate_limit),
            Limiter(clock, settings.login_failures, _FAILURES_SECONDS),
        )


class RequestContext(msgspec.Struct):
    """What the layers of one request tell each other."""

    runtime: Runtime
    limits: RateLimits
    address: str
    network: str  # what of the address limits count by
    base: str  # what addresses of vpsd begin with for the sender
    request_id: str
    headers: dict[str, str]  # to be sent with the answer
    login: Login | Exception = msgspec.field(default_factory=NoToken)  # or why there is none

    @property
    def caller(self) -> Caller | None:
        """Whose token the request carries, if it is a right one."""
        return self.login.caller if isinstance(self.login, Login) else None

    def take(self, name: str, key: str) -> None:
        """Count a request against a limit and say what is left in the headers; raises `TooMany`.

        Headers: draft-ietf-httpapi-ratelimit-headers, version 10.
        """
        limiter: Limiter = getattr(self.limits, name)
        if not limiter.limit:
            return
        quota = limiter.take(key)
        self.headers["RateLimit-Policy"] = f'"{name}";q={quota.limit};w={limiter.window_seconds}'
        self.headers["RateLimit"] = f'"{name}";r={quota.remaining};t={quota.reset_seconds}'
        if quota.retry_seconds:
            raise LimitReached(name, quota.retry_seconds)


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The token that a request carries in `Authorization: Bearer …`; empty where there is none."""
    sent = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = sent.decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
