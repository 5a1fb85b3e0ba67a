"""Programs for a guest that was made from a backup: what is done through its agent where its cloud-init does not."""

import shlex
from enum import StrEnum
from importlib.resources import files

import msgspec

_SHELL = ("/bin/sh", "-c")


class CloudInit(StrEnum):
    """Whether cloud-init will set up a new server that is made from a system."""

    ENABLED = "enabled"
    DISABLED = "disabled"  # or told to leave something alone that a new server needs, such as its network
    MISSING = "missing"


class Identity(msgspec.Struct, frozen=True):
    """What makes a copy a machine of its own. Without a key it has the password."""

    mac: str
    old_mac: str  # of the server that was backed up
    hostname: str
    key: str | None
    password_hash: str | None  # a crypt hash


def ask_command() -> list[str]:
    """A command that says which `CloudInit` a guest has."""
    return [*_SHELL, _program("ask-cloud-init")]


def read_answer(stdout: str) -> CloudInit | None:
    """What it said; None where that makes no sense."""
    return CloudInit(stdout.strip()) if stdout.strip() in set(CloudInit) else None


def set_right_command(identity: Identity) -> tuple[list[str], bytes]:
    """A command that makes a guest that machine, and its input; it takes effect when the guest boots next."""
    values = {
        "mac": identity.mac,
        "old_mac": identity.old_mac,
        "hostname": identity.hostname.partition(".")[0],
        "fqdn": identity.hostname,
        "key": (identity.key or "").strip(),
        "password_hash": identity.password_hash or "",
    }
    assignments = "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
    return [*_SHELL, _program("set-right")], assignments.encode()  # not as arguments: everyone in the guest sees those


def has_network_command() -> list[str]:
    """A command that succeeds once a guest has a way out (a default route)."""
    return [*_SHELL, "while read -r _ to _; do [ $to = 00000000 ] && exit; done < /proc/net/route; exit 1"]


def _program(name: str) -> str:
    return (files("vpsd.images") / "guest" / name).read_text()
