"""Hashes of guests' passwords, as they stand in /etc/shadow: SHA-crypt with SHA-256, which every Linux guest knows.

Specification: Ulrich Drepper, "Unix crypt using SHA-256 and SHA-512", version 0.6.
"""

import hashlib
import secrets

# The passwords have 116 random bits: rounds that slow down guessing would only slow down the request.
_ROUNDS = 1000
_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SALT_LENGTH = 16
_DIGEST_BYTES = 32


def password_hash(password: str, salt: str | None = None) -> str:
    """The crypt hash of a password, by default with a random salt; at most 16 characters of a salt count."""
    salt = "".join(secrets.choice(_ALPHABET) for _ in range(_SALT_LENGTH)) if salt is None else salt[:_SALT_LENGTH]
    return f"$5$rounds={_ROUNDS}${salt}${_encoded(_digest(password.encode(), salt.encode()))}"


def _digest(key: bytes, salt: bytes) -> bytes:
    inner = _sha(key + salt + key)
    begun = key + salt + _repeated(inner, len(key))
    length = len(key)
    while length:
        begun += inner if length & 1 else key
        length >>= 1
    digest = _sha(begun)
    keys = _repeated(_sha(key * len(key)), len(key))
    salts = _repeated(_sha(salt * (16 + digest[0])), len(salt))
    for number in range(_ROUNDS):
        odd = number & 1
        third, seventh = salts if number % 3 else b"", keys if number % 7 else b""
        digest = _sha((keys if odd else digest) + third + seventh + (digest if odd else keys))
    return digest


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _repeated(digest: bytes, length: int) -> bytes:
    return (digest * (length // _DIGEST_BYTES + 1))[:length]


def _encoded(digest: bytes) -> str:
    """24 bits at a time, lowest first; which three bytes go together is the specification's."""
    text, places = "", (0, 10, 20)
    for _ in range(10):
        text += _characters(digest[places[0]] << 16 | digest[places[1]] << 8 | digest[places[2]], 4)
        places = (places[2] + 1, places[0] + 1, places[1] + 1)
    return text + _characters(digest[31] << 8 | digest[30], 3)


def _characters(bits: int, count: int) -> str:
    return "".join(_ALPHABET[bits >> 6 * place & 63] for place in range(count))
