"""What is said of something that went wrong: to customers, and to the operator."""

import msgspec

from vpsd.errors import DatabaseUnavailable, VpsdError, public_text

_NO_DATABASE = "The database did not answer."


class Failure(msgspec.Struct, frozen=True):
    """What went wrong: in words for customers, and in full for the operator."""

    error: str
    cause: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """From what was raised."""
        if isinstance(error, DatabaseUnavailable):  # its own text is advice for whoever sent a request
            return cls(_NO_DATABASE, f"{_NO_DATABASE} {error.reason}")
        return cls(public_text(error), str(error) if isinstance(error, VpsdError) else f"internal error: {error!r}")

    def after(self, text: str) -> "Failure":
        """The same, with a text before it."""
        return Failure(f"{text}{self.error}", f"{text}{self.cause}")

    def then(self, text: str) -> "Failure":
        """The same, with a sentence behind it."""
        return Failure(*(f"{said.removesuffix('.')}. {text}" for said in (self.error, self.cause)))
