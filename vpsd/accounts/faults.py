"""Faults of accounts, people and tokens."""

from vpsd.accounts.permissions import KNOWN
from vpsd.core.clock import iso_utc
from vpsd.errors import Fault, Forbidden, OverQuota


class AccountTaken(Fault, frozen=True):
    """There is an account of that name."""

    name: str

    def __str__(self) -> str:
        return f"There is already an account {self.name!r}."


class NotPrintable(Fault, frozen=True):
    """A text is too long, too short, or has unprintable characters."""

    at_least: int
    at_most: int

    def __str__(self) -> str:
        return f"Give {f'{self.at_least} to' if self.at_least else 'at most'} {self.at_most} printable characters."


class LimitOutOfRange(Fault, frozen=True):
    """A limit is below zero or larger than can be stored."""

    largest: int

    def __str__(self) -> str:
        return f"Give a number from 0 to {self.largest}, or none for no limit."


class NotAnEmail(Fault, frozen=True):
    """A text is not an e-mail address."""

    text: str

    def __str__(self) -> str:
        return f"{self.text!r} is not an e-mail address."


class PersonTaken(Fault, frozen=True):
    """Somebody with that address belongs to the account."""

    email: str

    def __str__(self) -> str:
        return f"{self.email} already belongs to the account."


class UnknownPermissions(Fault, frozen=True):
    """Names that are not permissions, or none at all."""

    names: list[str]

    def __str__(self) -> str:
        wrong = f"There is no {', '.join(self.names)}." if self.names else "Give at least one."
        return f"{wrong} The permissions are {', '.join(KNOWN)}."


class DaysOutOfRange(Fault, frozen=True):
    """A token's lifetime is less than a day, or too long."""

    at_most: int

    def __str__(self) -> str:
        return f"Give whole days, 1 to {self.at_most}."


class Outlives(Fault, frozen=True):
    """A token would outlive the one that creates it, which has that many whole days left."""

    ends_at_ms: int
    most_days: int

    def __str__(self) -> str:
        ends_at = iso_utc(self.ends_at_ms)
        return f"This token expires at {ends_at}, and none that it creates can outlive it: at most {self.most_days}."


class TooManyTokens(OverQuota):
    """The account has as many valid tokens as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"An account may have {limit} valid tokens. Revoke one that is no longer used.")
        self.limit = limit


class CannotHandOn(Forbidden):
    """A token lacks a permission that it was to grant to another."""

    def __init__(self, permission: str) -> None:
        super().__init__(f"This token lacks the permission {permission}, so it cannot hand it on.")
        self.permission = permission
