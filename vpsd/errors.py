"""The expected failures of vpsd, in the domain's words.

The domain raises these and knows no status codes; `vpsd.api.errors` turns them into HTTP, in one place.
"""

from collections.abc import Mapping, Sequence


class VpsdError(Exception):
    """Any failure that vpsd expects; its text is written for the person who caused it."""

    code = "error"


class Unauthenticated(VpsdError):
    """No token, or one that is not valid."""

    code = "unauthenticated"


class Forbidden(VpsdError):
    """The token is valid and may not do this; the text names the permission that is missing."""

    code = "forbidden"


class PaymentRequired(VpsdError):
    """The balance does not cover it; the text says what is missing."""

    code = "payment_required"


class OverQuota(VpsdError):
    """The account may not have that much; the text says the limit."""

    code = "over_quota"


class TooMany(VpsdError):
    """Too many requests, or too many failed logins."""

    code = "too_many_requests"

    def __init__(self, text: str, retry_seconds: int) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class KeyReused(VpsdError):
    """An idempotency key came again with another request."""

    code = "idempotency_key_reused"


class StillRunning(VpsdError):
    """The first request with this idempotency key has not ended yet."""

    code = "still_running"


class NotFound(VpsdError):
    """The thing does not exist, or is none of the caller's business: both read the same."""

    code = "not_found"


class Invalid(VpsdError):
    """Bad input: every wrong field with its messages, all at once."""

    code = "invalid"

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        super().__init__("; ".join(f"{name}: {' '.join(texts)}" for name, texts in fields.items()))
        self.fields = {name: list(texts) for name, texts in fields.items()}


class WrongStatus(VpsdError):
    """The server's status does not allow the command."""

    code = "wrong_status"


class Protected(VpsdError):
    """The server's owner has protected it from this; the text says how to lift that."""

    code = "protected"


class Busy(VpsdError):
    """Another operation on the same server is still open."""

    code = "busy"


class Unavailable(VpsdError):
    """Something outside vpsd (host, mirror, disk) does not answer now; trying again later may help."""

    code = "unavailable"


class Unusable(VpsdError):
    """Something outside vpsd answered, and the answer is final: trying again changes nothing."""

    code = "unusable"


class Misconfigured(VpsdError):
    """vpsd cannot start as it is set up; the text says what to change."""

    code = "misconfigured"
