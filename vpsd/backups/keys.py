"""The operator's key, and the keys that are derived from it."""

import os
import re
import secrets
import stat
from pathlib import Path

from vpsd.errors import Misconfigured

KEY_BYTES = 32


def new_key() -> str:
    """A new key for a key file: 64 hex digits."""
    return secrets.token_hex(KEY_BYTES)


def read_key(path: Path) -> bytes:
    """Read a key file; raises `Misconfigured` if it is unusable or others than its owner can access it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1024).strip()
    except OSError as error:
        raise Misconfigured(f"VPSD_BACKUP_KEY_FILE={path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Misconfigured(f"VPSD_BACKUP_KEY_FILE={path}: others than its owner can access it; chmod 600 {path}")
    if not re.fullmatch(rb"[0-9A-Fa-f]{64}", text):
        raise Misconfigured(f"VPSD_BACKUP_KEY_FILE={path}: it must contain exactly 64 hex digits")
    return bytes.fromhex(text.decode())


def derive_key(key: bytes, purpose: bytes) -> bytes:
    """The key for one purpose."""
    from cryptography.hazmat.primitives.hashes import SHA256  # slow to import, and rarely needed
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"vpsd backups " + purpose).derive(key)
