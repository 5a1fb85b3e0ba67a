"""What is wrong with what somebody sent, field by field, so that one answer names everything.

The wire adds what it cannot read, the service what it does not accept; `check` raises all of it together. A fault is a
kind with parameters: each skin has its own words for it, and `str` gives plain ones.
"""

from vpsd.errors import Fault, Invalid


class Malformed(Fault, frozen=True):
    """The field cannot be read; the text says what to send instead."""

    text: str

    def __str__(self) -> str:
        return self.text


class Required(Fault, frozen=True):
    """The field is missing."""

    def __str__(self) -> str:
        return "This field is required."


class Faults:
    """Everything that is wrong with one request."""

    def __init__(self) -> None:
        self._found: dict[str, list[Fault]] = {}
        self.unnamed = 0  # what is wrong besides, of which nothing more is said

    def add(self, field: str, fault: Fault | str) -> None:
        """Say what is wrong with a field."""
        self._found.setdefault(field, []).append(Malformed(fault) if isinstance(fault, str) else fault)

    def has(self, *fields: str) -> bool:
        """Whether something is wrong with one of these fields already."""
        return any(field in self._found for field in fields)

    def check(self) -> None:
        """Raise `Invalid` with everything that is wrong."""
        if self._found:
            raise Invalid(self._found, self.unnamed)
