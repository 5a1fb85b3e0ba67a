"""Identifiers and secrets, passed in, so that tests may fix their seed."""

import hashlib
import random
import uuid
from collections.abc import Sequence

# Without the characters that people confuse when they copy by hand: 0 O, 1 l I.
_READABLE: Sequence[str] = "23456789abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"


class Ids:
    """Makes what nobody should guess; the system's own randomness unless a test passes another."""

    def __init__(self, source: random.Random | None = None) -> None:
        self._source = source or random.SystemRandom()

    def uuid(self) -> str:
        """A random UUID (RFC 9562, version 4)."""
        return str(uuid.UUID(int=self._source.getrandbits(128), version=4))

    def token(self) -> str:
        """An API token: `vps_` and 40 characters, 232 bits of chance."""
        return "vps_" + self._text(40)

    def password(self) -> str:
        """A root password: 20 characters, 116 bits of chance."""
        return self._text(20)

    def _text(self, length: int) -> str:
        return "".join(self._source.choice(_READABLE) for _ in range(length))


def token_hash(token: str) -> str:
    """What is stored of a token. Tokens carry 232 random bits, so a plain SHA-256 cannot be searched back."""
    return hashlib.sha256(token.encode()).hexdigest()


def mac_address(server_uuid: str) -> str:
    """A MAC address of QEMU's range that belongs to the server for its whole life."""
    digits = server_uuid.replace("-", "")
    return "52:54:00:" + ":".join(digits[i : i + 2] for i in (0, 2, 4))
