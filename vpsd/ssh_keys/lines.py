"""Lines of public keys: read, and refused where OpenSSH or dropbear would not read them, or anybody has the other half.

Format: RFC 4253 section 6.6, RFC 5656, RFC 8709, and OpenSSH's one-line form.
"""

import base64
import binascii
import hashlib
import struct
import unicodedata

from cryptography.hazmat.primitives.asymmetric import ec

from vpsd.ssh_keys.known import PUBLISHED

# Key types that OpenSSH of Debian 12 and Ubuntu 22.04 accept; ssh-dss is refused by both.
TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_FIELDS = {"ssh-ed25519": 2, "sk-ecdsa-sha2-nistp256@openssh.com": 4}  # the others have 3
_CURVES: dict[str, ec.EllipticCurve] = {
    "nistp256": ec.SECP256R1(),
    "nistp384": ec.SECP384R1(),
    "nistp521": ec.SECP521R1(),
}
_MINIMUM_RSA_BITS = 2048
_MAXIMUM_RSA_BITS = 8192  # dropbear's buffer for a key (MAX_PUBKEY_SIZE) has no room for 16384, which OpenSSH allows
_MAXIMUM_EXPONENT_BITS = 64  # OpenSSL's for large moduli
_LONGEST_COMMENT = 255
_LONGEST_LINE_BYTES = 4096  # dropbear skips lines from 4200 (MAX_AUTHKEYS_LINE)

_DAMAGED = "The key is damaged: copy the whole line of the .pub file."
_ONE_LINE = "Send one line of the .pub file: type, key, comment."
_OTHER_FORMATS = {
    "PRIVATE KEY": "This is a private key. Send the public one (the .pub file), and make a new pair.",
    "PuTTY-User-Key-File": "This is a private key of PuTTY. Send the public one, and make a new pair.",
    "BEGIN SSH2 PUBLIC KEY": "This is another format (RFC 4716). Convert it: ssh-keygen -i -f FILE.",
    "BEGIN PUBLIC KEY": "This is another format (PEM). Convert it: ssh-keygen -i -m PKCS8 -f FILE.",
    "BEGIN RSA PUBLIC KEY": "This is another format (PEM). Convert it: ssh-keygen -i -m PEM -f FILE.",
}


def parse(text: str) -> tuple[str, str]:
    """Parse a public key; returns its line for the guest, and its fingerprint as `ssh-keygen -l` prints it.

    Raises ValueError with a text for whoever sent it.
    """
    kind, encoded, comment = _words(text)
    try:
        blob = base64.b64decode(encoded, validate=True)
        fields = _fields(blob)
    except (binascii.Error, ValueError):
        raise ValueError(_DAMAGED) from None
    if not fields or fields[0] != kind.encode():
        raise ValueError(f"The key is damaged: it says {kind}, but holds another type.")
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    fingerprint = f"SHA256:{digest}"
    if fingerprint in PUBLISHED:
        raise ValueError(f"Anybody can log in with this key: it is {PUBLISHED[fingerprint]}. Make a pair of your own.")
    _check_fields(kind, fields)
    comment = "".join(character for character in comment if character.isprintable())
    if len(comment) > _LONGEST_COMMENT:
        raise ValueError(
            f"The comment after the key has {len(comment)} characters; {_LONGEST_COMMENT} are the limit. Shorten it, "
            "or leave it out."
        )
    line = f"{kind} {base64.b64encode(blob).decode()} {comment}".strip()
    if len(line.encode()) > _LONGEST_LINE_BYTES:
        raise ValueError(
            f"The line is too long, and not every server would read it: {_LONGEST_LINE_BYTES} bytes with the comment "
            "are the most. Shorten the comment, or make another key."
        )
    return line, fingerprint


def _words(text: str) -> tuple[str, str, str]:
    """Type, key and comment of a line, told from what else is pasted by accident."""
    for mark, message in _OTHER_FORMATS.items():
        if mark in text:
            raise ValueError(message)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    keys = [line for line in lines if line.split(None, 1)[0] in TYPES]
    if len(keys) > 1:
        raise ValueError(f"These are {len(keys)} keys. Send each by itself: {_ONE_LINE[:-1].lower()}.")
    if len(lines) > 1:
        raise ValueError("The key has a line break in it, as from a terminal's or mail's narrow window. " + _ONE_LINE)
    words = text.split(None, 2)
    if len(words) < 2:
        _refuse_odd_characters(text.strip())
        raise ValueError(_ONE_LINE)
    kind, encoded, comment = [*words, ""][:3]
    if kind not in TYPES and any(word in TYPES for word in text.split()):
        raise ValueError(f"Options before the key are not accepted. {_ONE_LINE}")
    _refuse_odd_characters(f"{kind} {encoded}")
    if kind.endswith("-cert-v01@openssh.com"):
        raise ValueError("This is a certificate. Send the key that it is about: the .pub file without -cert.")
    if kind not in TYPES:
        raise ValueError(f"Key type {kind!r} is not accepted; use one of {', '.join(TYPES)}.")
    return kind, encoded, comment


def _refuse_odd_characters(head: str) -> None:
    for place, character in enumerate(head):
        if character.isascii() and character.isprintable() and character not in "\"'`<>":
            continue
        name = "BYTE ORDER MARK" if character == "\ufeff" else unicodedata.name(character, "a control character")
        unseen = "" if character.isprintable() else ", which one does not see"
        raise ValueError(
            f"Character {place + 1} is U+{ord(character):04X} ({name}){unseen}: it does not belong to a key. Copy the "
            "line of the .pub file anew, with a plain text editor."
        )


def _fields(blob: bytes) -> list[bytes]:
    fields = []
    at = 0
    while at < len(blob):
        (length,) = struct.unpack_from(">I", blob, at) if at + 4 <= len(blob) else (len(blob),)
        at += 4
        if at + length > len(blob):
            raise ValueError
        fields.append(blob[at : at + length])
        at += length
    return fields


def _check_fields(kind: str, fields: list[bytes]) -> None:
    curve = kind.partition("@")[0].rpartition("-")[2]
    if len(fields) != _FIELDS.get(kind, 3) or (curve in _CURVES and fields[1] != curve.encode()):
        raise ValueError(_DAMAGED)
    if kind == "ssh-rsa":
        _check_rsa(fields[1], fields[2])
    elif not (_is_edwards_point(fields[1]) if curve == "ed25519" else _is_point(fields[2], _CURVES[curve])):
        raise ValueError(f"{_DAMAGED} What it holds is no point of its curve.")


def _check_rsa(exponent: bytes, modulus: bytes) -> None:
    if not exponent or not modulus or (exponent[0] | modulus[0]) & 0x80:  # negative, RFC 4251 section 5
        raise ValueError(_DAMAGED)
    e, n = int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
    if n.bit_length() < _MINIMUM_RSA_BITS:
        raise ValueError(f"RSA keys need at least {_MINIMUM_RSA_BITS} bits; ssh-ed25519 is shorter and stronger.")
    if n.bit_length() > _MAXIMUM_RSA_BITS:
        raise ValueError(
            f"RSA keys may have at most {_MAXIMUM_RSA_BITS} bits, or not every server could read them; ssh-ed25519 is "
            "shorter and as strong."
        )
    if e < 3 or not e & 1 or not n & 1 or e.bit_length() > _MAXIMUM_EXPONENT_BITS:
        raise ValueError(_DAMAGED)


def _is_point(point: bytes, curve: ec.EllipticCurve) -> bool:
    """Whether it is a point of the curve, uncompressed, as OpenSSH requires."""
    if not point.startswith(b"\x04"):
        return False
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except ValueError:
        return False
    return True


_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P


def _is_edwards_point(encoded: bytes) -> bool:
    """Whether it is a point of edwards25519 (RFC 8032 section 5.1.3) that is worth signing with.

    Those of a small order, of which 8 times is nothing, verify signatures of anybody.
    """
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    if len(encoded) != 32 or y >= _P:
        return False
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P  # of x
    if pow(square, (_P - 1) // 2, _P) not in (0, 1):
        return False
    return y not in (0, 1, _P - 1) and (_D * y**4 + 2 * y * y - 1) % _P != 0
