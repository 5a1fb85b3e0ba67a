"""The expected failures of vpsd, in the domain's words.

The domain raises these and knows no status codes; `vpsd.api.http.errors` turns them into HTTP, in one place. A room
that has more to say adds a subclass with parameters: a skin may put it into words of its own, and its text is plain
English without paths of any API.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import msgspec

MOST_NAMED = 20  # fields in one error: an answer is not to be much larger than its request


class VpsdError(Exception):
    """Any failure that vpsd expects; its text is written for the person who caused it.

    Where the text may name what is the operator's (paths, hosts, programs), `public` is what customers are told.
    """

    code = "error"
    public: str | None = None


class _FromOutside(VpsdError):
    """A failure of what lies outside vpsd: customers are told its text only where that is said to be for them."""

    def __init__(self, text: str, public: str | None = None) -> None:
        super().__init__(text)
        if public is not None:
            self.public = public

    @classmethod
    def plain(cls, text: str) -> Self:
        """One whose text is for everybody."""
        return cls(text, text)


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

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key came with another request before. Use a new key for a new request.")


class StillRunning(VpsdError):
    """The first request with this idempotency key has not ended yet."""

    code = "still_running"

    def __init__(self) -> None:
        super().__init__("The first request with this Idempotency-Key is still in progress. Try again in a moment.")


class NotFound(VpsdError):
    """The thing does not exist, or belongs to another account: callers cannot tell which."""

    code = "not_found"

    def __init__(self, noun: str, key: int | str) -> None:
        super().__init__(f"There is no {noun} {key!r}.")
        self.noun = noun
        self.key = key


class Fault(msgspec.Struct, frozen=True):
    """Why a field is not accepted: a kind, and what belongs to it. `str` says it in plain English."""


class Invalid(VpsdError):
    """Bad input: the wrong fields with what is wrong about them, all at once; of very many the first `MOST_NAMED`.

    `unnamed` says how many more there are.
    """

    code = "invalid"

    def __init__(self, fields: Mapping[str, Sequence[Fault | str]], unnamed: int = 0) -> None:
        self.fields = {name: list(faults) for name, faults in itertools.islice(fields.items(), MOST_NAMED)}
        self.unnamed = unnamed + len(fields) - len(self.fields)
        said = [f"{name}: {' '.join(map(str, faults))}" for name, faults in self.fields.items()]
        super().__init__("; ".join([*said, f"and {self.unnamed} more"] if self.unnamed else said))


class WrongStatus(VpsdError):
    """The server's status does not allow the command."""

    code = "wrong_status"


class Protected(VpsdError):
    """The server's owner has protected it from this; the text says how to lift that."""

    code = "protected"


class Busy(VpsdError):
    """Another operation on the same server is still open."""

    code = "busy"


class Unavailable(_FromOutside):
    """Something outside vpsd (host, mirror, disk) does not answer now; trying again later may help.

    `waits_for` is what customers are told that a server waits for, without anything of the operator's; None: nothing.
    """

    code = "unavailable"
    public = "The host, or what it needs, does not answer as it should; the operator can see why."
    waits_for: str | None = "its host, which does not answer as it should"


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Have customers told that it is this which does not answer."""
    try:
        yield
    except Unavailable as error:
        error.waits_for = what
        raise


class DatabaseUnavailable(VpsdError):
    """The database is away, full, locked or read-only: nothing was changed, and trying again later may help.

    `problem` says which in a word; `reason` is the driver's text, for the operator alone.
    """

    code = "database_unavailable"
    retry_seconds: int | None = 5

    def __init__(self, problem: str, reason: str, text: str | None = None) -> None:
        super().__init__(text or "The database does not answer now, and nothing was changed. Try again in a moment.")
        self.problem = problem
        self.reason = reason


class OutcomeUnknown(DatabaseUnavailable):
    """The database went away while it committed: nobody knows whether it did."""

    code = "outcome_unknown"
    retry_seconds = None  # whoever just sends it again may have it done twice

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(
            problem,
            reason,
            "The database went away before it said whether this was done; it may have been. If you sent an "
            "Idempotency-Key, send the request again with the same one; otherwise look first.",
        )


class Unusable(_FromOutside):
    """Something outside vpsd answered, and the answer is final: trying again changes nothing."""

    code = "unusable"
    public = "The host could not do it; the operator can see why."


class Misconfigured(VpsdError):
    """vpsd cannot start as it is set up; the text says what to change."""

    code = "misconfigured"
    public = "vpsd is not set up for this; the operator can see what is missing."


def public_text(error: Exception) -> str:
    """What customers may be told of a failure."""
    if not isinstance(error, VpsdError):
        return "vpsd met an error of its own; the operator can see which."
    return str(error) if error.public is None else error.public
