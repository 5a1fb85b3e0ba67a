"""Public keys: checked, fingerprinted, kept."""

import base64
import binascii
import hashlib
import struct
from typing import Annotated

import msgspec
from msgspec import Meta
from sqlalchemy import bindparam, delete, func, insert, select

from vpsd.accounts import events
from vpsd.accounts.models import Caller
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.forms import Form
from vpsd.core.ids import Ids
from vpsd.core.pages import Page
from vpsd.errors import Invalid, NotFound
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
_POINT_BYTES = {"nistp256": 65, "nistp384": 97, "nistp521": 133}  # uncompressed, as OpenSSH wants it

_OWN = ssh_keys.c.account_id == bindparam("the_account")
_COLUMNS = [column for column in ssh_keys.c if column.name != "account_id"]
_LIST = Statement(
    select(*_COLUMNS).where(_OWN).order_by(ssh_keys.c.id).limit(bindparam("the_limit")).offset(bindparam("the_offset"))
)
_COUNT = Statement(select(func.count()).select_from(ssh_keys).where(_OWN))
_ONE = Statement(select(*_COLUMNS).where(_OWN, ssh_keys.c.id == bindparam("the_id")))
_ADD = Statement(
    insert(ssh_keys).returning(*_COLUMNS),
    ("uuid", "account_id", "name", "public_key", "fingerprint", "created_at_ms"),
)
_DELETE = Statement(delete(ssh_keys).where(_OWN, ssh_keys.c.id == bindparam("the_id")))


class SshKeyCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A public key to keep."""

    name: Annotated[str, Meta(min_length=1, max_length=255, description="What you call the key", examples=["laptop"])]
    public_key: Annotated[
        str,
        Meta(max_length=16384, description="The line of the .pub file: type, key, comment"),
    ]


async def list_keys(tx: Tx, caller: Caller, page: Page) -> tuple[int, list[SshKey]]:
    """How many keys the account has, and a page of them, oldest first."""
    count = await tx.first(int, _COUNT, the_account=caller.account_id)
    rows = await tx.all(SshKey, _LIST, the_account=caller.account_id, the_limit=page.size, the_offset=page.offset)
    return count or 0, rows


async def find(tx: Tx, caller: Caller, key_id: int) -> SshKey | None:
    """A key of the account."""
    return await tx.first(SshKey, _ONE, the_account=caller.account_id, the_id=key_id)


async def get(tx: Tx, caller: Caller, key_id: int) -> SshKey:
    """A key of the account; raises `NotFound`."""
    key = await find(tx, caller, key_id)
    if key is None:
        raise NotFound(f"There is no SSH key {key_id}.")
    return key


async def add(tx: Tx, caller: Caller, ids: Ids, clock: Clock, form: Form[SshKeyCreate]) -> SshKey:
    """Keep a key; raises `Invalid` for one that no server would take or that the account has already."""
    public_key = form.get("public_key")
    line = fingerprint = ""
    if public_key is not None:
        try:
            line, fingerprint = parse(public_key)
        except ValueError as error:
            form.wrong("public_key", str(error))
    form.done()
    try:
        key = await tx.first(
            SshKey,
            _ADD,
            uuid=ids.uuid(),
            account_id=caller.account_id,
            name=form.get("name"),
            public_key=line,
            fingerprint=fingerprint,
            created_at_ms=clock.now_ms(),
        )
    except UniqueViolation:
        raise Invalid({"public_key": [f"The account has this key already ({fingerprint})."]}) from None
    assert key is not None
    await events.add(tx, clock, caller, "ssh_key.add", "ssh_key", key.id, f"{key.name} {fingerprint}")
    return key


async def delete_key(tx: Tx, caller: Caller, clock: Clock, key_id: int) -> None:
    """Forget a key; servers that were made with it keep it. Raises `NotFound`."""
    if not await tx.run(_DELETE, the_account=caller.account_id, the_id=key_id):
        raise NotFound(f"There is no SSH key {key_id}.")
    await events.add(tx, clock, caller, "ssh_key.delete", "ssh_key", key_id)


def parse(text: str) -> tuple[str, str]:
    """Take a public key line apart: the line as it goes to the guest, and its fingerprint as `ssh-keygen -l` prints it.

    Raises ValueError with a text for the person who sent it. Format: RFC 4253 section 6.6, OpenSSH's one-line form.
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
