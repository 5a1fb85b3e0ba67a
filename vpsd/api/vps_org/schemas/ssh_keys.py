"""What goes over the wire about SSH keys."""

from typing import Annotated

import msgspec
from msgspec import Meta

from vpsd.api.http.forms import Listing
from vpsd.core.clock import iso_utc
from vpsd.ssh_keys.models import SshKey


class SshKeyCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A public key to keep."""

    name: Annotated[str, Meta(min_length=1, max_length=255, description="What you call the key", examples=["laptop"])]
    public_key: Annotated[
        str,
        Meta(max_length=16384, description="The line of the .pub file: type, key, comment"),
    ]


class SshKeyView(msgspec.Struct):
    """A public key."""

    id: int
    uuid: str
    name: str
    public_key: str
    fingerprint: str
    created_at: str

    @classmethod
    def of(cls, key: SshKey) -> "SshKeyView":
        """From a row."""
        return cls(key.id, key.uuid, key.name, key.public_key, key.fingerprint, iso_utc(key.created_at_ms))


class SshKeyList(Listing):
    """A page of keys."""

    results: list[SshKeyView]
