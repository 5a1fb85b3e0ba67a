"""SSH public keys: parsed, validated, stored."""

import base64
import binascii
import hashlib
import struct

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import bindparam, delete, insert, select

from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.core.faults import Faults
from vpsd.core.pages import Page, PagedList
from vpsd.errors import Fault, Invalid, NotFound
from vpsd.events import service as events
from vpsd.ssh_keys.models import SshKey, ssh_keys

# Key types that OpenSSH of Debian 12 and Ubuntu 22.04 accept; ssh-dss is refused by both.
_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_MINIMUM_RSA_BITS = 2048
_POINT_BYTES = {"nistp256": 65, "nistp384": 97, "nistp521": 133}  # uncompressed, as OpenSSH requires

_OWN = ssh_keys.c.account_id == bindparam("account_id")
_OWN_ONE = (_OWN, ssh_keys.c.id == bindparam("id"))
_COLUMNS = [column for column in ssh_keys.c if column.name != "account_id"]
_LIST = PagedList(select(*_COLUMNS).where(_OWN).order_by(ssh_keys.c.id), into=SshKey)
_ONE = Statement(select(*_COLUMNS).where(*_OWN_ONE), into=SshKey)
_ADD = Statement(
    insert(ssh_keys).returning(*_COLUMNS),
    ("uuid", "account_id", "name", "public_key", "fingerprint", "created_at_ms"),
    into=SshKey,
)
_DELETE = Statement(delete(ssh_keys).where(*_OWN_ONE))


class NewSshKey(msgspec.Struct, frozen=True):
    """A key to add; what was not sent or could not be read is unset."""

    name: str | UnsetType = UNSET
    public_key: str | UnsetType = UNSET


class KeyTaken(Fault, frozen=True):
    """The account already has the key."""

    fingerprint: str

    def __str__(self) -> str:
        return f"The account already has this key ({self.fingerprint})."


async def list_keys(ctx: Ctx, page: Page) -> tuple[int, list[SshKey]]:
    """How many keys the account has, and a page of them, oldest first."""
    return await _LIST.read(ctx, page)


async def find(ctx: Ctx, key_id: int) -> SshKey | None:
    """A key of the account."""
    return await ctx.tx.first(_ONE, account_id=ctx.account_id, id=key_id)


async def get(ctx: Ctx, key_id: int) -> SshKey:
    """A key of the account; raises `NotFound`."""
    key = await find(ctx, key_id)
    if key is None:
        raise NotFound("SSH key", key_id)
    return key


async def add(ctx: Ctx, new: NewSshKey, faults: Faults) -> SshKey:
    """Add a key; raises `Invalid` if servers would not accept it, or the account already has it."""
    line = fingerprint = ""
    if new.public_key is not UNSET:
        try:
            line, fingerprint = parse(new.public_key)
        except ValueError as error:
            faults.add("public_key", str(error))
    faults.check()
    try:
        key = await ctx.tx.first(
            _ADD,
            uuid=ctx.ids.uuid(),
            account_id=ctx.account_id,
            name=new.name,
            public_key=line,
            fingerprint=fingerprint,
            created_at_ms=ctx.now_ms,
        )
    except UniqueViolation:
        raise Invalid({"public_key": [KeyTaken(fingerprint)]}) from None
    assert key is not None
    await events.record(ctx, "ssh_key.add", "ssh_key", key.id, f"{key.name} {fingerprint}")
    return key


async def delete_key(ctx: Ctx, key_id: int) -> None:
    """Delete a key; servers that were created with it keep it. Raises `NotFound`."""
    if not await ctx.tx.run(_DELETE, account_id=ctx.account_id, id=key_id):
        raise NotFound("SSH key", key_id)
    await events.record(ctx, "ssh_key.delete", "ssh_key", key_id)


def parse(text: str) -> tuple[str, str]:
    """Parse a public key; returns its line for the guest, and its fingerprint as `ssh-keygen -l` prints it.

    Raises ValueError with a text for whoever sent it. Format: RFC 4253 section 6.6, OpenSSH's one-line form.
    """
    words = text.strip().split(None, 2)
    if "PRIVATE KEY" in text:
        raise ValueError("This is a private key. Send the public one (the .pub file), and make a new pair.")
    if "\n" in text.strip() or len(words) < 2:
        raise ValueError("Send one line of the .pub file: type, key, comment.")
    kind, encoded = words[0], words[1]
    if kind not in _TYPES:
        raise ValueError(f"Key type {kind!r} is not accepted; use one of {', '.join(_TYPES)}.")
    try:
        blob = base64.b64decode(encoded, validate=True)
        fields = _fields(blob)
    except (binascii.Error, ValueError):
        raise ValueError("The key is damaged: copy the whole line of the .pub file.") from None
    if not fields or fields[0] != kind.encode():
        raise ValueError(f"The key is damaged: it says {kind}, but holds another type.")
    _check_fields(kind, fields)
    comment = "".join(character for character in (words[2] if len(words) > 2 else "") if character.isprintable())
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"{kind} {encoded} {comment}".strip(), f"SHA256:{digest}"


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
    expected = {
        "ssh-ed25519": 2,
        "ssh-rsa": 3,
        "sk-ssh-ed25519@openssh.com": 3,
        "sk-ecdsa-sha2-nistp256@openssh.com": 4,
    }
    curve = kind.partition("@")[0].rpartition("-")[2]
    if (
        len(fields) != expected.get(kind, 3)
        or (curve == "ed25519" and len(fields[1]) != 32)
        or (curve in _POINT_BYTES and not _is_point(fields[1], fields[2], curve))
    ):
        raise ValueError("The key is damaged: copy the whole line of the .pub file.")
    if kind == "ssh-rsa" and int.from_bytes(fields[2], "big").bit_length() < _MINIMUM_RSA_BITS:
        raise ValueError(f"RSA keys need at least {_MINIMUM_RSA_BITS} bits; ssh-ed25519 is shorter and stronger.")


def _is_point(name: bytes, point: bytes, curve: str) -> bool:
    return name == curve.encode() and len(point) == _POINT_BYTES[curve] and point.startswith(b"\x04")
